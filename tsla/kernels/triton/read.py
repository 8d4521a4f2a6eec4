"""What tokens read of a state, and of the other tokens of their own chunk.

Queries read sums of values and their denominators, which is the output; keys read, in the backward pass, gradients of
the sums they went into, which is the gradient of their values.
"""

import triton
import triton.language as tl

from tsla.kernels.triton.tile import (
    TILE,
    around,
    gate,
    load_column,
    load_rows,
    load_state,
    load_tile,
    pair_of_tiles,
    real_keys,
    rounded,
    scores_of,
    weigh,
)


@triton.jit
def look_up(
    x, kv, z, at, stride, real, first, e, times_square, times_line, rise, level,
    d, TILES: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """phi(x) times a state ``(tokens, WIDTH)``, columns `first` ..., and phi(x) times z ``(tokens,)``.

    The products of the constant and the linear features are multiplied by `level` and `rise`, one for each token.
    """
    SQUARE: tl.constexpr = TILE * TILE
    PAIRS: tl.constexpr = TILES * (TILES + 1) // 2
    lane = tl.arange(0, TILE)
    place = first + tl.arange(0, WIDTH)
    flat = tl.load(kv + (PAIRS * SQUARE + TILES * TILE) * e + place, mask=place < e, other=0.0).to(tl.float32)
    sums = level[:, None] * flat[None, :]
    sums_z = level * tl.load(z + PAIRS * SQUARE + TILES * TILE)
    for left in range(TILES):
        x_left = load_tile(x, at, stride, real, left, d)
        row = PAIRS * SQUARE + left * TILE
        part = load_state(kv, row, 1, e, first, WIDTH, OPERAND)
        linear = x_left * (rise * times_line)[:, None]
        sums = tl.dot(rounded(linear, OPERAND), part, sums, input_precision=PRECISION)
        sums_z += tl.sum(linear * tl.load(z + row + lane)[None, :], 1)
        for right in range(left, TILES):
            pair = pair_of_tiles(left, right, TILES)
            half = tl.where(left == right, 0.5, 1.0)  # each product of one tile is there twice
            x_right = load_tile(x, at, stride, real, right, d) * (half * times_square)
            for i in range(tl.minimum(TILE, d - left * TILE)):
                column = load_column(x, at, stride, real, left * TILE + i)
                part = load_state(kv, pair * SQUARE + i * TILE, 1, e, first, WIDTH, OPERAND)
                sums = tl.dot(rounded(x_right * column[:, None], OPERAND), part, sums, input_precision=PRECISION)
            part_z = tl.load(z + pair * SQUARE + lane[:, None] * TILE + lane[None, :])
            sums_z += tl.sum(tl.dot(x_left, part_z, input_precision=PRECISION) * x_right, 1)
    return sums, sums_z


@triton.jit
def read_queries(
    q, k, v, mask, decay, shift, kv, z, out, den,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    heads, states, key_heads, blocks, n, e, chunk, chunks, scale, flat_c, slope_c, curve_c,
    d, TILES: tl.constexpr, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr,
    NORMALIZE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs and denominators of TOKENS queries of one head, WIDTH columns."""
    batch, head = (tl.program_id(0) // blocks // heads).to(tl.int64), tl.program_id(0) // blocks % heads
    unit = batch * states + head * states // heads
    begin, column = tl.program_id(0) % blocks * TOKENS, tl.program_id(1) * WIDTH
    at = begin + tl.arange(0, TOKENS)
    real = at < n
    row = (batch * heads + head) * n + at
    centre, level, rise = around(shift, row, real, flat_c, slope_c, curve_c, TOKENS, SHIFTED)
    q += batch * q_batch + head * q_head
    ROWS: tl.constexpr = TILES * (TILES + 1) // 2 * TILE * TILE + TILES * TILE + 1
    index = unit * chunks + begin // chunk
    sums, below = look_up(
        q, kv + index * ROWS * e, z + index * ROWS, at, q_token, real, column, e, curve_c * scale * scale, scale, rise,
        level, d, TILES, TOKENS, WIDTH, OPERAND, PRECISION,
    )  # fmt: skip
    if CAUSAL:
        key_head = head * key_heads // heads
        sums, below = _add_keys(
            sums, below, q, k + batch * k_batch + key_head * k_head, v + batch * v_batch + key_head * v_head, mask,
            decay, centre, at, real, q_token, k_token, v_token, batch, unit, begin, column, n, e, chunk, scale, flat_c,
            slope_c, curve_c, d, BROAD, TOKENS, WIDTH, MASKED, DECAYED, OPERAND, PRECISION,
        )  # fmt: skip
    if NORMALIZE:
        sums = sums / tl.where(below == 0.0, 1.0, below)[:, None]
    place = column + tl.arange(0, WIDTH)
    to = out + row[:, None] * e + place[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=real[:, None] & (place < e)[None, :])
    if column == 0:
        tl.store(den + row, below, mask=real)


@triton.jit
def _add_keys(
    sums, below, q, k, v, mask, decay, centre, at, real, q_token, k_token, v_token, batch, unit, begin, column, n, e,
    chunk, scale, flat_c, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    DECAYED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What queries read of the keys before them in their chunk, beside what they read of all that came earlier."""
    until = tl.zeros((TOKENS,), tl.float32)
    if DECAYED:
        until = tl.load(decay + unit * n + at, mask=real, other=float("-inf"))
        kept = tl.exp(until)
        sums *= kept[:, None]
        below *= kept
    own = rounded(load_rows(q, at, q_token, real, 0, d, BROAD), OPERAND)
    for start in range(begin // chunk * chunk, begin, TOKENS):  # all of these keys are before all of the queries
        sums, below = _add_block(
            sums, below, own, k, v, mask, decay, centre, until, start + tl.arange(0, TOKENS), at, k_token, v_token,
            batch, unit, column, n, e, scale, flat_c, slope_c, curve_c, d, BROAD, WIDTH, MASKED, DECAYED, False,
            OPERAND, PRECISION,
        )  # fmt: skip
    return _add_block(
        sums, below, own, k, v, mask, decay, centre, until, at, at, k_token, v_token, batch, unit, column, n, e, scale,
        flat_c, slope_c, curve_c, d, BROAD, WIDTH, MASKED, DECAYED, True, OPERAND, PRECISION,
    )  # fmt: skip


@triton.jit
def _add_block(
    sums, below, own, k, v, mask, decay, centre, until, key_at, at, k_token, v_token, batch, unit, column, n, e, scale,
    flat_c, slope_c, curve_c,
    d, BROAD: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, DECAYED: tl.constexpr, SAME: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What queries read of a block of keys, which is SAME as their own or before it."""
    key_real = real_keys(mask, batch, key_at, n, n, MASKED)
    values = rounded(load_rows(v, key_at, v_token, key_real, column, e, WIDTH), OPERAND)
    scores = scores_of(own, k, key_at, k_token, key_real, scale, d, BROAD, OPERAND, PRECISION) - centre[:, None]
    weights = weigh(scores, flat_c, slope_c, curve_c)
    visible = key_real[None, :]
    if SAME:
        visible = visible & (at[:, None] >= key_at[None, :])
    if SAME or MASKED:
        weights = tl.where(visible, weights, 0.0)
    if DECAYED:
        since = tl.load(decay + unit * n + key_at, mask=key_real, other=0.0)
        weights *= gate(visible, until[:, None], since[None, :])
    below += tl.sum(weights, 1)
    return tl.dot(rounded(weights, OPERAND), values, sums, input_precision=PRECISION), below


@triton.jit
def read_keys(
    q, k, dout, mask, decay, shift, inverse, slopes, kv, z, dv, dones,
    q_batch, q_head, q_token, k_batch, k_head, k_token, g_batch, g_head, g_token,
    heads, states, key_heads, blocks, m, e, chunk, chunks, scale, flat_c, slope_c, curve_c,
    d, TILES: tl.constexpr, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of TOKENS values of one state, WIDTH columns, and (DECAYED) of what counts as 1 in the denominators."""
    unit = (tl.program_id(0) // blocks).to(tl.int64)
    batch, state = unit // states, unit % states
    begin, column = tl.program_id(0) % blocks * TOKENS, tl.program_id(1) * WIDTH
    at = begin + tl.arange(0, TOKENS)
    real = real_keys(mask, batch, at, m, m, MASKED)
    k += batch * k_batch + state * key_heads // states * k_head
    ROWS: tl.constexpr = TILES * (TILES + 1) // 2 * TILE * TILE + TILES * TILE + 1
    index = unit * chunks + begin // chunk
    once = tl.where(real, 1.0, 0.0)
    grad, ones = look_up(
        k, kv + index * ROWS * e, z + index * ROWS, at, k_token, real, column, e, 1.0, 1.0, once, once, d, TILES,
        TOKENS, WIDTH, OPERAND, PRECISION,
    )  # fmt: skip
    if CAUSAL:
        grad, ones = _add_queries(
            grad, ones, q + batch * q_batch, k, dout + batch * g_batch, decay, shift, inverse, slopes, at, real,
            q_head, q_token, k_token, g_head, g_token, batch * heads, state * (heads // states), heads // states, unit,
            begin, column, m, e, chunk, scale, flat_c, slope_c, curve_c, d, BROAD, TOKENS, WIDTH, DECAYED, SHIFTED,
            OPERAND, PRECISION,
        )  # fmt: skip
    place = column + tl.arange(0, WIDTH)
    to = dv + (unit * m + at)[:, None] * e + place[None, :]
    tl.store(to, grad.to(dv.dtype.element_ty), mask=(at < m)[:, None] & (place < e)[None, :])
    if DECAYED and column == 0:
        tl.store(dones + unit * m + at, ones, mask=at < m)


@triton.jit
def _add_queries(
    grad, ones, q, k, dout, decay, shift, inverse, slopes, at, real, q_head, q_token, k_token, g_head, g_token,
    first_row, first_head, share, unit, begin, column, m, e, chunk, scale, flat_c, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, DECAYED: tl.constexpr,
    SHIFTED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from the queries after the keys in their chunk, of all heads that read these."""
    end = tl.minimum((begin // chunk + 1) * chunk, m)
    since = tl.zeros((TOKENS,), tl.float32)
    if DECAYED:
        since = tl.load(decay + unit * m + at, mask=at < m, other=0.0)
        kept = tl.exp(tl.where(at < m, tl.load(decay + unit * m + end - 1) - since, 0.0))
        grad *= kept[:, None]
        ones *= kept
    own = rounded(load_rows(k, at, k_token, real, 0, d, BROAD), OPERAND)
    for step in range(0, share):
        grad, ones = _add_block_of_queries(
            grad, ones, own, q, dout, decay, shift, inverse, slopes, since, at, at, q_head, q_token, g_head, g_token,
            first_row, first_head + step, unit, column, m, end, e, scale, flat_c, slope_c, curve_c, d, BROAD, WIDTH,
            DECAYED, SHIFTED, True, OPERAND, PRECISION,
        )  # fmt: skip
    for step in range(share, share * ((end - begin + TOKENS - 1) // TOKENS)):  # all of these queries are after the keys
        query_at = begin + step // share * TOKENS + tl.arange(0, TOKENS)
        grad, ones = _add_block_of_queries(
            grad, ones, own, q, dout, decay, shift, inverse, slopes, since, at, query_at, q_head, q_token, g_head,
            g_token, first_row, first_head + step % share, unit, column, m, end, e, scale, flat_c, slope_c, curve_c, d,
            BROAD, WIDTH, DECAYED, SHIFTED, False, OPERAND, PRECISION,
        )  # fmt: skip
    return tl.where(real[:, None], grad, 0.0), tl.where(real, ones, 0.0)


@triton.jit
def _add_block_of_queries(
    grad, ones, own, q, dout, decay, shift, inverse, slopes, since, at, query_at, q_head, q_token, g_head, g_token,
    first_row, head, unit, column, m, end, e, scale, flat_c, slope_c, curve_c,
    d, BROAD: tl.constexpr, WIDTH: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr, SAME: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from a block of queries of one head, the SAME tokens as the keys or later ones; 0 from `end` on."""
    real = query_at < end
    row = (first_row + head) * m + query_at
    rows = load_rows(dout + head * g_head, query_at, g_token, real, column, e, WIDTH).to(tl.float32)
    rows *= tl.load(inverse + row, mask=real, other=0.0)[:, None]
    scores = scores_of(own, q + head * q_head, query_at, q_token, real, scale, d, BROAD, OPERAND, PRECISION)
    if SHIFTED:
        scores -= tl.load(shift + row, mask=real, other=0.0)[None, :]
    weights = weigh(scores, flat_c, slope_c, curve_c)
    visible = real[None, :]
    if SAME:
        visible = visible & (at[:, None] <= query_at[None, :])
        weights = tl.where(visible, weights, 0.0)
    if DECAYED:
        until = tl.load(decay + unit * m + query_at, mask=real, other=0.0)
        weights *= gate(visible, until[None, :], since[:, None])
        ones += tl.sum(weights * tl.load(slopes + row, mask=real, other=0.0)[None, :], 1)
    return tl.dot(rounded(weights, OPERAND), rounded(rows, OPERAND), grad, input_precision=PRECISION), ones

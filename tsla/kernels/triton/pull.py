"""Gradients of queries and keys: of what their features read of a state, and of their scores within the chunk.

One program makes 16 columns of the gradient. That of x_j is the sum over i of x_i (M_ij . row + z_ij one), for which
the state's tiles are read as they lie or turned over; only queries and keys of the own chunk need pairs of tokens.
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
)


@triton.jit
def _scaled(rows, at, stride, real, factor, first, e, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """WIDTH columns of some tokens' rows, each row times its factor, as a factor of a product."""
    return rounded(load_rows(rows, at, stride, real, first, e, WIDTH).to(tl.float32) * factor[:, None], OPERAND)


@triton.jit
def pull(
    x, rows, kv, z, at, x_stride, row_stride, real, factor, ones, rise, tile, e, times_square, times_line,
    d, TILES: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of x ``(tokens, 16)`` of rows factor . (state phi(x)) + ones (z . phi(x))."""
    SQUARE: tl.constexpr = TILE * TILE
    PAIRS: tl.constexpr = TILES * (TILES + 1) // 2
    lane = tl.arange(0, TILE)
    square = tl.zeros((TOKENS, TILE), tl.float32)
    line = tl.zeros((TOKENS, TILE), tl.float32)
    for column in tl.static_range(COLUMNS):
        row = _scaled(rows, at, row_stride, real, factor, column * WIDTH, e, WIDTH, OPERAND)
        for other in range(TILES):
            turned = other > tile
            pair = pair_of_tiles(tl.minimum(tile, other), tl.maximum(tile, other), TILES)
            over, along = tl.where(turned, 1, TILE), tl.where(turned, TILE, 1)
            for i in range(tl.minimum(TILE, d - other * TILE)):
                part = load_state(kv, pair * SQUARE + i * over, along, e, column * WIDTH, WIDTH, OPERAND)
                factors = load_column(x, at, x_stride, real, other * TILE + i)
                square += tl.dot(row, tl.trans(part), input_precision=PRECISION) * factors[:, None]
        part = load_state(kv, PAIRS * SQUARE + tile * TILE, 1, e, column * WIDTH, WIDTH, OPERAND)
        line = tl.dot(row, tl.trans(part), line, input_precision=PRECISION)
    for other in range(TILES):
        turned = other > tile
        pair = pair_of_tiles(tl.minimum(tile, other), tl.maximum(tile, other), TILES)
        over, along = tl.where(turned, 1, TILE), tl.where(turned, TILE, 1)
        part_z = tl.load(z + pair * SQUARE + lane[:, None] * over + lane[None, :] * along)
        x_other = load_tile(x, at, x_stride, real, other, d)
        square += tl.dot(x_other, part_z, input_precision=PRECISION) * ones[:, None]
    line += tl.load(z + PAIRS * SQUARE + tile * TILE + lane)[None, :] * ones[:, None]
    return square * times_square + line * (rise * times_line)[:, None]


@triton.jit
def pull_queries(
    q, k, v, dout, mask, decay, shift, inverse, slopes, kv, z, dq,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, g_batch, g_head, g_token,
    heads, states, key_heads, blocks, n, e, chunk, chunks, scale, slope_c, curve_c,
    d, TILES: tl.constexpr, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of TOKENS queries of one head, 16 columns."""
    batch, head = (tl.program_id(0) // blocks // heads).to(tl.int64), tl.program_id(0) // blocks % heads
    unit = batch * states + head * states // heads
    begin, tile = tl.program_id(0) % blocks * TOKENS, tl.program_id(1)
    at = begin + tl.arange(0, TOKENS)
    real = at < n
    row = (batch * heads + head) * n + at
    centre, _, rise = around(shift, row, real, 0.0, slope_c, curve_c, TOKENS, SHIFTED)
    q += batch * q_batch + head * q_head
    dout += batch * g_batch + head * g_head
    factor = tl.load(inverse + row, mask=real, other=0.0)
    ones = tl.load(slopes + row, mask=real, other=0.0)
    ROWS: tl.constexpr = TILES * (TILES + 1) // 2 * TILE * TILE + TILES * TILE + 1
    index = unit * chunks + begin // chunk
    grad = pull(
        q, dout, kv + index * ROWS * e, z + index * ROWS, at, q_token, g_token, real, factor, ones, rise, tile, e,
        curve_c * scale * scale, scale, d, TILES, TOKENS, WIDTH, COLUMNS, OPERAND, PRECISION,
    )  # fmt: skip
    if CAUSAL:
        key_head = head * key_heads // heads
        grad = _add_keys(
            grad, q, k + batch * k_batch + key_head * k_head, v + batch * v_batch + key_head * v_head, dout, mask,
            decay, centre, factor, ones, at, real, q_token, k_token, v_token, g_token, batch, unit, begin, tile, n, e,
            chunk, scale, slope_c, curve_c, d, BROAD, TOKENS, WIDTH, COLUMNS, MASKED, DECAYED, OPERAND, PRECISION,
        )  # fmt: skip
    place = tile * TILE + tl.arange(0, TILE)
    to = dq + row[:, None] * d + place[None, :]
    tl.store(to, grad.to(dq.dtype.element_ty), mask=real[:, None] & (place < d)[None, :])


@triton.jit
def _add_keys(
    grad, q, k, v, dout, mask, decay, centre, factor, ones, at, real, q_token, k_token, v_token, g_token, batch, unit,
    begin, tile, n, e, chunk, scale, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
    DECAYED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from the scores with the keys before the queries in their chunk."""
    until = tl.zeros((TOKENS,), tl.float32)
    if DECAYED:
        until = tl.load(decay + unit * n + at, mask=real, other=float("-inf"))
        grad *= tl.exp(until)[:, None]
    own = rounded(load_rows(q, at, q_token, real, 0, d, BROAD), OPERAND)
    first = _scaled(dout, at, g_token, real, factor, 0, e, WIDTH, OPERAND)
    for start in range(begin // chunk * chunk, begin, TOKENS):  # all of these keys are before all of the queries
        grad = _add_block(
            grad, own, first, k, v, dout, mask, decay, centre, factor, ones, until, start + tl.arange(0, TOKENS), at,
            real, k_token, v_token, g_token, batch, unit, tile, n, e, scale, slope_c, curve_c, d, BROAD, TOKENS, WIDTH,
            COLUMNS, MASKED, DECAYED, False, OPERAND, PRECISION,
        )  # fmt: skip
    return _add_block(
        grad, own, first, k, v, dout, mask, decay, centre, factor, ones, until, at, at, real, k_token, v_token,
        g_token, batch, unit, tile, n, e, scale, slope_c, curve_c, d, BROAD, TOKENS, WIDTH, COLUMNS, MASKED, DECAYED,
        True, OPERAND, PRECISION,
    )  # fmt: skip


@triton.jit
def _add_block(
    grad, own, first, k, v, dout, mask, decay, centre, factor, ones, until, key_at, at, real, k_token, v_token, g_token,
    batch, unit, tile, n, e, scale, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
    DECAYED: tl.constexpr, SAME: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from a block of keys, which is the SAME as the queries' own or before it."""
    key_real = real_keys(mask, batch, key_at, n, n, MASKED)
    weights = tl.zeros((TOKENS, TOKENS), tl.float32) + ones[:, None]
    for part in tl.static_range(COLUMNS):
        values = rounded(load_rows(v, key_at, v_token, key_real, part * WIDTH, e, WIDTH), OPERAND)
        rows = first
        if part > 0:
            rows = _scaled(dout, at, g_token, real, factor, part * WIDTH, e, WIDTH, OPERAND)
        weights = tl.dot(rows, tl.trans(values), weights, input_precision=PRECISION)
    scores = scores_of(own, k, key_at, k_token, key_real, scale, d, BROAD, OPERAND, PRECISION) - centre[:, None]
    weights *= slope_c + curve_c * scores
    visible = key_real[None, :]
    if SAME:
        weights = tl.where(at[:, None] >= key_at[None, :], weights, 0.0)
        visible = visible & (at[:, None] >= key_at[None, :])
    if DECAYED:
        since = tl.load(decay + unit * n + key_at, mask=key_real, other=0.0)
        weights *= gate(visible, until[:, None], since[None, :])
    part = rounded(load_tile(k, key_at, k_token, key_real, tile, d), OPERAND)  # 0 where no key is
    return grad + tl.dot(rounded(weights, OPERAND), part, input_precision=PRECISION) * scale


@triton.jit
def pull_keys(
    q, k, v, dout, mask, decay, shift, inverse, slopes, kv, z, dk,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, g_batch, g_head, g_token,
    heads, states, key_heads, blocks, m, e, chunk, chunks, scale, slope_c, curve_c,
    d, TILES: tl.constexpr, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of TOKENS keys of one state, 16 columns."""
    unit = (tl.program_id(0) // blocks).to(tl.int64)
    batch, state = unit // states, unit % states
    begin, tile = tl.program_id(0) % blocks * TOKENS, tl.program_id(1)
    at = begin + tl.arange(0, TOKENS)
    real = real_keys(mask, batch, at, m, m, MASKED)
    k += batch * k_batch + state * key_heads // states * k_head
    v += batch * v_batch + state * key_heads // states * v_head
    ROWS: tl.constexpr = TILES * (TILES + 1) // 2 * TILE * TILE + TILES * TILE + 1
    index = unit * chunks + begin // chunk
    once = tl.where(real, 1.0, 0.0)
    grad = pull(
        k, v, kv + index * ROWS * e, z + index * ROWS, at, k_token, v_token, real, once, once, once, tile, e, 1.0, 1.0,
        d, TILES, TOKENS, WIDTH, COLUMNS, OPERAND, PRECISION,
    )  # fmt: skip
    if CAUSAL:
        grad = _add_queries(
            grad, q + batch * q_batch, k, v, dout + batch * g_batch, decay, shift, inverse, slopes, at, real, q_head,
            q_token, k_token, v_token, g_head, g_token, batch * heads, state * (heads // states), heads // states,
            unit, begin, tile, m, e, chunk, scale, slope_c, curve_c, d, BROAD, TOKENS, WIDTH, COLUMNS, DECAYED, SHIFTED,
            OPERAND, PRECISION,
        )  # fmt: skip
    place = tile * TILE + tl.arange(0, TILE)
    to = dk + (unit * m + at)[:, None] * d + place[None, :]
    tl.store(to, grad.to(dk.dtype.element_ty), mask=(at < m)[:, None] & (place < d)[None, :])


@triton.jit
def _add_queries(
    grad, q, k, v, dout, decay, shift, inverse, slopes, at, real, q_head, q_token, k_token, v_token, g_head, g_token,
    first_row, first_head, share, unit, begin, tile, m, e, chunk, scale, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, DECAYED: tl.constexpr,
    SHIFTED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from the scores with the queries after the keys in their chunk, of all heads that read these."""
    end = tl.minimum((begin // chunk + 1) * chunk, m)
    since = tl.zeros((TOKENS,), tl.float32)
    if DECAYED:
        since = tl.load(decay + unit * m + at, mask=at < m, other=0.0)
        grad *= tl.exp(tl.where(at < m, tl.load(decay + unit * m + end - 1) - since, 0.0))[:, None]
    own = rounded(load_rows(k, at, k_token, real, 0, d, BROAD), OPERAND)
    first = rounded(load_rows(v, at, v_token, real, 0, e, WIDTH), OPERAND)
    for step in range(0, share):
        grad = _add_block_of_queries(
            grad, own, first, q, v, dout, decay, shift, inverse, slopes, since, at, at, real, q_head, q_token, v_token,
            g_head, g_token, first_row, first_head + step, unit, tile, m, end, e, scale, slope_c, curve_c, d, BROAD,
            TOKENS, WIDTH, COLUMNS, DECAYED, SHIFTED, True, OPERAND, PRECISION,
        )  # fmt: skip
    for step in range(share, share * ((end - begin + TOKENS - 1) // TOKENS)):  # all of these queries are after the keys
        query_at = begin + step // share * TOKENS + tl.arange(0, TOKENS)
        grad = _add_block_of_queries(
            grad, own, first, q, v, dout, decay, shift, inverse, slopes, since, at, query_at, real, q_head, q_token,
            v_token, g_head, g_token, first_row, first_head + step % share, unit, tile, m, end, e, scale, slope_c,
            curve_c, d, BROAD, TOKENS, WIDTH, COLUMNS, DECAYED, SHIFTED, False, OPERAND, PRECISION,
        )  # fmt: skip
    return tl.where(real[:, None], grad, 0.0)


@triton.jit
def _add_block_of_queries(
    grad, own, first, q, v, dout, decay, shift, inverse, slopes, since, at, query_at, real, q_head, q_token, v_token,
    g_head, g_token, first_row, head, unit, tile, m, end, e, scale, slope_c, curve_c,
    d, BROAD: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, DECAYED: tl.constexpr,
    SHIFTED: tl.constexpr, SAME: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes from a block of queries of one head, the SAME tokens as the keys or later ones."""
    query_real = query_at < end
    row = (first_row + head) * m + query_at
    q += head * q_head
    dout += head * g_head
    factor = tl.load(inverse + row, mask=query_real, other=0.0)
    weights = tl.zeros((TOKENS, TOKENS), tl.float32)
    weights += tl.load(slopes + row, mask=query_real, other=0.0)[None, :]
    for part in tl.static_range(COLUMNS):
        rows = _scaled(dout, query_at, g_token, query_real, factor, part * WIDTH, e, WIDTH, OPERAND)
        values = first
        if part > 0:
            values = rounded(load_rows(v, at, v_token, real, part * WIDTH, e, WIDTH), OPERAND)
        weights = tl.dot(values, tl.trans(rows), weights, input_precision=PRECISION)
    scores = scores_of(own, q, query_at, q_token, query_real, scale, d, BROAD, OPERAND, PRECISION)
    if SHIFTED:
        scores -= tl.load(shift + row, mask=query_real, other=0.0)[None, :]
    weights *= slope_c + curve_c * scores
    visible = query_real[None, :]
    if SAME:
        weights = tl.where(at[:, None] <= query_at[None, :], weights, 0.0)
        visible = visible & (at[:, None] <= query_at[None, :])
    if DECAYED:
        until = tl.load(decay + unit * m + query_at, mask=query_real, other=0.0)
        weights *= gate(visible, until[None, :], since[:, None])
    part = rounded(load_tile(q, query_at, q_token, query_real, tile, d), OPERAND)  # 0 where no query is
    return grad + tl.dot(rounded(weights, OPERAND), part, input_precision=PRECISION) * scale

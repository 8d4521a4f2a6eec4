"""States: sums over tokens of features times rows, chunk by chunk, and what has been summed up before each chunk.

For keys the rows are values and the ones 1; for queries, in the backward pass, rows are gradients of the output's sums
and ones those of its denominators, and the sums are gradients of a state.
"""

import triton
import triton.language as tl

from tsla.kernels.triton.tile import TILE, around, load_rows, load_tile, real_keys, rounded, tiles_of_pair


@triton.jit
def key_sums(
    k, v, mask, decay, kv, z,
    k_batch, k_head, k_token, v_batch, v_head, v_token, states, key_heads, m, e, chunk, chunks,
    d, TILES: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    DECAYED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each chunk's own sum of phi(k) v^T and phi(k), decayed to its end: one pair of tiles, WIDTH columns."""
    unit, index = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    left, right = tiles_of_pair(tl.program_id(1), TILES)
    batch, head = unit // states, unit % states * key_heads // states
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    end = tl.minimum(index * chunk + chunk, m)
    if DECAYED:
        last = tl.load(decay + unit * m + end - 1)
    sums = _nothing(WIDTH)
    for first in range(index * chunk, end, TOKENS):
        at = first + tl.arange(0, TOKENS)
        real = real_keys(mask, batch, at, end, m, MASKED)
        x = load_tile(k, at, k_token, real, left, d)
        y = load_tile(k, at, k_token, real, right, d)
        rows = load_rows(v, at, v_token, real, tl.program_id(2) * WIDTH, e, WIDTH).to(tl.float32)
        once = tl.where(real, 1.0, 0.0)
        ones = once
        if DECAYED:
            ones *= tl.exp(last - tl.load(decay + unit * m + at, mask=at < end, other=last))
            rows *= ones[:, None]
        sums = _add(sums, x, y, rows, ones, once, once, TOKENS, OPERAND, PRECISION)
    _store(kv, z, unit * chunks + index, left, right, sums, e, 1.0, 1.0, TILES, WIDTH)


@triton.jit
def query_sums(
    q, dout, out, den, dden, shift, decay, inverse, slopes, kv, z,
    q_batch, q_head, q_token, g_batch, g_head, g_token, o_batch, o_head, o_token, states, heads, n, e, chunk, chunks,
    scale, flat_c, slope_c, curve_c,
    d, TILES: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    NORMALIZE: tl.constexpr, DECAYED: tl.constexpr, SHIFTED: tl.constexpr, WEIGHED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a state from the queries of a chunk, those of all heads that read it.

    Writes, for the passes that follow, 1 / denominator (`inverse`) and the gradient of the denominator (`slopes`).
    WEIGHED: `dden` is given.
    """
    unit, index = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    left, right = tiles_of_pair(tl.program_id(1), TILES)
    batch, share = unit // states, heads // states
    end = tl.minimum(index * chunk + chunk, n)
    sums = _nothing(WIDTH)
    for step in range(0, share * ((end - index * chunk + TOKENS - 1) // TOKENS)):
        head = unit % states * share + step % share
        at = index * chunk + step // share * TOKENS + tl.arange(0, TOKENS)
        real = at < end
        row = (batch * heads + head) * n + at
        x_at, g_at = q + batch * q_batch + head * q_head, dout + batch * g_batch + head * g_head
        x = load_tile(x_at, at, q_token, real, left, d)
        y = load_tile(x_at, at, q_token, real, right, d)
        factor, ones = _gradients_of_sums(
            g_at, out + batch * o_batch + head * o_head, den, dden, at, row, real, g_token, o_token, e, TOKENS, WIDTH,
            COLUMNS, NORMALIZE, WEIGHED,
        )  # fmt: skip
        if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
            tl.store(inverse + row, factor, mask=real)
            tl.store(slopes + row, ones, mask=real)
        if DECAYED:
            kept = tl.exp(tl.load(decay + unit * n + at, mask=real, other=0.0))
            ones *= kept
            factor *= kept
        rows = load_rows(g_at, at, g_token, real, tl.program_id(2) * WIDTH, e, WIDTH).to(tl.float32) * factor[:, None]
        _, level, rise = around(shift, row, real, flat_c, slope_c, curve_c, TOKENS, SHIFTED)
        sums = _add(sums, x, y, rows, ones, rise, level, TOKENS, OPERAND, PRECISION)
    _store(kv, z, unit * chunks + index, left, right, sums, e, curve_c * scale * scale, scale, TILES, WIDTH)


@triton.jit
def _gradients_of_sums(
    dout, out, den, dden, at, row, real, g_token, o_token, e,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, NORMALIZE: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """What the output's gradient is multiplied by to be that of the sums, and the gradient of the denominators."""
    factor = tl.where(real, 1.0, 0.0)
    ones = tl.zeros((TOKENS,), tl.float32)
    if WEIGHED:
        ones = tl.load(dden + row, mask=real, other=0.0)
    if NORMALIZE:
        below = tl.load(den + row, mask=real, other=0.0)
        factor = tl.where(below == 0.0, 0.0, 1.0 / tl.where(below == 0.0, 1.0, below))
        both = tl.zeros((TOKENS,), tl.float32)
        for part in tl.static_range(COLUMNS):
            rows = load_rows(dout, at, g_token, real, part * WIDTH, e, WIDTH).to(tl.float32)
            both += tl.sum(rows * load_rows(out, at, o_token, real, part * WIDTH, e, WIDTH).to(tl.float32), 1)
        ones = tl.where(below == 0.0, 0.0, ones - both * factor)
    return factor, ones


@triton.jit
def _nothing(WIDTH: tl.constexpr):
    """Sums of no tokens: of squares, of linear features, of the constant; and those of denominators."""
    return (
        tl.zeros((TILE * TILE, WIDTH), tl.float32), tl.zeros((TILE, WIDTH), tl.float32), tl.zeros((WIDTH,), tl.float32),
        tl.zeros((TILE, TILE), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((1,), tl.float32),
    )  # fmt: skip


@triton.jit
def _add(
    sums, x, y, rows, ones, rise, level, TOKENS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Some tokens more; `rise` and `level` weigh their linear features and their constant."""
    square, line, flat, square_z, line_z, flat_z = sums
    features = tl.reshape(rounded(x[:, :, None] * y[:, None, :], OPERAND), (TOKENS, TILE * TILE))
    square = tl.dot(tl.trans(features), rounded(rows, OPERAND), square, input_precision=PRECISION)
    line = tl.dot(
        tl.trans(rounded(x, OPERAND)), rounded(rows * rise[:, None], OPERAND), line, input_precision=PRECISION
    )
    flat += tl.sum(rows * level[:, None], 0)
    square_z = tl.dot(tl.trans(x), y * ones[:, None], square_z, input_precision=PRECISION)
    line_z += tl.sum(x * (ones * rise)[:, None], 0)
    flat_z += tl.sum(ones * level)
    return square, line, flat, square_z, line_z, flat_z


@triton.jit
def _store(
    kv, z, index, left, right, sums, e, times_square, times_line, TILES: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """One pair's products, the linear features of its tile if there is but one, and the constant if that is the first.

    Denominators are stored by the programs of the first columns.
    """
    square, line, flat, square_z, line_z, flat_z = sums
    SQUARE: tl.constexpr = TILE * TILE
    ROWS: tl.constexpr = TILES * (TILES + 1) // 2 * SQUARE + TILES * TILE + 1
    kv += index * ROWS * e
    z += index * ROWS
    place = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = place < e
    lane = tl.arange(0, TILE)
    rows = tl.program_id(1) * SQUARE + tl.arange(0, SQUARE)
    tl.store(kv + rows[:, None] * e + place[None, :], square * times_square, mask=inside[None, :])
    row = ROWS - 1 - TILES * TILE + left * TILE + lane
    if left == right:
        tl.store(kv + row[:, None] * e + place[None, :], line * times_line, mask=inside[None, :])
        if left == 0:
            tl.store(kv + (ROWS - 1) * e + place, flat, mask=inside)
    if tl.program_id(2) == 0:
        here = tl.program_id(1) * SQUARE + lane[:, None] * TILE + lane[None, :]
        tl.store(z + here, square_z * times_square)
        if left == right:
            tl.store(z + row, line_z * times_line)
            if left == 0:
                tl.store(z + ROWS - 1 + tl.arange(0, 1), flat_z)


@triton.jit
def running(
    own, start, decay, before, end, size, n, chunk, chunks,
    BLOCK: tl.constexpr, STARTED: tl.constexpr, DECAYED: tl.constexpr, EACH: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Chunks' sums added up, decayed on the way: `end` is all of them on top of `start`.

    EACH: `before` is what each chunk finds, what comes before it (BACKWARD: after it). Else `before` is `end` once
    more, in the type that products take.
    """
    unit = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    sums = tl.zeros((BLOCK,), tl.float32)
    if STARTED:
        sums = tl.load(start + unit * size + place, mask=inside, other=0.0)
    for step in range(chunks):
        index = chunks - 1 - step if BACKWARD else step
        at = (unit * chunks + index) * size + place
        if EACH:
            tl.store(before + at, sums.to(before.dtype.element_ty), mask=inside)
        if DECAYED:
            sums *= tl.exp(tl.load(decay + unit * n + tl.minimum((index + 1) * chunk, n) - 1))
        sums += tl.load(own + at, mask=inside, other=0.0)
    tl.store(end + unit * size + place, sums, mask=inside)
    if not EACH:
        tl.store(before + unit * size + place, sums.to(before.dtype.element_ty), mask=inside)


@triton.jit
def decays(gates, decay, n, chunk, CHUNK: tl.constexpr):
    """Running sums of log gates from the first token of each chunk; CHUNK: the chunk's length up to a power of 2."""
    unit = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    at = tl.program_id(1) * chunk + lane
    inside = (lane < chunk) & (at < n)
    values = tl.load(gates + unit * n + at, mask=inside, other=0.0)
    tl.store(decay + unit * n + at, tl.cumsum(values, 0), mask=inside)

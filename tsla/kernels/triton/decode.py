"""One token more: the packed state takes in a key and is read by the queries of its heads, in one pass over it."""

import triton
import triton.language as tl

from tsla.kernels.triton.tile import around


@triton.jit
def step(
    q, k, v, mask, gates, shift, kv, z, kv_after, z_after, out, den, left, right, factors,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads, states, key_heads, features, e,
    scale, flat_c, slope_c, curve_c,
    WIDTH: tl.constexpr, FEATURES: tl.constexpr, SHARE: tl.constexpr, MASKED: tl.constexpr,
    DECAYED: tl.constexpr, SHIFTED: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of one state, FEATURES rows at a time; SHARE (a power of 2) is at least heads / states.

    left, right, factors: feature p is x_left x_right times its factor, an index of -1 standing for 1.
    """
    unit = tl.program_id(0).to(tl.int64)
    batch, state = unit // states, unit % states
    share = heads // states
    column = tl.program_id(1) * WIDTH
    place = column + tl.arange(0, WIDTH)
    k += batch * k_batch + state * key_heads // states * k_head
    only = tl.arange(0, 1)
    real = only == 0
    if MASKED:
        real = tl.load(mask + batch + only) != 0
    v += batch * v_batch + state * key_heads // states * v_head
    value = tl.load(v + place, mask=(place < e) & real, other=0.0).to(tl.float32)
    kept = 1.0
    if DECAYED:
        kept = tl.exp(tl.load(gates + unit))
    reader = tl.arange(0, SHARE)
    reads = reader < share
    head = state * share + reader
    row = batch * heads + head
    _, level, rise = around(shift, row, reads, flat_c, slope_c, curve_c, SHARE, SHIFTED)
    sums = tl.zeros((SHARE, WIDTH), tl.float32)
    below = tl.zeros((SHARE,), tl.float32)
    query = q + batch * q_batch + head * q_head
    for first in range(0, features, FEATURES):
        p = first + tl.arange(0, FEATURES)
        inside = p < features
        i, j = tl.load(left + p, mask=inside, other=-1), tl.load(right + p, mask=inside, other=-1)
        times = tl.load(factors + p, mask=inside, other=0.0)
        key = _feature(k, i, j, real) * times * tl.where(real, 1.0, 0.0)
        at = (unit * features + p)[:, None] * e + place[None, :]
        there = inside[:, None] & (place < e)[None, :]
        part = tl.load(kv + at, mask=there, other=0.0) * kept + key[:, None] * value[None, :]
        tl.store(kv_after + at, part, mask=there)
        part_z = tl.load(z + unit * features + p, mask=inside, other=0.0) * kept + key
        if column == 0:
            tl.store(z_after + unit * features + p, part_z, mask=inside)
        linear = tl.where(j[None, :] < 0, rise[:, None] * scale, curve_c * scale * scale)
        y = _feature(query[:, None], i[None, :], j[None, :], reads[:, None])
        y *= tl.where(i[None, :] < 0, level[:, None], linear) * times[None, :]
        sums += tl.sum(y[:, :, None] * part[None, :, :], 1)
        below += tl.sum(y * part_z[None, :], 1)
    if NORMALIZE:
        sums = sums / tl.where(below == 0.0, 1.0, below)[:, None]
    to = out + row[:, None] * e + place[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=reads[:, None] & (place < e)[None, :])
    if column == 0:
        tl.store(den + row, below, mask=reads)


@triton.jit
def _feature(x, i, j, real):
    """x_i x_j, an index of -1 standing for 1."""
    first = tl.load(x + i, mask=real & (i >= 0), other=1.0).to(tl.float32)
    return first * tl.load(x + j, mask=real & (j >= 0), other=1.0).to(tl.float32)

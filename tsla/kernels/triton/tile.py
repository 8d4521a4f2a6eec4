"""What the GPU kernels share: how they load tokens, count tiles and weigh pairs."""

import os

import triton
import triton.language as tl

from tsla.kernels.triton.layout import TILE as _TILE

TILE = tl.constexpr(_TILE)
EMULATED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(x, OPERAND: tl.constexpr):
    """A factor of a product in the type it is multiplied in; the interpreter cannot multiply bfloat16 as it is."""
    x = x.to(OPERAND)
    if EMULATED:
        x = x.to(tl.float32)
    return x


@triton.jit
def _offsets(at, stride):
    """Of tokens, in more than 32 bits: millions of tokens of many heads go beyond."""
    return at.to(tl.int64) * stride


@triton.jit
def load_tile(base, at, stride, real, tile, d):
    """16 of the head's numbers of some tokens ``(tokens, 16)``; 0 beyond its width and where a token is not real."""
    place = tile * TILE + tl.arange(0, TILE)
    inside = real[:, None] & (place < d)[None, :]
    return tl.load(base + _offsets(at, stride)[:, None] + place[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_column(base, at, stride, real, place):
    """One of the head's numbers of some tokens ``(tokens,)``."""
    return tl.load(base + _offsets(at, stride) + place, mask=real, other=0.0).to(tl.float32)


@triton.jit
def load_rows(base, at, stride, real, first, width, WIDTH: tl.constexpr):
    """Numbers first ... first + WIDTH of some tokens, as they are; 0 from `width` on."""
    place = first + tl.arange(0, WIDTH)
    inside = real[:, None] & (place < width)[None, :]
    return tl.load(base + _offsets(at, stride)[:, None] + place[None, :], mask=inside, other=0)


@triton.jit
def load_state(kv, row, step, e, first, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """Rows `row`, `row` + step ... of a state ``(16, WIDTH)``."""
    place = first + tl.arange(0, WIDTH)
    rows = row + step * tl.arange(0, TILE)
    return rounded(tl.load(kv + rows[:, None] * e + place[None, :], mask=(place < e)[None, :], other=0.0), OPERAND)


@triton.jit
def tiles_of_pair(pair, TILES: tl.constexpr):
    """The tiles I <= J of a pair by its number."""
    left = pair * 0
    right = pair
    for row in tl.static_range(1, TILES):
        beyond = right >= TILES
        left += tl.where(beyond, 1, 0)
        right = tl.where(beyond, right - TILES + row, right)
    return left, right


@triton.jit
def pair_of_tiles(left, right, TILES: tl.constexpr):
    """The number of the pair of two tiles, I <= J."""
    return left * TILES - left * (left - 1) // 2 + right - left


@triton.jit
def weigh(x, flat, slope, curve):
    """flat + slope x + curve x^2 / 2."""
    return flat + x * (slope + 0.5 * curve * x)


@triton.jit
def gate(visible, later, earlier):
    """How much of what was written at `earlier` is left at `later`, by running sums of log gates; 0 if not visible."""
    return tl.where(visible, tl.exp(tl.where(visible, later - earlier, 0.0)), 0.0)


@triton.jit
def around(
    shift, row, real, flat_c, slope_c, curve_c, TOKENS: tl.constexpr, SHIFTED: tl.constexpr
):  # fmt: skip
    """Each query's shift m, and flat and slope of its polynomial P(x - m) = level + rise x + curve x^2 / 2."""
    centre = tl.zeros((TOKENS,), tl.float32)
    if SHIFTED:
        centre = tl.load(shift + row, mask=real, other=0.0)
    level = flat_c + centre * (0.5 * curve_c * centre - slope_c)
    return centre, tl.where(real, level, 0.0), tl.where(real, slope_c - curve_c * centre, 0.0)


@triton.jit
def real_keys(mask, batch, at, end, m, MASKED: tl.constexpr):
    """Which keys before `end` are not masked."""
    real = at < end
    if MASKED:
        real = real & (tl.load(mask + batch * m + at, mask=real, other=0) != 0)
    return real


@triton.jit
def scores_of(
    own, other, at, stride, real, scale, d, BROAD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scaled products of some tokens' heads, loaded before, with those of other tokens."""
    heads = rounded(load_rows(other, at, stride, real, 0, d, BROAD), OPERAND)
    return tl.dot(own, tl.trans(heads), input_precision=PRECISION) * scale

"""Every refusal of the mixers: a ValueError with what was given and what is allowed, at construction or at the call."""

import re

import pytest
import torch
from mechanisms import BARE, CAUSAL, CROSS, DIM, NAMES, build, directions

from tsla.mixers import (
    GatedConv,
    HeadMixer,
    HeadSplit,
    Mixer,
    NoMixer,
    SoftmaxAttention,
    TaylorAttention,
    WindowAttention,
)
from tsla.mixers.base import MODES

EVERYONE = pytest.mark.parametrize("name", NAMES)
BOTH_WAYS = pytest.mark.parametrize(("name", "causal"), [(name, way) for name in NAMES for way in directions(name)])
EVERY_HEAD = pytest.mark.parametrize("cls", [TaylorAttention, SoftmaxAttention, WindowAttention])


def refused(message):
    """The whole message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@EVERY_HEAD
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads (0) must be at least 1"),
        ({"heads": -4}, "heads (-4) must be at least 1"),
        ({"heads": 4, "head_dim": 0}, "head_dim (0) must be at least 1"),
        ({"heads": 4, "value_dim": 0}, "value_dim (0) must be at least 1"),
        ({"heads": 3}, "heads (3) must divide dim (16), or give head_dim and value_dim"),
        ({"heads": 3, "head_dim": 8}, "heads (3) must divide dim (16), or give head_dim and value_dim"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads (3) must divide heads (4)"),
        ({"heads": 4, "kv_heads": 8}, "kv_heads (8) must divide heads (4)"),
        ({"heads": 4, "kv_heads": 0}, "kv_heads (0) must divide heads (4)"),
        ({"heads": 4, "kv_heads": -2}, "kv_heads (-2) must divide heads (4)"),
        ({"heads": 4, "head_dim": 5, "rotary": True}, "rotary positions need an even head_dim, got 5"),
    ],
    ids=str,
)
def test_heads_and_widths(cls, options, message):
    with refused(message):
        cls(DIM, **options)


@EVERY_HEAD
def test_dim_and_dropout(cls):
    with refused("dim (0) must be at least 1"):
        cls(0)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        cls(DIM, dropout=1.5)


@EVERY_HEAD
def test_heads_need_not_divide_when_both_widths_are_given(cls):
    assert cls(DIM, heads=3, head_dim=4, value_dim=5)(torch.zeros(1, 2, DIM)).shape == (1, 2, DIM)


def test_arguments_of_one_mechanism():
    with refused("order (3) must be even and not negative: an odd one gives negative attention weights"):
        TaylorAttention(DIM, order=3)
    with refused("impl ('fast') must be one of auto, direct, linear, native, triton"):
        TaylorAttention(DIM, impl="fast")
    with refused("window (-1) must not be negative"):
        WindowAttention(DIM, window=-1)
    for name in ("dim", "kernel", "expand"):
        with refused(f"{name} (0) must be at least 1"):
            GatedConv(**{"dim": DIM, name: 0})


@BOTH_WAYS
def test_input_shapes(name, causal):
    mixer = build(name, causal=causal, dtype=torch.float32)
    for shape in ((), (DIM,), (11, DIM), (2, 11, DIM + 1), (2, 3, 11, DIM)):
        calls = [mixer, mixer.mix, *([mixer.extend] if causal else [])]
        for call in calls:
            with refused(f"x must have shape (batch, length, {DIM}), got {shape}"):
                call(torch.zeros(shape))


@BOTH_WAYS
def test_masks(name, causal):
    mixer, x = build(name, causal=causal, dtype=torch.float32), torch.zeros(2, 11, DIM)
    masks = [torch.ones(shape, dtype=torch.bool) for shape in ((11,), (1, 11), (2, 10), (2, 11, 1), (2, 1, 1, 11))]
    for mask in (*masks, torch.ones(2, 11), torch.ones(2, 11, dtype=torch.int64)):
        got = f"got {mask.dtype} of shape {tuple(mask.shape)}"
        for call in (mixer, *([mixer.extend] if causal else [])):
            with refused(f"mask must be torch.bool of shape (2, 11), True = real token; {got}"):
                call(x, mask=mask)


@EVERYONE
def test_context(name):
    mixer, x = build(name, dtype=torch.float32), torch.zeros(2, 11, DIM)
    if name not in CROSS:
        cls = type(mixer).__name__
        able = ", ".join(["bidirectional"] * (False in directions(name)) + ["causal, decode"] * (name in CAUSAL))
        able = f"{able}, packed"
        with refused(f"{cls} does not support 'cross', only {able}"):
            mixer(x, x)
        return
    with refused(f"context must have shape (batch, length, {DIM}), got (2, 5, 9)"):
        mixer(x, torch.zeros(2, 5, 9))
    for b in (1, 3):
        with refused(f"context must have the batch size of x (2), got {b}"):
            mixer(x, torch.zeros(b, 5, DIM))
    with refused("mask must be torch.bool of shape (2, 5), True = real token; got torch.bool of shape (2, 11)"):
        mixer(x, torch.zeros(2, 5, DIM), mask=torch.ones(2, 11, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"rotary": True}) for name in CROSS if name not in BARE]
    + [(name, {"causal": True}) for name in CROSS if name not in BARE and name in CAUSAL],
    ids=str,
)
def test_cross_attention_has_no_order(name, options):
    x = torch.zeros(2, 11, DIM)
    with refused("cross-attention has no order between x and context: causal and rotary must be False"):
        build(name, dtype=torch.float32, **options)(x, x)


@pytest.mark.parametrize("name", [name for name in CROSS if name.startswith("luna")])
def test_cross_attention_has_no_order_without_rotary_positions_either(name):
    x = torch.zeros(2, 11, DIM)
    with refused("cross-attention has no order between x and context: causal must be False"):
        build(name, dtype=torch.float32, causal=True)(x, x)


class Forward(HeadMixer):
    """A mechanism that does less than others."""

    supports = frozenset({"causal"})


class Nothing(HeadMixer):
    """One that defines nothing."""

    supports = MODES


def test_modes_a_mechanism_lacks_are_refused_with_the_list():
    with refused("Forward does not support 'bidirectional', only causal"):
        Forward(DIM)
    mixer, x = Forward(DIM, causal=True), torch.zeros(2, 11, DIM)
    with refused("Forward does not support 'cross', only causal"):
        mixer(x, x)
    with refused("Forward does not support 'decode', only causal"):
        mixer.extend(x)
    with refused("Mixer does not support 'causal', only "):
        Mixer(DIM, width=DIM, causal=True)


def test_a_mechanism_must_define_itself():
    mixer, x = Nothing(DIM, causal=True), torch.zeros(2, 11, DIM)
    for call, method in ((mixer, "attend"), (mixer.extend, "attend_next")):
        with pytest.raises(TypeError, match=rf"^Nothing must define {method}\(\)$"):
            call(x)
    with pytest.raises(TypeError, match=r"^Nothing must define state_bytes\(\)$"):
        mixer.state_bytes(1)

    class Bare(Mixer):
        supports = MODES

    for method in ("mix", "extend"):
        with pytest.raises(TypeError, match=rf"^Bare must define {method}\(\)$"):
            getattr(Bare(DIM, width=DIM, causal=True), method)(x)


def part(cls, dim=DIM, **options):
    return cls(dim, heads=2, **{"output_projection": False, **options})


def test_a_split_needs_parts_that_fit():
    near = part(WindowAttention)
    with refused("both parts need one dim and direction, got dim 32 and 16, causal False and False"):
        HeadSplit(part(TaylorAttention, 32), near)
    with refused("both parts need one dim and direction, got dim 16 and 16, causal True and False"):
        HeadSplit(part(TaylorAttention, causal=True), near)
    with refused("TaylorAttention must be built with output_projection=False"):
        HeadSplit(part(TaylorAttention, output_projection=True), near)
    with refused("WindowAttention must be built with output_projection=False"):
        HeadSplit(part(TaylorAttention), part(WindowAttention, output_projection=True))
    with pytest.raises(ValueError, match="NoMixer"):
        HeadSplit(NoMixer(DIM), near)


def test_a_split_supports_what_both_parts_do():
    causal = {"causal": True}
    assert HeadSplit(part(TaylorAttention), part(WindowAttention)).supports == MODES - {"cross"}
    mixer = HeadSplit(part(Forward, **causal), part(WindowAttention, **causal))
    assert mixer.supports == {"causal"}
    with pytest.raises(ValueError, match="does not support 'decode'"):
        mixer.extend(torch.zeros(1, 2, DIM))

"""Every refusal of the ops: a ValueError that names what was given and what is allowed, before any work."""

import re

import numpy as np
import pytest
import torch
from cases import qkv

from tsla.ops import KernelState, linear_attention, rotary, taylor_attention, taylor_crossover, window_attention

OPS = {
    "taylor": taylor_attention,
    "features": linear_attention,
    "window": lambda q, k, v, **x: window_attention(q, k, v, window=2, **x),
}
KERNELS = {name: op for name, op in OPS.items() if name != "window"}


def refused(message):
    """The whole message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


FOUR = "{} must have 4 dimensions (batch, heads, length, width), got shape {}"
SHAPES = [
    (zeros(3), zeros(2, 2, 9, 3), zeros(2, 2, 9, 5), FOUR.format("q", "(3,)")),
    (zeros(), zeros(2, 2, 9, 3), zeros(2, 2, 9, 5), FOUR.format("q", "()")),
    (zeros(2, 9, 3), zeros(2, 2, 9, 3), zeros(2, 2, 9, 5), FOUR.format("q", "(2, 9, 3)")),
    (zeros(2, 4, 9, 3), zeros(2, 9, 3), zeros(2, 2, 9, 5), FOUR.format("k", "(2, 9, 3)")),
    (zeros(2, 4, 9, 3), zeros(2, 2, 9, 3), zeros(1, 2, 2, 9, 5), FOUR.format("v", "(1, 2, 2, 9, 5)")),
    (zeros(2, 4, 9, 3), zeros(1, 2, 9, 3), zeros(2, 2, 9, 5), "q, k and v must have one batch size, got 2, 1 and 2"),
    (zeros(2, 4, 9, 3), zeros(2, 2, 9, 3), zeros(3, 2, 9, 5), "q, k and v must have one batch size, got 2, 2 and 3"),
    (zeros(2, 4, 9, 3), zeros(2, 2, 9, 1), zeros(2, 2, 9, 5), "k (1) must be as wide as q (3)"),
    (zeros(2, 4, 9, 0), zeros(2, 2, 9, 0), zeros(2, 2, 9, 5), "q and k must be at least 1 wide, got 0"),
    (
        zeros(2, 4, 9, 3),
        zeros(2, 2, 9, 3),
        zeros(2, 1, 9, 5),
        "v must have the heads and length of k (2, 9), got (1, 9)",
    ),
    (
        zeros(2, 4, 9, 3),
        zeros(2, 2, 9, 3),
        zeros(2, 2, 8, 5),
        "v must have the heads and length of k (2, 9), got (2, 8)",
    ),
    (zeros(2, 4, 9, 3), zeros(2, 3, 9, 3), zeros(2, 3, 9, 5), "key/value heads (3) must divide query heads (4)"),
    (zeros(2, 2, 9, 3), zeros(2, 4, 9, 3), zeros(2, 4, 9, 5), "key/value heads (4) must divide query heads (2)"),
    (zeros(2, 4, 9, 3), zeros(2, 0, 9, 3), zeros(2, 0, 9, 5), "key/value heads (0) must divide query heads (4)"),
]


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.parametrize(("q", "k", "v", "message"), SHAPES, ids=[case[3] for case in SHAPES])
def test_shapes(op, q, k, v, message):
    with refused(message):
        op(q, k, v)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_types(op, dtype, name):
    x = qkv()
    x[name] = x[name].to(dtype)
    with refused(f"{name} must be a floating-point tensor, got {dtype}"):
        op(*x.values())


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(2, 8, dtype=torch.bool), "torch.bool of shape (2, 8)"),
        (torch.ones(9, dtype=torch.bool), "torch.bool of shape (9,)"),
        (torch.ones(1, 9, dtype=torch.bool), "torch.bool of shape (1, 9)"),
        (torch.ones(2, 1, 9, dtype=torch.bool), "torch.bool of shape (2, 1, 9)"),
        (torch.ones(2, 9), "torch.float32 of shape (2, 9)"),
        (torch.ones(2, 9, dtype=torch.int64), "torch.int64 of shape (2, 9)"),
        (np.ones((2, 9), dtype=bool), "bool of shape (2, 9)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_masks(op, mask, got):
    with refused(f"key_mask must be torch.bool of shape (2, 9), True = real token; got {got}"):
        op(*qkv().values(), key_mask=mask)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.parametrize(("n", "m"), [(9, 8), (8, 9), (0, 1)])
def test_causal_lengths(op, n, m):
    with refused(f"causal attention needs as many keys ({m}) as queries ({n})"):
        op(*qkv(n=n, m=m).values(), causal=True)


@pytest.mark.parametrize("op", KERNELS.values(), ids=KERNELS.keys())
def test_kernel_options(op):
    x = list(qkv().values())
    forms = "auto, direct, linear" + ", native, triton" * (op is KERNELS["taylor"])
    with refused(f"impl ('fast') must be one of {forms}"):
        op(*x, impl="fast")
    for chunk in (0, -1):
        with refused(f"chunk_size ({chunk}) must be at least 1"):
            op(*x, chunk_size=chunk)


@pytest.mark.parametrize("op", KERNELS.values(), ids=KERNELS.keys())
@pytest.mark.parametrize(
    "shape", [(), (2,), (1,), (2, 4), (4, 9), (1, 4, 9), (2, 2, 9), (2, 4, 8), (2, 4, 9, 1)], ids=str
)
def test_decay_shapes(op, shape):
    with refused(f"log_decay must have shape (4,) or (2, 4, 9), got {shape}"):
        op(*qkv().values(), causal=True, log_decay=zeros(*shape))


@pytest.mark.parametrize("op", KERNELS.values(), ids=KERNELS.keys())
def test_decay_needs_a_common_length_and_has_no_state_in_both_directions(op):
    x = list(qkv().values())
    with refused("log_decay needs as many keys (7) as queries (9)"):
        op(*qkv(m=7).values(), log_decay=zeros(4))
    message = "bidirectional attention with log_decay has no state: a later key would change it"
    with refused(message):
        op(*x, log_decay=zeros(4), return_state=True)
    with refused(message):
        op(*x, log_decay=zeros(4), state=op(*x, causal=True, log_decay=zeros(4)).state)


def test_states():
    x = list(qkv().values())
    state, with_decay = taylor_attention(*x, causal=True).state, taylor_attention(*x, causal=True, log_decay=zeros(4))
    others = {
        "kv must have shape (2, 2, 10, 5), got (2, 2, 10, 4)": state._replace(kv=state.kv[..., :4]),
        "kv must have shape (2, 2, 10, 5), got (1, 2, 10, 5)": KernelState(*(part[:1] for part in state)),
        "kv must have shape (2, 2, 10, 5), got (2, 4, 10, 5)": with_decay.state,
        "kv must have shape (2, 2, 10, 5), got (2, 2, 35, 5)": taylor_attention(*x, causal=True, order=4).state,
        "z must have shape (2, 2, 10), got (2, 2, 9)": state._replace(z=state.z[..., 1:]),
        "length must have shape (2,), got ()": state._replace(length=torch.tensor(3)),
    }  # fmt: skip
    for message, other in others.items():
        with refused(f"state.{message}"):
            taylor_attention(*x, causal=True, state=other)
    with refused("state.kv must have shape (2, 4, 10, 5), got (2, 2, 10, 5)"):
        taylor_attention(*x, causal=True, state=state, log_decay=zeros(4))
    with refused("state.kv must have shape (2, 2, 3, 5), got (2, 2, 10, 5)"):
        linear_attention(*x, causal=True, state=state)


@pytest.mark.parametrize("floor", [-1e-3, float("inf"), float("nan")])
def test_floors(floor):
    with refused(f"floor ({floor}) must be finite and at least 0"):
        linear_attention(*qkv().values(), floor=floor)
    with refused("floor (0.1) needs normalize=True: there is no denominator"):
        linear_attention(*qkv().values(), floor=0.1, normalize=False)


@pytest.mark.parametrize("order", [1, 3, -1, -2])
def test_orders(order):
    message = f"order ({order}) must be even and not negative: an odd one gives negative attention weights"
    with refused(message):
        taylor_attention(*qkv().values(), order=order)
    with refused(message):
        taylor_crossover(16, order=order)


def test_windows():
    with refused("window (-1) must not be negative"):
        window_attention(*qkv().values(), window=-1)
    with refused("window attention needs as many keys (8) as queries (9)"):
        window_attention(*qkv(m=8).values(), window=1)


def test_crossovers():
    with refused("d (0) must be at least 1"):
        taylor_crossover(0)
    with refused("resource ('time') must be one of flops, memory"):
        taylor_crossover(16, resource="time")


def test_rotary_positions():
    x = torch.zeros(2, 4, 9, 6)
    for shape in ((8,), (), (2, 8), (1, 9), (3, 9), (9, 2), (2, 1, 9)):
        with refused(f"positions must have shape (9,) or (2, 9), got {shape}"):
            rotary(x, torch.zeros(shape))
    with refused("rotary positions need an even head dim, got 5"):
        rotary(x[..., :5], torch.zeros(9))

"""Where the linear form starts to pay: the published table, and operations counted on the forms themselves."""

import inspect

import pytest
import torch
from cases import qkv
from torch.utils.flop_counter import FlopCounterMode

import tsla.ops.attention
from tsla.bench.memory import peak_bytes
from tsla.ops import linear_attention, taylor_attention, taylor_crossover, taylor_feature_dim

# d, N0, N1 (TaylorShift, arXiv 2403.02920, sections 3.4 and 3.5), and both with each product counted once
TABLE = [
    (4, 20.73, 15.14, 14.7, 11.6),
    (8, 72.74, 46.67, 44.7, 31.6),
    (16, 272.74, 158.25, 152.7, 96.5),
    (24, 600.75, 334.05, 324.7, 193.8),
    (32, 1056.75, 573.94, 560.7, 323.4),
    (64, 4160.75, 2173.74, 2144.7, 1162.6),
    (128, 16512.75, 8445.63, 8384.7, 4378.1),
]


@pytest.mark.parametrize(("d", "flops", "memory", "packed_flops", "packed_memory"), TABLE)
def test_table(d, flops, memory, packed_flops, packed_memory):
    assert taylor_crossover(d, packed=False) == pytest.approx(flops, abs=0.005)
    assert taylor_crossover(d, packed=False, resource="memory") == pytest.approx(memory, abs=0.005)
    assert taylor_crossover(d) == pytest.approx(packed_flops, abs=0.05)
    assert taylor_crossover(d, resource="memory") == pytest.approx(packed_memory, abs=0.05)


@pytest.mark.parametrize("d", [1, 4, 16, 64])
def test_closed_forms(d):
    n0 = (4 * d**3 + 10 * d**2 + 9 * d + 4) / (4 * d + 6)
    n1 = (d**2 + 2 * d + 1 + (d**4 + 12 * d**3 + 14 * d**2 + 4 * d + 1) ** 0.5) / 4
    assert taylor_crossover(d, packed=False) == pytest.approx(n0)
    assert taylor_crossover(d, packed=False, resource="memory") == pytest.approx(n1)
    assert taylor_crossover(d, packed=False) <= d**2 + d + 0.75
    no_products = (4 * d * (d + 1) + 4 * (d + 1) + d) / (4 * d + 6)
    assert taylor_crossover(d, order=0) == pytest.approx(no_products)
    assert taylor_crossover(d, order=0, resource="memory") == pytest.approx(d + 0.5)


def products(n, d, form, e=None):
    """Multiplications and additions in the matrix products of a forward pass."""
    x = qkv(b=1, h=1, g=1, n=n, d=d, e=e or d, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        taylor_attention(**x, impl=form)
    return counter.get_total_flops()


@pytest.mark.parametrize("d", [4, 8, 16])
def test_counts_are_those_of_the_forms(d):
    """What the formula counts and the counter does not are the elementwise operations."""
    n, squares = 96, d * (d + 1) // 2
    assert products(n, d, "direct") == 4 * n * n * d + 2 * n * n  # q.k, and values with their column of ones
    linear = 2 * squares + 4 * squares * (d + 1) + 4 * d * (d + 1) + 4 * (d + 1) + d
    assert products(n, d, "linear") == n * (linear - 2 * squares - d) == 4 * n * taylor_feature_dim(d) * (d + 1)
    assert taylor_crossover(d) == pytest.approx(linear / (4 * d + 6))


@pytest.mark.parametrize(("d", "e"), [(4, 4), (8, 5), (8, 32)])
def test_counts_with_values_of_another_width(d, e):
    n, squares = 96, d * (d + 1) // 2
    assert products(n, d, "direct", e) == 2 * n * n * (d + e) + 2 * n * n
    linear = 2 * squares + 4 * squares * (e + 1) + 4 * d * (e + 1) + 4 * (e + 1) + e
    assert products(n, d, "linear", e) == n * (linear - 2 * squares - e)
    assert taylor_crossover(d, value_dim=e) == pytest.approx(linear / (2 * (d + e) + 6))
    assert taylor_crossover(d, value_dim=d) == taylor_crossover(d)


def entries(n, d, form, chunk):
    """Numbers alive at once in a forward pass."""
    x = qkv(b=1, h=1, g=1, n=n, d=d, e=d, dtype=torch.float32)
    with torch.no_grad():
        return peak_bytes(lambda: taylor_attention(**x, impl=form, chunk_size=chunk)) / 4


@pytest.mark.parametrize("d", [8, 16, 24])
def test_memory_is_that_of_the_forms(d):
    """With one chunk, as the paper counts: the direct form grows with n^2, the linear form with n, and they meet
    within a factor of two of N1, packed. In chunks the linear form needs far less, and N1 is an upper bound."""
    short, long = 512, 1024
    assert 3.4 < entries(long, d, "direct", None) / entries(short, d, "direct", None) < 4
    one, two, four = (entries(n, d, "linear", n) for n in (256, 512, 1024))
    assert (four - two) == pytest.approx(2 * (two - one), rel=0.05)
    n1 = taylor_crossover(d, resource="memory")
    lengths = range(8, 2 * round(n1) + 8, 4)
    met = next(n for n in lengths if entries(n, d, "direct", None) > entries(n, d, "linear", n))
    assert n1 / 2 < met < 2 * n1
    in_chunks = next(n for n in lengths if entries(n, d, "direct", None) > entries(n, d, "linear", 16))
    assert in_chunks <= min(met, n1 + 4)  # 4: between the lengths tried


FORM = list(inspect.signature(tsla.ops.attention._sums).parameters).index("form")


def chosen(monkeypatch, op, *args, **options):
    """The form that "auto" takes."""
    forms = []
    inner = tsla.ops.attention._sums
    monkeypatch.setattr(tsla.ops.attention, "_sums", lambda *a: forms.append(a[FORM]) or inner(*a))
    op(*args, **options)
    return forms.pop()


@pytest.mark.parametrize(
    ("n", "m", "options", "form"),
    [
        (44, 44, {}, "direct"),  # the crossover of d = 8 is 44.7
        (45, 45, {}, "linear"),
        (300, 24, {}, "direct"),  # 2 n m / (n + m): operations 44.4
        (300, 25, {}, "linear"),
        (1, 10_000, {}, "direct"),
        (0, 0, {}, "direct"),
        (44, 44, {"causal": True, "return_state": False}, "direct"),
        (44, 44, {"causal": True}, "linear"),  # the state is made of features, whatever the form
        (44, 44, {"return_state": True}, "linear"),
        (80, 80, {"order": 4}, "direct"),
        (44, 44, {"order": 0}, "linear"),
        (500, 500, {"impl": "direct"}, "direct"),
        (2, 2, {"impl": "linear"}, "linear"),
    ],
)
def test_choice_of_taylor_attention(monkeypatch, n, m, options, form):
    assert chosen(monkeypatch, taylor_attention, *qkv(n=n, m=m, d=8).values(), **options) == form


@pytest.mark.parametrize(
    ("n", "m", "options", "form"),
    [
        (39, 39, {}, "direct"),  # 2 f e / (f + e), 7.5 here, and what was measured beside it: 32, or 128 where it scans
        (40, 40, {}, "linear"),
        (1000, 20, {}, "direct"),  # 2 n m / (n + m) = 39.2
        (1000, 21, {}, "linear"),
        (40, 40, {"impl": "direct"}, "direct"),
        (5, 5, {"causal": True}, "linear"),
        (135, 135, {"causal": True, "return_state": False}, "direct"),
        (136, 136, {"causal": True, "return_state": False}, "linear"),
        (135, 135, {"log_decay": torch.zeros(4)}, "direct"),
        (136, 136, {"log_decay": torch.zeros(4)}, "linear"),
    ],
)
def test_choice_of_linear_attention(monkeypatch, n, m, options, form):
    assert chosen(monkeypatch, linear_attention, *qkv(n=n, m=m, d=15, e=5).values(), **options) == form


def test_a_given_state_is_read_by_features(monkeypatch):
    x = list(qkv(n=3, d=8).values())
    state = taylor_attention(*x, return_state=True).state
    assert chosen(monkeypatch, taylor_attention, *x, state=state) == "linear"

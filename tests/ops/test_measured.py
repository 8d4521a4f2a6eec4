"""The table of measured crossovers: what `auto` makes of it, and of files that are not one."""

import json
import os
import warnings
from functools import partial

import pytest
import torch
from cases import qkv

from ops.test_crossover import chosen
from tsla.mixers import TaylorAttention, TaylorShiftAttention
from tsla.ops import measured, taylor_attention, taylor_crossover
from tsla.ops.measured import Machine, Measured, Table, auto_crossover, merged, parse, read_tables, render, table_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path))
    measured.forget()
    yield
    measured.forget()


def entry(d=8, e=8, length=300.0, causal=False, backward=False):
    return Measured(d, e, 8, causal, backward, int(length) - 10, int(length) + 10, length)


def write(*entries, **machine):
    here = measured.this_machine()._replace(**machine)
    table_file().write_text(render({here: Table("2026-11-22", entries)}))
    measured.forget()


def auto(d=8, e=8, order=2, causal=False, backward=False, device="cpu"):
    return auto_crossover(d, e, order=order, causal=causal, backward=backward, device=device)


def test_where_the_table_lies(monkeypatch, tmp_path):
    assert table_file() == tmp_path / "crossover.json"
    monkeypatch.delenv("TSLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(table_file()) == "/x/tsla/crossover.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(table_file()) == "/home/me/.cache/tsla/crossover.json"


def test_without_a_table_it_is_counted():
    assert auto() == taylor_crossover(8) and auto(order=4) == taylor_crossover(8, order=4)


def test_a_measured_shape():
    write(entry(), entry(causal=True, length=400.0), entry(backward=True, length=500.0))
    assert auto() == pytest.approx(300) and auto(causal=True) == pytest.approx(400)
    assert auto(backward=True) == pytest.approx(500) and auto(device="meta") == pytest.approx(300)
    assert auto(causal=True, backward=True) == taylor_crossover(8)  # of which the table has nothing
    assert auto(order=4) == taylor_crossover(8, order=4) and auto(device="cuda") == taylor_crossover(8)


@pytest.mark.parametrize("other", [{"torch": "1.0"}, {"threads": 77}, {"processor": "another"}, {"native": True}])
def test_another_machine_is_not_this_one(other):
    write(entry(), **other)
    assert auto() == taylor_crossover(8)


def test_compiled_kernels_have_their_own_numbers():
    """Without a table they go by operations with the true width of values."""
    kernels = partial(auto_crossover, order=2, causal=False, backward=False, device="cpu", native=True)
    assert kernels(8, 8) == taylor_crossover(8)
    assert kernels(8, 32) == taylor_crossover(8, value_dim=32) != taylor_crossover(8)
    assert kernels(8, 32, causal=True) == 2 * kernels(8, 32)  # half of the pairs are left out
    write(entry())
    assert kernels(8, 8) == taylor_crossover(8)
    write(entry(length=70.0), native=True)
    assert kernels(8, 8) == pytest.approx(70) and auto() == taylor_crossover(8)


def test_threads_are_those_of_the_moment():
    write(entry())
    assert auto() == pytest.approx(300)
    torch.set_num_threads(2)
    assert auto() == taylor_crossover(8)


def test_between_and_beyond_the_measured_widths():
    """What is interpolated is the ratio to the counted length, in log d and log e; beyond, the edge's holds."""
    ratios = {(8, 16): 2.0, (8, 64): 8.0, (32, 16): 6.0, (32, 64): 6.0}
    write(*(entry(d, e, ratio * taylor_crossover(d)) for (d, e), ratio in ratios.items()))
    for (d, e), ratio in ratios.items():
        assert auto(d, e) == pytest.approx(ratio * taylor_crossover(d))
    assert auto(8, 32) == pytest.approx(4 * taylor_crossover(8))  # half way from 2 to 8
    assert auto(16, 16) == pytest.approx(12**0.5 * taylor_crossover(16))
    assert auto(2, 1) == pytest.approx(2 * taylor_crossover(2))
    assert auto(128, 999) == pytest.approx(6 * taylor_crossover(128))
    x = torch.zeros(1, 1, 3, 8)
    assert taylor_attention(x, x, x[..., :0]).output.shape == (1, 1, 3, 0)  # values without width


def test_never_and_always():
    never = Measured(8, 8, 8, False, False, 4096, None, None)
    always = Measured(8, 8, 8, False, True, 0, 16, None)
    assert never.threshold == 4096 and always.threshold == 16
    assert never._replace(direct=20).threshold == taylor_crossover(8)  # too short a range to say more than counting
    write(never, always)
    assert auto() == pytest.approx(4096) and auto(backward=True) == pytest.approx(16)


def test_auto_goes_by_the_table_and_by_what_it_is_given(monkeypatch):
    write(entry(length=100.0), entry(length=60.0, backward=True), entry(length=20.0, causal=True))
    form = lambda n, m=None, grad=False, **options: chosen(  # noqa: E731
        monkeypatch, taylor_attention,
        *(x.requires_grad_(grad) for x in qkv(n=n, m=m, d=8, e=8).values()), return_state=False, **options,
    )  # fmt: skip
    assert [form(99), form(101)] == ["direct", "linear"]
    assert [form(59, grad=True), form(61, grad=True)] == ["direct", "linear"]
    with torch.no_grad():
        assert form(61, grad=True) == "direct"
    assert [form(20, causal=True), form(21, causal=True)] == ["direct", "linear"]
    assert [form(50, crossover=50), form(50, crossover=49.9)] == ["direct", "linear"]
    assert [form(300, 24, crossover=44.5), form(300, 25, crossover=44.5)] == ["direct", "linear"]  # 2 n m / (n + m)
    assert [form(2, crossover=0), form(500, crossover=float("inf"))] == ["linear", "direct"]


@pytest.mark.parametrize("layer", [TaylorAttention, TaylorShiftAttention])
def test_mixers_hand_their_crossover_on(monkeypatch, layer):
    for crossover, form in ((9, "direct"), (7, "linear")):
        made = layer(16, heads=2, head_dim=8, crossover=crossover).double()
        assert chosen(monkeypatch, made, torch.randn(1, 8, 16, dtype=torch.float64)) == form
    with pytest.raises(ValueError, match=r"^crossover \(9\) needs impl='auto' or 'native', got 'linear'$"):
        layer(16, heads=2, crossover=9, impl="linear")


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("-inf")])
def test_a_crossover_that_is_no_length(wrong):
    with pytest.raises(ValueError, match=r"^crossover \(.*\) must be a length of at least 0, or None$"):
        taylor_attention(*qkv().values(), crossover=wrong)


# The file -------------------------------------------------------------------------------------------------------------

A, B = Machine("2.13.0", 1, "x", False), Machine("2.13.0", 2, "x", True)


def test_tables_come_back_and_are_merged():
    first = merged({}, A, Table("2026-01-01", (entry(), entry(e=16), entry(causal=True))))
    assert parse(json.loads(render(first))) == first
    newer = merged(first, A, Table("2026-02-02", (entry(length=77.0), entry(d=64))))
    assert newer[A].date == "2026-02-02" and len(newer[A].entries) == 4 and entry(length=77.0) in newer[A].entries
    both = merged(newer, B, Table("2026-03-03", (entry(),)))
    assert both[A] == newer[A] and list(both) == [A, B]


def changed(**values):
    data = json.loads(render({A: Table("2026-01-01", (entry(),))}))
    data["tables"][0]["measured"][0] |= values
    return json.dumps(data)


HOSTILE = {
    "empty": b"", "cut": render({A: Table("x", (entry(),))})[:-20].encode(), "binary": b"\xff\xfe\x00" * 9,
    "deep": b"[" * 100_000, "list": b"[]", "null": b"null", "other": b'{"format": 2}', "large": b" " * (2**20 + 1),
    "format": b'{"format": 1, "tables": []}', "true": b'{"format": true, "tables": []}',
    "tables": b'{"format": 2, "tables": {}}', "table": b'{"format": 2, "tables": [1]}',
    "digits": b'{"format": ' + b"9" * 5000 + b', "tables": []}',
    **{
        f"{key} {value}": changed(**{key: value}).encode()
        for key, value in [
            ("d", 0), ("d", True), ("d", 8.0), ("d", "8"), ("d", 10**30), ("e", None), ("heads", -1), ("causal", 1),
            ("backward", "true"), ("direct", -1), ("linear", 5), ("linear", None), ("length", None), ("length", 1e9),
            ("length", float("nan")), ("length", 10**400), ("length", float("inf")), ("length", True),
            ("length", "9"), ("more", 1),
        ]
    },
    "nothing": changed(direct=0, linear=None, length=None).encode(),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_no_table_is_ignored_with_one_warning(content):
    table_file().write_bytes(content)
    with pytest.raises(ValueError):
        read_tables(table_file())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [taylor_attention(*qkv(d=8).values()).output for _ in range(3)]
        assert auto() == taylor_crossover(8) and auto(32, 4) == taylor_crossover(32)
    assert outputs[0].isfinite().all()
    (warning,) = caught
    assert str(table_file()) in str(warning.message) and "tsla bench crossover" in str(warning.message)


def test_a_pipe_or_a_folder_is_not_waited_for():
    os.mkfifo(table_file())
    with pytest.warns(UserWarning, match="not a file"):
        assert auto() == taylor_crossover(8)
    table_file().unlink()
    table_file().mkdir()
    measured.forget()
    with pytest.warns(UserWarning, match="not a file"):
        assert auto() == taylor_crossover(8)


def test_a_cache_that_is_a_file_is_no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path / "file"))
    assert auto() == taylor_crossover(8)


def test_the_file_is_read_once(monkeypatch):
    write(entry())
    reads = []
    monkeypatch.setattr(measured, "read_tables", lambda path: reads.append(path) or {})
    for n in range(5):
        auto(d=8 + n)
        taylor_attention(*qkv(d=8 + n).values())
    assert len(reads) == 1

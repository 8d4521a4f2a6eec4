"""Which tensors go to the Triton kernels, and what is told where they cannot; no kernel runs here."""

import pytest
import torch
from cases import qkv
from torch._subclasses.fake_tensor import FakeTensorMode

from tsla.kernels.triton import layout
from tsla.ops import compiled, gpu, taylor_attention, taylor_feature_map
from tsla.ops.attention import _compiled_form
from tsla.ops.kernel import taylor_polynomial

triton = pytest.mark.skipif(not gpu.ready(), reason="Triton is not installed")


def test_without_triton_it_says_so_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(gpu, "ready", lambda: False)
    inputs = qkv(n=5, dtype=torch.float32)
    with pytest.raises(
        ModuleNotFoundError, match=r"impl='triton' needs the package triton: pip install 'tsla\[triton\]'"
    ):
        taylor_attention(**inputs, impl="triton")
    with FakeTensorMode():
        q, k, v = (torch.empty(x.shape, device="cuda") for x in inputs.values())
        assert _compiled_form("auto", q, k, v, 2, None, (), None) == ""


def test_on_the_cpu_it_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert gpu.devices() == ("cuda",)
    with pytest.raises(ValueError, match=r"impl='triton' cannot do this: device \(cpu\) must be cuda$"):
        taylor_attention(**qkv(n=5, dtype=torch.float32), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.devices() == ("cuda", "cpu")


@pytest.mark.parametrize("impl", ["auto", "native", "direct"])
def test_interpreted_or_not_nothing_else_takes_it(impl, monkeypatch):
    """With TRITON_INTERPRET=1, as all tests run, CPU tensors go where they always go."""
    monkeypatch.setattr(gpu, "why_not", lambda *_: pytest.fail("Triton was thought of"))
    if impl == "native":
        pytest.importorskip("tsla.kernels.cpu.call")
    taylor_attention(**qkv(n=5, dtype=torch.float32), impl="linear" if impl == "native" else impl)


@triton
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_cuda_tensors_take_it(causal, impl):
    """Fake ones do, through the operator, whose shapes, types and devices are those of the real thing."""
    seen: list[str] = []
    with FakeTensorMode():
        q, k, v = (torch.empty(2, g, 50, 16, device="cuda", dtype=torch.bfloat16) for g in (4, 2, 2))
        with Operators(seen), torch.no_grad():
            out = taylor_attention(q, k, v, causal=causal, impl=impl)
    assert out.output.shape == q.shape and out.output.device.type == "cuda" and out.output.dtype == torch.bfloat16
    assert out.state is None or (out.state.kv.shape == (2, 2, 153, 16) and out.state.kv.dtype == torch.float32)
    assert seen == ["tsla::taylor"]


@pytest.mark.parametrize(("version", "capability", "message"), [
    ("6.4", (9, 0), "torch for ROCm (6.4) must be torch for CUDA"),
    (None, (7, 5), "compute capability (7, 5) must be at least (8, 0)"),
    (None, (8, 0), ""),
])  # fmt: skip
def test_cards_it_is_not_for(version, capability, message, monkeypatch):
    gpu.unfit.cache_clear()
    monkeypatch.setattr(torch.version, "hip", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    with FakeTensorMode():
        q = torch.empty(1, 1, 4, 16, device="cuda")
        assert gpu.why_not(q, q, q, 2, None, ()) == message
    gpu.unfit.cache_clear()


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes which of our operators run."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tsla":
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@triton
@pytest.mark.parametrize("head_dim", [1, 5, 16, 17, 32, 40, 64])
def test_states_in_tiles_are_those_in_packed_features(head_dim):
    """There and back is the same; and tiles read by plain products give what packed features give."""
    d, e = head_dim, 3
    packed = torch.randn(2, 2, (d + 1) * (d + 2) // 2, e, dtype=torch.float64)
    tiles = layout.from_packed(packed, d)
    assert tiles.shape == (4, layout.rows_of(d), e)
    torch.testing.assert_close(layout.to_packed(tiles, torch.empty_like(packed), d), packed)
    q = torch.randn(1, d, dtype=torch.float64)
    exact = taylor_feature_map(q) @ packed[1, 0]
    x = torch.nn.functional.pad(q[0], (0, layout.tiles_of(d) * 16 - d))
    found, row = torch.zeros(e, dtype=torch.float64), 0
    for left in range(layout.tiles_of(d)):
        for right in range(left, layout.tiles_of(d)):
            products = x[left * 16 : left * 16 + 16, None] * x[right * 16 : right * 16 + 16]
            found += products.flatten() @ tiles[2, row : row + 256] * (0.5 if left == right else 1.0)
            row += 256
    found += x @ tiles[2, row : row + len(x)] + tiles[2, -1]
    torch.testing.assert_close(found[None], exact)


@triton
def test_short_sequences_are_no_other_form(monkeypatch):
    """A run's frozen crossover, which is of the CPU's kernels, must not leave the backward pass without its state."""
    asked = {}

    def taylor(q, k, v, **options):
        asked.update(options)
        return v, v, v, v

    monkeypatch.setattr("tsla.kernels.taylor.taylor", taylor)
    q, k, v = qkv(n=5, dtype=torch.float32).values()
    options = {"scale": 1.0, "causal": False, "key_mask": None, "gates": None, "centered": False, "state": None}
    for form, direct in (("triton", False), ("native", True)):
        compiled.attend(
            q.requires_grad_(), k, v, taylor_polynomial(2), **options, keep_state=False, normalize=True, short=True,
            form=form,
        )  # fmt: skip
        assert asked["direct"] is direct and asked["keep_state"] is not direct

"""On a GPU, and only there: every mixer as on the CPU, compiled kernels at real sizes, a training and its resumption.

`pytest -m cuda` runs this, tests/ops/test_triton_form.py compiled, and the bench's own.
"""

import copy
from functools import partial

import pytest
import torch
import train_runs as runs
from cases import error, flat, qkv, results, some_mask
from mechanisms import EVERY_WAY, LOSSES, build

from tsla import TaylorAttention
from tsla.ops import taylor_attention

pytestmark = pytest.mark.cuda

DTYPES = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 2e-5}  # and errors of plain sums in them


@pytest.mark.parametrize(("name", "kind", "causal"), EVERY_WAY, ids=lambda x: str(x).replace(" ", "-"))
def test_every_mixer_gives_what_it_gives_on_the_cpu(name, kind, causal):
    mixer = build(name, kind, causal=causal, dtype=torch.float32)
    x, mask = torch.randn(2, 70, 16), some_mask(2, 70)
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        here = copy.deepcopy(mixer).to(device)
        at = x.to(device, copy=True).requires_grad_()
        out = here(at, mask=mask.to(device))
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
        outputs.append(out.detach().cpu())
        loss = (out * weights).sum() + 0 * at.sum()  # no input has a part in what the mixer `none` gives
        gradients.append(torch.autograd.grad(loss, at)[0].cpu())
    keep = mask if name in LOSSES else torch.ones_like(mask)
    for here, there in (outputs, gradients):
        torch.testing.assert_close(there[keep], here[keep], rtol=2e-3, atol=2e-4 * here.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("shape", [(16, 64), (16, 16), (24, 40), (32, 128), (64, 64)], ids=str)
def test_kernels_at_the_sizes_that_they_are_for(shape, causal, dtype):
    """Some 1,100 tokens, the chunks as shipped, against the formula in float64."""
    d, e = shape
    with torch.device("cuda"):
        inputs = qkv(b=2, h=4, g=2, n=1111, d=d, e=e, dtype=getattr(torch, dtype))
        mask = some_mask(2, 1111)
    run = partial(taylor_attention, causal=causal, key_mask=mask, return_state=False)
    found = results(partial(run, impl="triton"), inputs)
    exact = results(partial(run, impl="direct"), {name: x.double() for name, x in inputs.items()})
    for place in (0, 1):
        for name, x in found[place].items():
            assert error(x, exact[place][name]) < DTYPES[dtype], (place, name)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_results_are_the_same_in_every_run(causal):
    with torch.device("cuda"):
        inputs = qkv(b=3, h=8, g=4, n=5000, d=16, e=64, dtype=torch.bfloat16)
        inputs["log_decay"] = -torch.rand(8) / 50
    run = partial(taylor_attention, causal=causal, impl="triton", return_state=False)
    inputs = inputs if causal else {name: x for name, x in inputs.items() if name != "log_decay"}
    first, again = results(run, inputs), results(run, inputs)
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_auto_takes_the_kernels(monkeypatch):
    from tsla.kernels.triton import passes

    called = []
    right = passes._read
    monkeypatch.setattr(passes, "_read", lambda *args: called.append(1) or right(*args))
    layer = TaylorAttention(64, heads=4).cuda()
    layer(torch.randn(1, 300, 64, device="cuda"))
    assert called


def test_decoding_goes_on_from_a_prompt():
    layer = TaylorAttention(64, heads=4, kv_heads=2, causal=True).cuda().eval()
    x = torch.randn(3, 700, 64, device="cuda")
    whole = layer(x)
    out, state = layer.extend(x[:, :690])
    steps = [out]
    for t in range(690, 700):
        out, state = layer.extend(x[:, t : t + 1], state)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)


def test_compiled_whole_and_captured(monkeypatch):
    """torch.compile keeps one graph around the operator; a CUDA graph of a call replays it on other numbers."""
    monkeypatch.undo()  # the compiler makes memory by torch.empty as well
    layer = TaylorAttention(64, heads=4, causal=True).cuda()
    x = torch.randn(2, 600, 64, device="cuda")
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-4)


def test_autocast_keeps_states_in_float32():
    layer = TaylorAttention(64, heads=4, causal=True).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        out, state = layer.extend(torch.randn(1, 100, 64, device="cuda"))
    assert out.dtype == torch.bfloat16
    assert {x.dtype for x in flat(tuple(state)) if x.is_floating_point() and x.dim() > 2} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mixer", ["taylor", "softmax"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, mixer, precision):
    kind = (*runs.DIGITS[:-4], "trainer.max_steps=20", "model.dim=32", "model.depth=1", *runs.HEADS, f"mixer={mixer}",
            "optim.warmup_steps=2", "trainer.accelerator=cuda", f"trainer.precision={precision}")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert runs.train(*kind, f"run_dir={whole}") == 0
    assert runs.stopped_at_batch(7, *kind, f"run_dir={cut}") == 130
    assert runs.train(f"resume={cut}") == 0
    runs.assert_same_run(whole, cut)

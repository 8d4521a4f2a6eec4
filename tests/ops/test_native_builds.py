"""The libraries of C++ as they are built for other processors, and with sanitizers that see every access to memory."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from cases import qkv, results, some_decay, some_mask
from native_cases import CXX, ROOT

from tsla import native
from tsla.kernels.cpu import call, sinc
from tsla.ops import fourier_attention, taylor_attention

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CXX is None, reason="needs a C++ compiler")]


def calls():
    """Many kinds of call, each as inputs and a function of them."""
    for causal in (False, True):
        for h, g, n, d, e in (
            (2, 1, 1, 1, 1),
            (2, 2, 9, 3, 5),
            (3, 1, 130, 16, 17),
            (1, 1, 1000, 5, 33),
            (1, 1, 40, 64, 8),
        ):
            for masked, gated, center in ((0, 0, "zero"), (1, 0, "mean"), (1, 1, "mean")):
                inputs = qkv(b=1, h=h, g=g, n=n, d=d, e=e, dtype=torch.float32)
                inputs |= {"log_decay": some_decay(1, h, n, dtype=torch.float32)} if gated else {}
                options = {"causal": causal, "center": center, "key_mask": some_mask(1, n) if masked else None}
                for crossover in (0, torch.inf):
                    keep = causal and not crossover
                    yield inputs, partial(taylor_attention, **options, crossover=crossover, return_state=keep)


def products():
    """Calls of FourierFormer's attention."""
    for causal in (False, True):
        for n, d in ((1, 1), (9, 3), (70, 16), (600, 5)):
            inputs = {**qkv(b=1, h=2, n=n, d=d, dtype=torch.float32), "radius": torch.rand(d) + 0.2}
            yield inputs, partial(fourier_attention, causal=causal, key_mask=some_mask(1, n))


def decoding():
    """A prompt, then some tokens, then one."""
    inputs, state = qkv(n=40, d=6, e=7, dtype=torch.float32), None
    for part in (slice(0, 20), slice(20, 35), slice(35, 39), slice(39, 40)):
        out = taylor_attention(*(x[:, :, part] for x in inputs.values()), causal=True, impl="native", state=state)
        state = out.state
    return out.output


@pytest.mark.parametrize("level", native.ISAS)
def test_every_instruction_set_computes_the_same(monkeypatch, level):
    try:
        library = native.load("attention", isa=level)
    except ValueError:
        pytest.skip(f"this CPU has no {level}")
    monkeypatch.setattr(call, "_entry_points", {x: getattr(library, x) for x in ("tsla_forward", "tsla_backward")})
    assert library.tsla_vector_width() == {"avx512": 16, "avx2": 8, "portable": 4}[level]
    torch.set_num_threads(2)
    for inputs, run in calls():
        own = results(partial(run, impl="native"), inputs)
        exact = results(partial(run, impl="auto"), {x: y.double() for x, y in inputs.items()})
        for one, two in zip(own, exact, strict=True):
            for name, x in one.items():
                assert (x - two[name]).abs().max() <= 1e-5 * two[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize("level", native.ISAS)
def test_every_instruction_set_computes_the_same_products(monkeypatch, level):
    try:
        library = native.load("sinc", isa=level)
    except ValueError:
        pytest.skip(f"this CPU has no {level}")
    used = []
    monkeypatch.setattr(sinc, "load", lambda name: used.append(name) or library)
    for inputs, run in products():
        exact = results(run, {x: y.double() for x, y in inputs.items()})
        assert not used
        for one, two in zip(results(run, inputs), exact, strict=True):
            for name, x in one.items():
                assert (x - two[name]).abs().max() <= 1e-4 * two[name].abs().max().clamp(min=1), name
        assert set(used) == {"sinc"}
        used.clear()


def test_no_access_is_out_of_bounds(tmp_path):
    runtimes = [
        subprocess.run([CXX, f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the compiler has no sanitizers")
    code = """
import torch
from tsla import native
from tsla.kernels.cpu import call, sinc
library = native.load("attention", sanitize=True)
call._entry_points.update({name: getattr(library, name) for name in ("tsla_forward", "tsla_backward")})
other = native.load("sinc", sanitize=True)
sinc.load = lambda name: other
from test_native_builds import calls, decoding, products
from cases import results
torch.set_num_threads(2)
for inputs, run in calls():
    results(lambda **x: run(**x, impl="native"), inputs)
    run(**{name: x.bfloat16() for name, x in inputs.items()}, impl="native")
decoding()
for inputs, run in products():
    results(run, inputs)
print("clean")
"""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "ops")))
    variables = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0 and process.stdout == "clean\n", process.stderr[-3000:]

"""impl="triton", interpreted on the CPU, against the formula in fp64: no more than twice the error of torch in fp32."""

from functools import partial

import pytest
from native_form_cases import KINDS, call, no_worse

from tsla.ops import gpu, taylor_attention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not gpu.ready() or "cpu" not in gpu.devices(), reason="no interpreter of Triton"),
]

SHAPES = [  # h, g, n, m, d, e
    (2, 2, 1, 1, 16, 16), (4, 2, 33, 33, 8, 40), (3, 1, 64, 64, 12, 64), (2, 2, 97, 97, 20, 8), (4, 4, 65, 65, 5, 3),
    (2, 1, 129, 129, 16, 96), (2, 2, 50, 100, 24, 16), (4, 1, 100, 3, 48, 17), (1, 1, 70, 70, 64, 64),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64 tokens, so that short sequences have several, as many programs as it likes."""
    from tsla.kernels.triton import plan

    monkeypatch.setattr(plan, "CHUNK", 64)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_formula(shape, kind, causal):
    if shape[2] != shape[3] and (causal or "rates" in kind):
        pytest.skip("needs as many keys as queries")
    inputs, options = call(shape, kind, causal)
    no_worse(
        partial(taylor_attention, **options, impl="triton", return_state=causal),
        partial(taylor_attention, **options, impl="linear", return_state=causal),
        partial(taylor_attention, **options, impl="direct", return_state=causal),
        inputs,
    )  # fmt: skip

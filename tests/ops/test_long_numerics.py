"""Low precision over long sequences: features and sums in float32 keep the error at that of rounding the result."""

import oracle
import pytest
import torch
from cases import close, error, qkv, results

from tsla.ops import taylor_attention

LOW = (torch.bfloat16, torch.float16)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
KINDS = {
    "plain": {},
    "centre": {"center": "mean"},
    "decay per head": {},
    "coefficients": {"coefficients": (1.0, 0.5, 0.3)},
}
SHORT = [("direct", 1024), ("linear", 1024), ("linear", 4096)]
LONG = [("direct", 4096), ("linear", 16_384)]


def inputs(n, kind, dtype):
    """Two query heads that read one key head, in the type asked for; the heads forget within 1000 and 100 tokens."""
    x = qkv(b=1, h=2, g=1, n=n, d=16, e=8, dtype=torch.float32)
    if kind == "decay per head":
        x["log_decay"] = torch.tensor([-0.001, -0.01])
    return {name: tensor.to(dtype) for name, tensor in x.items()}


def late(n):
    """Queries of the second half: outputs of early ones are larger, and errors of late ones would not show."""
    return torch.linspace(n // 2, n - 1, 24).long()


def some_rows(q, k, v, log_decay=None, *, places, causal, coefficients=None, center="zero"):
    """Outputs of the queries at `places`, as one would write them, in the type of the inputs."""
    d, group = q.shape[-1], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    distance = places[:, None] - torch.arange(k.shape[2])
    seen = (distance >= 0) | torch.tensor(not causal)
    factor = seen.to(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)
    if log_decay is not None:
        factor = factor * (log_decay[:, None, None] * distance.abs().to(q.dtype)).exp()
    scores = q[:, :, places] @ k.transpose(-1, -2) * d**-0.5
    if center == "mean":
        scores = scores - (scores * factor).sum(-1, keepdim=True) / factor.sum(-1, keepdim=True)
    weights = oracle.polynomial(scores, 2, coefficients) * factor
    return weights @ v / weights.sum(-1, keepdim=True)


@CAUSAL
@pytest.mark.parametrize("kind", KINDS)
def test_some_rows_of_the_formula(kind, causal):
    x, places = inputs(40, kind, torch.float64), torch.tensor([0, 7, 20, 39])
    got = results(lambda **y: some_rows(**y, places=places, causal=causal, **KINDS[kind]), x)
    expected = results(lambda **y: oracle.dense(**y, causal=causal, **KINDS[kind])[0][:, :, places], x)
    for ours, theirs in zip(got, expected, strict=True):
        close(ours, theirs, 1e-12)


@CAUSAL
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "n"), [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)])
def test_error_is_at_most_twice_that_of_a_plain_implementation(form, n, kind, dtype, causal):
    x, places, options = inputs(n, kind, dtype), late(n), KINDS[kind] | {"causal": causal}
    doubles = {name: tensor.double() for name, tensor in x.items()}
    truth = results(lambda **y: some_rows(**y, places=places, **options), doubles)
    reference = results(lambda **y: some_rows(**y, places=places, **options), x)
    got = results(lambda **y: taylor_attention(**y, impl=form, **options).output[:, :, places], x)
    for ours, theirs, exact in zip(got, reference, truth, strict=True):
        for name, values in exact.items():
            assert ours[name].dtype == dtype
            assert error(ours[name], values) <= 2 * (error(theirs[name], values) + torch.finfo(dtype).eps), name
    assert error(got[0]["0"], truth[0]["0"]) <= 0.6 * torch.finfo(dtype).eps  # rounded once, at the end

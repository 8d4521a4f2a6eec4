"""Vectors of the notes, which were worked out without this code."""

import json
from pathlib import Path

import oracle
import pytest
import torch

from tsla.mixers import TaylorShiftAttention
from tsla.ops import taylor_attention, taylor_feature_map

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "taylor.json").read_text())
CASES, SHIFTED = GOLDEN["attention"], GOLDEN["taylorshift"]
FEATURES = GOLDEN["features of (1, 2), divided by 2 ** 0.25"]
DIGITS = {"rtol": 0, "atol": 1e-9}


def tensor(rows: list) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def qkv():
    return tuple(tensor(GOLDEN[name])[None, None] for name in "qkv")


def options(case: dict) -> dict:
    mask = torch.tensor([case["key_mask"]]) if "key_mask" in case else None
    return {"scale": case.get("scale"), "causal": case.get("causal", False), "key_mask": mask}


@pytest.mark.parametrize("impl", ["direct", "linear", "auto"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_output(qkv, case, impl):
    out = taylor_attention(*qkv, impl=impl, **options(case)).output
    torch.testing.assert_close(out[0, 0, :, 0], tensor(case["output"]), **DIGITS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_oracle(qkv, case):
    out = oracle.attention(*qkv, **options(case))
    torch.testing.assert_close(out[0, 0, :, 0], tensor(case["output"]), **DIGITS)


@pytest.mark.parametrize("impl", ["direct", "linear"])
@pytest.mark.parametrize("name", ["plain", "plain, causal", "based scaling"])
def test_denominator_from_the_state(qkv, name, impl):
    """z of query i is phi(scale q_i) . state.z, the state after all keys, or after key i if causal."""
    case = CASES[name]
    for i, (q, expected) in enumerate(zip(qkv[0][0, 0], case["z"], strict=True)):
        keys = i + 1 if case.get("causal") else 3
        some = {"scale": case.get("scale"), "causal": case.get("causal", False), "return_state": True, "impl": impl}
        state = taylor_attention(*(x[:, :, :keys] for x in qkv), **some).state
        z = taylor_feature_map(q * case.get("scale", 2**-0.5)) @ state.z[0, 0]
        assert z.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("impl", ["direct", "linear"])
@pytest.mark.parametrize("case", SHIFTED.values(), ids=SHIFTED.keys())
def test_taylorshift(qkv, case, impl):
    layer = TaylorShiftAttention(
        2, heads=1, head_dim=2, value_dim=1, scale_output=case.get("scale_output", False), impl=impl
    ).double()
    torch.nn.init.constant_(layer.temperature, case["temperature"])
    out = layer.attend(*qkv, torch.empty(1, 3, 2), None)
    torch.testing.assert_close(out[0, 0, :, 0], tensor(case["output"]), **DIGITS)


@pytest.mark.parametrize("packed", [False, True])
def test_features(packed):
    x = tensor([1, 2]) / 2**0.25
    torch.testing.assert_close(
        taylor_feature_map(x, packed=packed), tensor(FEATURES["packed" if packed else "unpacked"]), **DIGITS
    )

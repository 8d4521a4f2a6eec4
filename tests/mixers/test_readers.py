"""Weights of other packages' layers, read: the outputs of the original, and every refusal."""

import re

import pytest
import torch
from cases import agree
from mechanisms import padding
from peers import causal_product, fla, without_eps

from tsla.mixers.readers import read_based, read_taylor_series, read_taylorshift

DIM, HEADS = 32, 4
KINDS = {
    "plain": {},
    "packed": {"remove_even_power_dups": True},
    "one key head": {"one_headed_kv": True},
    "gate": {"gate_value_heads": True},
    "heads apart": {"combine_heads": False},
    "rotary": {"rotary_emb": True},
    "all": {"one_headed_kv": True, "gate_value_heads": True, "rotary_emb": True, "combine_heads": False},
}


def refused(message):
    """The beginning of the message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


def tokens(n=40):
    return {"x": torch.randn(3, n, DIM, dtype=torch.float64)}


def theirs(causal=False, **options):
    """The package's layer in float64; its rotary frequencies, made in float32, as exact as ours."""
    package = pytest.importorskip("taylor_series_linear_attention")
    with causal_product():
        layer = package.TaylorSeriesLinearAttn(DIM, dim_head=8, heads=HEADS, causal=causal, **options).double()
    if layer.rotary_emb is not None:
        layer.rotary_emb.freqs.data = 10_000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    return layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_taylor_series(kind, causal):
    layer = theirs(causal, **KINDS[kind])
    told = any(option in KINDS[kind] for option in ("one_headed_kv", "gate_value_heads", "rotary_emb"))
    ours = read_taylor_series(layer.state_dict(), heads=None if told else HEADS, causal=causal)
    assert (ours.heads, ours.causal) == (HEADS, causal) and ours.to_q.weight.dtype == torch.float64
    for n in (1, 40):
        agree(ours, layer, tokens(n), 1e-12)
    if not causal:
        mask = padding(40, 23, 1, total=40)
        agree(lambda x: ours(x, mask=mask)[mask], lambda x: layer(x, mask=mask)[mask], tokens(), 1e-12)


def test_taylor_series_of_another_precision():
    """Frequencies are rounded like weights, and known again."""
    weights = theirs(rotary_emb=True).to(torch.bfloat16).state_dict()
    assert read_taylor_series(weights).to_q.weight.dtype == torch.bfloat16


def test_taylor_series_refusals():
    weights = theirs(gate_value_heads=True, rotary_emb=True).state_dict()
    with refused("norm.gamma must not be there: TaylorAttention has no norm before it"):
        read_taylor_series(theirs(prenorm=True).state_dict(), heads=HEADS)
    with refused("heads must be given: to_q.0.weight of width 32 does not tell them"):
        read_taylor_series(theirs().state_dict())
    with refused("heads tells 8 heads, to_v_gates.0.weight 4"):
        read_taylor_series(weights, heads=8)
    with refused("heads (5, from heads) must divide the width of to_q.0.weight (32)"):
        read_taylor_series(theirs().state_dict(), heads=5)
    with refused(
        "to_kv.0.weight is missing: the weights of a TaylorSeriesLinearAttn are to_q.0.weight, to_kv.0.weight"
    ):
        read_taylor_series({key: value for key, value in weights.items() if "kv" not in key})
    with refused("to_q.0.bias is not a weight of a TaylorSeriesLinearAttn: those are to_q.0.weight, to_kv.0.weight, "):
        read_taylor_series(weights | {"to_q.0.bias": torch.zeros(DIM)})
    with refused("rotary_emb.freqs must be 10000^(-2 i / head_dim)"):
        read_taylor_series(weights | {"rotary_emb.freqs": weights["rotary_emb.freqs"] * 1.1})
    for key, shape, expected in (
        ("to_q.0.weight", (DIM,), "(any, any)"), ("to_q.0.weight", (0, DIM), "(any, any)"),
        ("to_kv.0.weight", (64, 31), "(any, 32)"), ("to_kv.0.weight", (24, DIM), "(16, 32)"),
        ("to_v_gates.0.weight", (HEADS, 9), "(any, 32)"), ("to_out.0.weight", (DIM, 8), "(32, 32)"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            read_taylor_series(weights | {key: torch.zeros(shape, dtype=torch.float64)})
        message = str(caught.value)
        assert message == f"{key} must have shape {expected}, got {shape}" or ("tells" in message and key in message)


def shift_weights(temperature=True, biases=("qkv", "proj")):
    """The state dict of the repository's layer."""
    sizes = {"qkv.weight": (3 * DIM, DIM), "proj.weight": (DIM, DIM), "qkv.bias": (3 * DIM,), "proj.bias": (DIM,)}
    kept = {key: size for key, size in sizes.items() if "weight" in key or key.split(".")[0] in biases}
    kept |= {"temperature": (1, HEADS, 1, 1)} if temperature else {}
    return {key: torch.randn(*size, dtype=torch.float64) / DIM**0.5 for key, size in kept.items()}


def shift_formula(w, x, a, b, c, scale_output):
    """Its formula: scores tau cos(q, k) or q.k / sqrt(dim), weights a s^2 + b s + c, times sqrt(N / d)."""
    qkv = x @ w["qkv.weight"].T + w.get("qkv.bias", 0)
    q, k, v = qkv.unflatten(-1, (3, HEADS, DIM // HEADS)).movedim(1, -2).unbind(1)
    scores = q @ k.transpose(-1, -2)
    if "temperature" in w:
        scores = scores / q.norm(dim=-1)[..., :, None] / k.norm(dim=-1)[..., None, :] * w["temperature"]
    else:
        scores = scores / DIM**0.5
    weights = a * scores**2 + b * scores + c
    out = weights @ v / weights.sum(-1, keepdim=True) * ((x.shape[1] * HEADS / DIM) ** 0.5 if scale_output else 1)
    return out.transpose(1, 2).flatten(2) @ w["proj.weight"].T + w.get("proj.bias", 0)


@pytest.mark.parametrize("n", [1, 40, 100])  # around and above its change of form, 73
@pytest.mark.parametrize("scale_output", [False, True])
@pytest.mark.parametrize("biases", [("qkv", "proj"), ("proj",), ()], ids=str)
@pytest.mark.parametrize("temperature", [True, False])
def test_taylorshift(temperature, biases, scale_output, n):
    weights = shift_weights(temperature, biases)
    for a, b, c in ((0.5, 1.0, 1.0), (0.7, -0.5, 2.0)):
        ours = read_taylorshift(
            weights, scale_output=scale_output, heads=None if temperature else HEADS, a=a, b=b, c=c
        )  # fmt: skip
        assert (ours.to_out.bias is None) == (not biases)
        agree(ours, lambda x, p=(a, b, c): shift_formula(weights, x, *p, scale_output), tokens(n), 1e-12)


def test_taylorshift_refusals():
    weights = shift_weights()
    with refused("heads must be given: proj.weight of width 32 does not tell them"):
        read_taylorshift(shift_weights(temperature=False), scale_output=True)
    with refused("heads tells 2 heads, temperature 4"):
        read_taylorshift(weights, scale_output=True, heads=2)
    with refused("qkv.weight must have shape (96, 32), got (48, 32)"):
        read_taylorshift(weights | {"qkv.weight": torch.zeros(48, DIM).double()}, scale_output=True)
    with refused("temperature must have shape (1, any, 1, 1), got (4,)"):
        read_taylorshift(weights | {"temperature": torch.ones(4).double()}, scale_output=True)
    with refused("qkv.bias must have shape (96), got (32,)"):
        read_taylorshift(weights | {"qkv.bias": torch.ones(DIM).double()}, scale_output=True)
    with refused("proj.weight is missing: the weights of a TaylorShiftAttention are qkv.weight, proj.weight"):
        read_taylorshift({"qkv.weight": weights["qkv.weight"]}, scale_output=True)
    with refused("ls1.gamma is not a weight of a TaylorShiftAttention"):
        read_taylorshift(weights | {"ls1.gamma": torch.ones(DIM)}, scale_output=True)
    with refused("coefficients ([0.1, 1.0, 0.5]) must give no negative weight"):
        read_taylorshift(weights, scale_output=True, c=0.1)


def based_weights(features=6, width=DIM):
    sizes = {"q_proj": (HEADS * features, DIM), "k_proj": (HEADS * features, DIM), "v_proj": (width, DIM),
             "o_proj": (DIM, width)}  # fmt: skip
    return {f"{key}.weight": torch.randn(*size, dtype=torch.float64) / DIM**0.5 for key, size in sizes.items()}


def based_heads(weights, x):
    """q, k and v of the layer, ``(b, h, n, .)``."""
    return (
        (x @ weights[f"{name}_proj.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("q", "k", "v")
    )


@pytest.mark.parametrize("causal", [True, False])
def test_based(causal):
    weights = based_weights()

    def formula(x):
        q, k, v = based_heads(weights, x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        pairs = 1 + scores + scores**2 / 2
        pairs = pairs.tril() if causal else pairs
        return (pairs @ v / pairs.sum(-1, keepdim=True)).transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T

    ours = read_based(weights, heads=HEADS, causal=causal)
    assert (ours.head_dim, ours.value_dim, ours.causal) == (6, DIM // HEADS, causal)
    for n in (1, 40, 300):
        agree(ours, formula, tokens(n), 1e-12)


@pytest.mark.parametrize("form", ["parallel", "chunk"])
def test_based_by_its_own_functions(form):
    naive, weights = fla("ops/based/naive.py"), based_weights()
    attend = {"parallel": naive.naive_parallel_based, "chunk": lambda q, k, v: naive.naive_chunk_based(q, k, v, 8)}[
        form
    ]

    def original(x):
        q, k, v = based_heads(weights, x)
        out = without_eps(lambda values: attend(q, k, values), v)
        return out.transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T

    agree(read_based(weights, heads=HEADS), original, tokens(), 1e-12)


def test_based_refusals():
    weights = based_weights()
    with refused("k_proj.weight is missing: the weights of a BasedLinearAttention are q_proj.weight, k_proj.weight, "):
        read_based({key: value for key, value in weights.items() if key[0] != "k"}, heads=HEADS)
    with refused("o_proj.bias is not a weight of a BasedLinearAttention"):
        read_based(weights | {"o_proj.bias": torch.zeros(DIM)}, heads=HEADS)
    with refused("k_proj.weight must have shape (24, 32), got (12, 32)"):
        read_based(weights | {"k_proj.weight": torch.zeros(12, DIM).double()}, heads=HEADS)
    with refused("v_proj.weight must have shape (32, 32), got (16, 32)"):
        read_based(weights | {"v_proj.weight": torch.zeros(16, DIM).double()}, heads=HEADS)
    with refused("heads (5, from heads) must divide the width of q_proj.weight (24)"):
        read_based(weights, heads=5)
    with refused("heads (3, from heads) must divide the width of o_proj.weight (32)"):
        read_based(weights, heads=3)
    with refused("heads (0, from heads) must divide"):
        read_based(weights, heads=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.numpy(), "must be a dense tensor of floating-point numbers, got ndarray"),
        (lambda w: w.long(), "must be a dense tensor of floating-point numbers, got torch.int64, torch.strided"),
        (lambda w: w.to_sparse(), "must be a dense tensor of floating-point numbers, got torch.float64"),
        (lambda w: w + 1j, "must be a dense tensor of floating-point numbers, got torch.complex128, torch.strided"),
        (lambda w: w.half(), "(torch.float16, cpu) must be of the type and device of q_proj.weight (torch.f"),
        (lambda w: w.to("meta"), "(torch.float64, meta) must be of the type and device of q_proj.weight"),
        (lambda w: w * torch.nan, "must hold finite numbers only"),
    ],
    ids=range(7),
)  # fmt: skip
def test_what_is_no_weight_is_named(change, message):
    weights = {f"{name}_proj.weight": torch.randn(32, 32).double() for name in "qkvo"}
    assert read_based(weights, heads=4).heads == 4
    weights["v_proj.weight"] = change(weights["v_proj.weight"])
    with pytest.raises(ValueError) as caught:
        read_based(weights, heads=4)
    assert str(caught.value).startswith("v_proj.weight") and message in str(caught.value)


@pytest.mark.parametrize("heads", ["4", 4.0, True])
def test_heads_are_counted_in_whole_numbers(heads):
    weights = {f"{name}_proj.weight": torch.randn(32, 32) for name in "qkvo"}
    with pytest.raises(ValueError, match="must be a whole number"):
        read_based(weights, heads=heads)

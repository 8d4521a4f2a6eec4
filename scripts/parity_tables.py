"""Writes docs/parity.md: our ops and layers against the field's own packages, in float64, outputs and gradients.

    PYTHONPATH=tests python scripts/parity_tables.py

Needs the extra `parity`. The tests run the same cases, and check the page against them.
"""

import json
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from cases import flat, qkv, results, some_decay, some_mask
from mechanisms import padding
from parity_cases import DIGITS, EXACT, FLA, LOCAL, SINGLE, Case, Pair
from parity_features import of_fla_features, of_performer
from parity_linformer import of_linformer
from peers import causal_product, fla, without_eps
from torch import Tensor

from tsla.mixers import TaylorShiftAttention
from tsla.mixers.readers import read_based, read_taylor_series
from tsla.ops import (
    KernelState,
    linear_attention,
    taylor_attention,
    taylor_feature_map,
    taylor_poly_attention,
    window_attention,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parity.md"
COMMAND = "PYTHONPATH=tests python scripts/parity_tables.py"
SERIES, VECTORS = "taylor-series-linear-attention", "vectors by hand"
DIM, HEADS, NO_EPS = 32, 4, 1e-300  # nothing beside any sum, but 0 / NO_EPS is 0


def errors(case: Case) -> tuple[float, float | None]:
    """Largest absolute difference of the outputs, and of the gradients by every input (None where there are none)."""
    torch.manual_seed(0)
    ours, theirs, inputs = case.make()
    if not case.gradients:
        with torch.no_grad():
            return _difference(list(flat(ours(**inputs))), list(flat(theirs(**inputs)))), None
    (got, got_gradients), (expected, expected_gradients) = (results(run, inputs) for run in (ours, theirs))
    return (
        _difference(list(got.values()), list(expected.values())),
        _difference(list(got_gradients.values()), list(expected_gradients.values())),
    )


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


# --- taylor-series-linear-attention -----------------------------------------------------------------------------------

LAYERS = {
    "plain": {},
    "one_headed_kv": {"one_headed_kv": True},
    "gate_value_heads": {"gate_value_heads": True},
    "combine_heads=False": {"combine_heads": False},
    "remove_even_power_dups": {"remove_even_power_dups": True},
    "rotary_emb": {"rotary_emb": True},
    "all of these": {
        "one_headed_kv": True, "gate_value_heads": True, "combine_heads": False, "remove_even_power_dups": True,
        "rotary_emb": True,
    },
}  # fmt: skip


def layers(option: str, causal: bool) -> tuple[Any, Any]:
    """Ours, by the reader of its weights, and the package's; rotary frequencies, made in float32, as exact as ours."""
    from taylor_series_linear_attention import TaylorSeriesLinearAttn

    with causal_product():
        theirs = TaylorSeriesLinearAttn(DIM, dim_head=8, heads=HEADS, causal=causal, **LAYERS[option]).double()
    if theirs.rotary_emb is not None:
        theirs.rotary_emb.freqs.data = 10_000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    return read_taylor_series(theirs.state_dict(), heads=HEADS, causal=causal), theirs


def tokens(n: int = 40) -> Tensor:
    return torch.randn(3, n, DIM, dtype=torch.float64)


def layer(option: str, causal: bool = False) -> Pair:
    return (*layers(option, causal), {"x": tokens()})


def masked_layer(option: str) -> Pair:
    """Padding on the right, where counting real tokens and counting places give the same rotary positions."""
    (ours, theirs), mask = layers(option, False), padding(40, 23, 1, total=40)
    return lambda x: ours(x, mask=mask)[mask], lambda x: theirs(x, mask=mask)[mask], {"x": tokens()}


def cross_layer(option: str) -> Pair:
    (ours, theirs), mask = layers(option, False), padding(17, 5, 0, total=17)
    return (
        lambda x, context: ours(x, context, mask=mask), lambda x, context: theirs(x, context=context, mask=mask),
        {"x": tokens(), "context": tokens(17)},
    )  # fmt: skip


def decoding(option: str) -> Pair:
    """Five tokens at once, then seven one by one."""
    ours, theirs = layers(option, True)
    pieces = [slice(0, 5), *(slice(i, i + 1) for i in range(5, 12))]

    def by_ours(x: Tensor) -> Tensor:
        outputs, state = [], None
        for piece in pieces:
            out, state = ours.extend(x[:, piece], state)
            outputs.append(out)
        return torch.cat(outputs, dim=1)

    def by_theirs(x: Tensor) -> Tensor:
        outputs, cache = [], None
        for piece in pieces:
            out, cache = theirs(x[:, piece], cache=cache, return_cache=True)
            outputs.append(out)
        return torch.cat(outputs, dim=1)

    return by_ours, by_theirs, {"x": tokens(12)}


def feature_products(packed: bool) -> Pair:
    """phi(q).phi(k), since both packages are free to order features as they like."""
    from taylor_series_linear_attention.attention import second_taylor_expansion

    x = qkv(g=4)
    return (
        lambda q, k: taylor_feature_map(q, packed=packed) @ taylor_feature_map(k, packed=packed).mT,
        lambda q, k: second_taylor_expansion(q, packed) @ second_taylor_expansion(k, packed).mT,
        {"q": x["q"], "k": x["k"]},
    )


def poly(mass: bool, masked: bool) -> Pair:
    from taylor_series_linear_attention import taylor_series_poly_attention

    x = qkv(g=4, n=40)
    mask = some_mask(2, 40) if masked else None
    return (
        partial(taylor_poly_attention, key_mask=mask, normalize_first=not mass),
        lambda q1, q2, q3, v: taylor_series_poly_attention(
            q1, q2, q3, v, include_pass1_mass=mass, context_mask=mask, eps=NO_EPS
        ),
        {"q1": x["q"], "q2": torch.randn_like(x["k"]), "q3": x["k"], "v": x["v"]},
    )


def of_series() -> Iterator[Case]:
    for packed in (False, True):
        yield Case(SERIES, "feature map", f"remove_even_power_dups={packed}", EXACT, partial(feature_products, packed))
    for option, arguments in LAYERS.items():
        yield Case(SERIES, "layer", option, EXACT, partial(layer, option))
        yield Case(SERIES, "layer, key mask", option, EXACT, partial(masked_layer, option))
        if "rotary_emb" not in arguments:
            yield Case(SERIES, "layer, context and its mask", option, EXACT, partial(cross_layer, option))
        yield Case(SERIES, "layer, causal", option, EXACT, partial(layer, option, True))
        yield Case(SERIES, "layer, prompt and decoding", option, EXACT, partial(decoding, option))
    for mass in (True, False):
        for masked in (False, True):
            option = f"include_pass1_mass={mass}" + ", key mask" * masked
            yield Case(SERIES, "poly-attention", option, EXACT, partial(poly, mass, masked))


# --- local-attention and fla-core -------------------------------------------------------------------------------------


def window(size: int, causal: bool, masked: bool) -> Pair:
    """The package takes whole windows; a row without keys is a plain average there, so none is without."""
    from local_attention import LocalAttention

    x = qkv(g=4, n=40, d=6, e=6)
    mask = some_mask(2, 40) | (torch.arange(40) % size == 0) if masked else None
    theirs = LocalAttention(size, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False)
    return partial(window_attention, window=size, causal=causal, key_mask=mask), partial(theirs, mask=mask), x


def of_local() -> Iterator[Case]:
    for size in (4, 10):
        for causal in (False, True):
            for masked in (False, True):
                option = f"window {size}" + ", causal" * causal + ", key mask" * masked
                yield Case(LOCAL, "softmax in a window", option, EXACT, partial(window, size, causal, masked))


def based(form: str) -> Pair:
    """Divided by its sum alone: the 1e-6 it adds is taken out by a column of ones."""
    naive = fla("ops/based/naive.py")
    attend = {"parallel": naive.naive_parallel_based, "chunk": partial(naive.naive_chunk_based, chunk_size=8)}[form]
    return (
        lambda q, k, v: taylor_attention(q, k, v, causal=True).output,
        lambda q, k, v: without_eps(lambda values: attend(q, k, values), v), qkv(g=4, n=40),
    )  # fmt: skip


def based_sums() -> Pair:
    naive = fla("ops/based/naive.py")
    return (
        lambda q, k, v: taylor_attention(q, k, v, causal=True, normalize=False).output,
        lambda q, k, v: naive.naive_parallel_based(q, k, v, use_norm=False), qkv(g=4, n=40),
    )  # fmt: skip


def based_layer() -> Pair:
    """`BasedLinearAttention` is its four projections around the function."""
    naive = fla("ops/based/naive.py")
    rows = {"q_proj": 6 * HEADS, "k_proj": 6 * HEADS, "v_proj": DIM, "o_proj": DIM}
    weights = {f"{name}.weight": torch.randn(size, DIM).double() / DIM**0.5 for name, size in rows.items()}

    def theirs(x: Tensor) -> Tensor:
        q, k, v = ((x @ weights[f"{name}_proj.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qkv")
        out = without_eps(lambda values: naive.naive_parallel_based(q, k, values), v)
        return out.transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T

    return read_based(weights, heads=HEADS), theirs, {"x": tokens()}


def features() -> dict[str, Tensor]:
    x = qkv(g=4, n=64, d=6)
    return {"q": x["q"].abs(), "k": x["k"].abs(), "v": x["v"]}


def linear(normalize: bool) -> Pair:
    naive = fla("ops/linear_attn/naive.py")
    return (
        lambda q, k, v: linear_attention(q, k, v, causal=True, eps=1e-10, normalize=normalize).output,
        lambda q, k, v: naive.naive_chunk_linear_attn(
            *(y.transpose(1, 2) for y in (q, k, v)), scale=1.0, normalize=normalize
        ).transpose(1, 2),
        features(),
    )


def recurrent() -> Pair:
    """Two halves, the second from the state of the first; output, kv and z."""
    naive, x = fla("ops/linear_attn/naive.py"), features()

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        state, outputs = None, []
        for half in (slice(0, 30), slice(30, 64)):
            parts = (y[:, :, half].transpose(1, 2) for y in (q, k, v))
            out, state = naive.naive_recurrent_linear_attn(
                *parts, scale=1.0, initial_state=state, output_final_state=True, normalize=True
            )
            outputs.append(out.transpose(1, 2))
        return torch.cat(outputs, dim=2), state[0], state[1][:, 0]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        state: KernelState | None = None
        outputs = []
        for half in (slice(0, 30), slice(30, 64)):
            parts = (y[:, :, half] for y in (q, k, v))
            out, state = linear_attention(*parts, causal=True, eps=1e-10, state=state)
            outputs.append(out)
        assert state is not None
        return torch.cat(outputs, dim=2), state.kv, state.z

    return ours, theirs, x


def decayed() -> Pair:
    naive = fla("ops/simple_gla/naive.py")
    return (
        lambda q, k, v, log_decay: linear_attention(
            q, k, v, causal=True, normalize=False, log_decay=log_decay
        ).output,
        lambda q, k, v, log_decay: naive.naive_chunk_simple_gla(
            *(y.transpose(1, 2) for y in (q, k, v, log_decay)), scale=1.0
        )[0].transpose(1, 2),
        features() | {"log_decay": some_decay(2, 4, 64)},
    )  # fmt: skip


def retention() -> Pair:
    naive, x = fla("ops/retention/naive.py"), features()
    rates = (1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))).log()
    return (
        lambda q, k, v: linear_attention(
            q * 6**-0.5, k, v, causal=True, normalize=False, log_decay=rates
        ).output,
        naive.naive_retention, x,
    )  # fmt: skip


def of_fla() -> Iterator[Case]:
    yield Case(FLA, "naive_parallel_based", "causal", EXACT, partial(based, "parallel"))
    yield Case(FLA, "naive_parallel_based", "use_norm=False", EXACT, based_sums)
    yield Case(FLA, "naive_chunk_based", "causal", EXACT, partial(based, "chunk"))
    yield Case(FLA, "naive_parallel_based", "as BasedLinearAttention, weights read", EXACT, based_layer)
    for normalize in (True, False):
        yield Case(FLA, "naive_chunk_linear_attn", f"normalize={normalize}", EXACT, partial(linear, normalize))
    single = ", float32 inside"
    yield Case(FLA, "naive_recurrent_linear_attn", "resumed, with its state" + single, SINGLE, recurrent)
    yield Case(FLA, "naive_chunk_simple_gla", "decay per head and token" + single, SINGLE, decayed)
    yield Case(FLA, "naive_retention", "decay per head" + single, SINGLE, retention)


# --- vectors worked out by hand ---------------------------------------------------------------------------------------

GOLDEN = json.loads((ROOT / "tests" / "golden" / "taylor.json").read_text())


def vector(name: str, impl: str) -> Pair:
    case, some = GOLDEN["attention"][name], {name: torch.tensor(GOLDEN[name]).double()[None, None] for name in "qkv"}
    mask = torch.tensor([case["key_mask"]]) if "key_mask" in case else None
    options = {"scale": case.get("scale"), "causal": case.get("causal", False), "key_mask": mask, "impl": impl}
    expected = torch.tensor(case["output"], dtype=torch.float64)[None, None, :, None]
    return lambda q, k, v: taylor_attention(q, k, v, **options).output, lambda **_: expected, some


def shift_vector(name: str, impl: str) -> Pair:
    case = GOLDEN["taylorshift"][name]
    some = {name: torch.tensor(GOLDEN[name]).double()[None, None] for name in "qkv"}
    layer = TaylorShiftAttention(
        2, heads=1, head_dim=2, value_dim=1, scale_output=case.get("scale_output", False), impl=impl
    ).double()
    torch.nn.init.constant_(layer.temperature, case["temperature"])
    expected = torch.tensor(case["output"], dtype=torch.float64)[None, None, :, None]
    return lambda q, k, v: layer.attend(q, k, v, torch.empty(1, 3, 2), None), lambda **_: expected, some


def of_vectors() -> Iterator[Case]:
    for impl in ("direct", "linear"):
        for name in GOLDEN["attention"]:
            made = partial(vector, name, impl)
            yield Case(VECTORS, f"Taylor attention, {impl}", name, DIGITS, made, gradients=False)
        for name in GOLDEN["taylorshift"]:
            made = partial(shift_vector, name, impl)
            yield Case(VECTORS, f"TaylorShift, {impl}", name, DIGITS, made, gradients=False)


CASES = [*of_series(), *of_local(), *of_fla(), *of_fla_features(), *of_performer(), *of_linformer(), *of_vectors()]


INTRODUCTION = f"""\
# Parity

Largest absolute differences between this package and the field's own, in float64 on random inputs of size 1, with the
same weights; gradients are those of a random sum of the outputs by every input. Made by

```sh
{COMMAND}
```

with torch {torch.__version__.split("+")[0]} and the extra `parity`; the tests run every row too. Where a package adds a
small number to a denominator, the row is without it, or has it on both sides. The causal rows of
taylor-series-linear-attention run with a stand-in of two lines for the C++ product that it imports. fla-core's
functions are its plain references, loaded by file, since importing the package needs Triton; those marked "float32
inside" are as exact as that. The vectors were worked out without this code; their error is that of their ten digits.

performer-pytorch adds 0.0001 to softmax features and 0.000001 to causal sums; the rows "as shipped" have these numbers
in them. Those marked "no parity" show what they make of outputs and gradients, which are of size 1: little where
queries and keys are small, as at the start of a training, and more the larger they are. linear-attention-transformer is
not here: its softmax over the features of a query and over all tokens of a key is none of these mechanisms."""


def page() -> str:
    """The page, made by running every case."""
    lines = [INTRODUCTION]
    for package, cases in groupby(CASES, lambda case: case.package):
        release = f" {version(package)}" if package != VECTORS else ", in ten digits"
        lines += ["", f"## {package}{release}", "", "| what | option | output | gradients | tolerance |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for case in cases:
            output, gradients = errors(case)
            shown = "" if gradients is None else f"{gradients:.1e}"
            lines.append(f"| {case.what} | {case.option} | {output:.1e} | {shown} | {case.tolerance:.0e} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page())

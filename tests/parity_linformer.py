"""Rows of docs/parity.md: Linformer against the package of its name."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from parity_cases import EXACT, LINFORMER, Case, Pair
from torch import Tensor

from tsla.mixers import LinformerAttention

DIM, HEADS, LENGTH, RANK = 32, 4, 40, 9
LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # its options and ours
    "plain": ({}, {}),
    "dim_head=6": ({"dim_head": 6}, {"head_dim": 6, "value_dim": 6}),
    "one_kv_head": ({"one_kv_head": True}, {"kv_heads": 1}),
    "share_kv": ({"share_kv": True}, {"sharing": "kv"}),
}


def layers(option: str) -> tuple[LinformerAttention, Any]:
    """Ours with the weights of the package's, which with share_kv has keys for values too."""
    from linformer import LinformerSelfAttention

    own, ours_own = LAYERS[option]
    theirs = LinformerSelfAttention(DIM, LENGTH, k=RANK, heads=HEADS, **own).double()
    ours = LinformerAttention(DIM, heads=HEADS, max_length=LENGTH, rank=RANK, bias=True, **ours_own).double()
    weights = theirs.state_dict()
    names = {"projection.keys": "proj_k", "projection.values": "proj_v"}
    names |= {"to_v.weight": "to_k.weight"} if option == "share_kv" else {}
    none = ("to_q.bias", "to_k.bias", "to_v.bias")  # of the input it has no biases
    ours.load_state_dict({
        name: torch.zeros_like(weight) if name in none else weights[names.get(name, name)]
        for name, weight in ours.state_dict().items()
    })  # fmt: skip
    return ours, theirs


def tokens(n: int) -> Tensor:
    return torch.randn(3, n, DIM, dtype=torch.float64)


def layer(option: str, n: int) -> Pair:
    return (*layers(option), {"x": tokens(n)})


def cross_layer(option: str) -> Pair:
    ours, theirs = layers(option)
    return ours, lambda x, context: theirs(x, context=context), {"x": tokens(LENGTH), "context": tokens(17)}


def of_linformer() -> Iterator[Case]:
    name = "LinformerSelfAttention"
    for option in LAYERS:
        yield Case(LINFORMER, name, option, EXACT, partial(layer, option, LENGTH))
        yield Case(LINFORMER, f"{name}, a shorter input", option, EXACT, partial(layer, option, 23))
        yield Case(LINFORMER, f"{name}, context", option, EXACT, partial(cross_layer, option))

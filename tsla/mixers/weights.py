"""State dicts as data that may be wrong: checks by name, shape and content, for the readers of others' weights."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsla.mixers.base import HeadMixer

Weights = Mapping[str, Tensor]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Layer = TypeVar("Layer", bound=HeadMixer)


def check_keys(weights: Weights, source: str, needed: Sequence[str], optional: Sequence[str]) -> None:
    """Every key of `needed`, perhaps some of `optional`, and no other."""
    for key in needed:
        if key not in weights:
            raise ValueError(f"{key} is missing: the weights of a {source} are {', '.join(needed)}")
    for key in weights:
        if key not in (*needed, *optional):
            raise ValueError(f"{key} is not a weight of a {source}: those are {', '.join((*needed, *optional))}")
        check_numbers(weights, key, needed[0])


def check_numbers(weights: Weights, key: str, first: str) -> None:
    """A weight is a dense tensor of finite numbers; all but frequencies are of one type and device."""
    weight, like = weights[key], weights[first]
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.dtype not in FLOATS:
        got = f"{weight.dtype}, {weight.layout}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{key} must be a dense tensor of floating-point numbers, got {got}")
    if not key.startswith("rotary_emb.") and (weight.dtype, weight.device) != (like.dtype, like.device):
        raise ValueError(
            f"{key} ({weight.dtype}, {weight.device}) must be of the type and device of {first} "
            f"({like.dtype}, {like.device})"
        )
    if not weight.is_meta and not bool(weight.isfinite().all()):
        raise ValueError(f"{key} must hold finite numbers only")


def shape_of(weights: Weights, key: str, *expected: int | None) -> tuple[int, ...]:
    """The shape of a weight, if it is as expected; None stands for any size but 0."""
    shape = tuple(weights[key].shape)
    fits = len(shape) == len(expected) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{key} must have shape ({wanted}), got {shape}")
    return shape


def shaped(weights: Weights, key: str, *expected: int | None) -> Tensor:
    """A weight, if its shape is as expected."""
    shape_of(weights, key, *expected)
    return weights[key]


def head_widths(told: Mapping[str, int], key: str, width: int) -> tuple[int, int]:
    """How many heads all that tells of them agrees on, and how wide they are if they share `width` of `key`."""
    if not told:
        raise ValueError(f"heads must be given: {key} of width {width} does not tell them")
    for name, count in told.items():
        if type(count) is not int:
            raise ValueError(f"{name} ({count!r}) must be a whole number")
    (first, heads), *rest = told.items()
    for other, count in rest:
        if count != heads:
            raise ValueError(f"{first} tells {heads} heads, {other} {count}")
    if heads < 1 or width % heads:
        raise ValueError(f"heads ({heads}, from {first}) must divide the width of {key} ({width})")
    return heads, width // heads


def fill(layer: Layer, weights: Weights) -> Layer:
    """The layer with these weights, in their type and on their device."""
    like = weights["to_q.weight"]
    layer.to(dtype=like.dtype, device=like.device).load_state_dict(dict(weights))
    return layer

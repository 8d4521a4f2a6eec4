"""The parts of a model with their parameters and the shapes they give, without computing anything."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """A module: its name in the model, its class, trainable numbers, and the shape of what it gives."""

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...]


def summarise(model: nn.Module, example: Tensor, *, depth: int = 4) -> list[Part]:
    """The parts with parameters, down to `depth` names deep, in the order they run on `example`, a meta tensor."""
    twin = copy.deepcopy(model).to("meta").eval()
    parts: list[Part] = []

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            shape = tuple(first.shape) if isinstance(first, Tensor) else ()
            count = sum(p.numel() for p in module.parameters() if p.requires_grad)
            if count:
                parts.append(Part(name, type(module).__name__, count, shape))

        module.register_forward_hook(hook)

    for name, module in twin.named_modules():
        if name and name.count(".") < depth:
            note(name, module)
    with torch.no_grad():
        twin(example)
    return parts

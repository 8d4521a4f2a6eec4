"""The parts of a model with their parameters and the shapes they give, without computing anything."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsla.mixers import Mixed, Mixer


class Part(NamedTuple):
    """A module: its name in the model, its class, trainable numbers, and the shape of what it gives."""

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...]


def summarise(model: nn.Module, example: Tensor) -> list[Part]:
    """The parts with parameters, down to the mixers, in the order they run on `example`, a meta tensor."""
    twin = copy.deepcopy(model).to("meta").eval()
    parts: list[Part] = []
    depth = min((name.count(".") for name, m in twin.named_modules() if isinstance(m, Mixer)), default=0)

    def note(name: str, module: nn.Module) -> None:
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def seen(module: nn.Module, arguments: object, output: object) -> None:
            if any(part.name == name for part in parts):  # in a loop
                return
            first = output[0] if isinstance(output, tuple) else output
            parts.append(Part(name, type(module).__name__, count, tuple(first.shape) if torch.is_tensor(first) else ()))

        if isinstance(module, Mixer):  # of which blocks call `mix`, past all hooks
            mix = module.mix

            def mixed(*arguments: Any, **options: Any) -> Mixed:
                output = mix(*arguments, **options)
                seen(module, arguments, output)
                return output

            module.mix = mixed  # type: ignore[method-assign]
        elif count:
            module.register_forward_hook(seen)

    for name, module in twin.named_modules():
        if name and name.count(".") <= depth:
            note(name, module)
    with torch.no_grad():
        twin(example)
    return parts

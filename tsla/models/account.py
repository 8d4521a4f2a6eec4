"""What a model costs: parameters, operations and state, read off the modules that run."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tsla.mixers import Mixed, Mixer


class Account(NamedTuple):
    """Costs of a model at one sequence length.

    parameters: trainable numbers.  flops_per_token: matrix operations of a forward pass, a multiply and an add each
    counted, over the tokens.  state_bytes: what all mixers need of one sequence's keys (see `Mixer.state_bytes`).
    """

    parameters: int
    flops_per_token: float
    state_bytes: int


def account(model: nn.Module, length: int, *, channels: int | None = None) -> Account:
    """Costs of `model` for sequences of `length` tokens: ids ``(b, n)``, or ``(b, n, channels)`` numbers if given.

    Operations are counted while a copy runs on the meta device, so nothing is computed.

    Raises:
        ValueError: if length is below 1.
    """
    if length < 1:
        raise ValueError(f"length ({length}) must be at least 1")
    twin = copy.deepcopy(model).to("meta").eval()
    mixers = [m for m in twin.modules() if isinstance(m, Mixer)]
    inner = {id(part) for m in mixers for part in m.modules() if part is not m}  # counted by the mixer they are part of
    lengths = [(m, _note_length(m)) for m in mixers if id(m) not in inner]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        given = example_input(length, channels, rows=rows_of(model))
        twin(given)
    return Account(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops_per_token=counter.get_total_flops() / (length * len(given)),
        state_bytes=sum(m.state_bytes(tokens) for m, seen in lengths for tokens in seen),  # in every loop its own
    )


class Step(NamedTuple):
    """Costs of a training step in float32.

    flops: matrix operations of both passes, a multiply and an add each counted.  held_bytes: weights, gradients and the
    two averages of AdamW.  kept_bytes: what the forward pass keeps for the backward one, in plain torch: kernels keep
    less, above all those of exact softmax.
    """

    flops: int
    held_bytes: int
    kept_bytes: int


def account_step(model: nn.Module, length: int, rows: int, *, channels: int | None = None) -> Step:
    """Costs of a training step on `rows` rows of `length` tokens, or of pairs of them; counted on the meta device."""
    twin = copy.deepcopy(model).to("meta").train()
    weights = {storage._cdata: storage for storage in (p.untyped_storage() for p in twin.parameters())}
    kept: dict[int, UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:  # of which views are kept, too
            kept[storage._cdata] = storage  # held, so that no later one takes its place
        return x

    given = example_input(length, channels, rows=rows_of(model) * rows)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda x: x):
            logits = twin(given)
        logits.sum().backward()
    held = 4 * sum(p.numel() * p.element_size() for p in twin.parameters() if p.requires_grad)
    return Step(counter.get_total_flops(), held, sum(storage.nbytes() for storage in kept.values()))


def _note_length(mixer: Mixer) -> list[int]:
    """A list to which each call of `mix` will add the tokens it gets: a model may make fewer of its input, or more."""
    mix, seen = mixer.mix, []

    def noted(x: Tensor, *arguments: Any, **options: Any) -> Mixed:
        seen.append(x.shape[1])
        return mix(x, *arguments, **options)

    mixer.mix = noted  # type: ignore[method-assign]
    return seen


def rows_of(model: nn.Module) -> int:
    """Sequences that a model needs at least: two if it compares them."""
    return 2 if getattr(model, "pairs", "") else 1


def example_input(length: int, channels: int | None = None, *, rows: int = 1) -> Tensor:
    """Sequences of zeros on the meta device, as a model of token ids or of `channels` numbers takes them."""
    if channels is None:
        return torch.zeros(rows, length, dtype=torch.long, device="meta")
    return torch.zeros(rows, length, channels, device="meta")

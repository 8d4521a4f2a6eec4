"""Steps of training on a GPU that is not there; ``python fake_cuda.py LIBRARY`` tells as JSON what failed, by case.

The tensors hold no numbers (FakeTensorMode), so that whatever asks for one raises: a device would have to be waited
for. So do tensors of two devices in one operation, and copies from the host.
"""

import ctypes
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import mechanisms
import torch
import train_runs as runs
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.cuda.amp import common
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsla.mixers import Mixed, Mixer
from tsla.models import Encoder, SequenceClassifier, TokenClassifier, VisionTransformer
from tsla.ops import feature_map
from tsla.tasks.loading import Batch
from tsla.training.guards import FiniteGuard
from tsla.training.objective import Objective
from tsla.training.optim import OptimSettings, make_optimizer

B, N, WORDS = 3, 20, 11
WAYS = ("bidirectional", "causal")
MODELS = ("classes", "tokens", "pixels")
OPTIM = OptimSettings(lr=1e-3, final_lr=0.0, warmup_steps=0, weight_decay=0.1, beta1=0.9, beta2=0.98, clip_norm=1.0)


class Copies(TorchDispatchMode):
    """Raises where a tensor of the host goes to the device: torch waits for such a copy."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sources = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()}
        made = {x.device.type for x in tree_leaves(result) if isinstance(x, Tensor)}
        if "cpu" in sources and "cuda" in made:
            raise RuntimeError(f"{function} copies from the host")
        return result


def there(x: Tensor) -> Tensor:
    """A tensor like x on the device."""
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


def on_cuda(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers there."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(there(p))
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else there(x)
    return module


def mask() -> Tensor:
    return torch.ones(B, N, dtype=torch.bool, device="cuda")


def run_mixer(mixer: nn.Module, name: str) -> None:
    """Forward and backward: outputs in bf16 as from any linear layer, gradients in the type of the weights."""
    mixer = on_cuda(mixer.train())
    x = torch.empty(B, N, mechanisms.DIM, device="cuda", requires_grad=True)
    with Copies():
        with torch.autocast("cuda", torch.bfloat16):
            mixed = mixer.mix(x, mask=mask()) if isinstance(mixer, Mixer) else Mixed(mixer(x, mask=mask()))
            out, aux = mixed.output, mixed.aux
        projected = name != "none" and not isinstance(getattr(mixer, "to_out", mixer), nn.Identity)
        expect(out, torch.bfloat16 if projected and name != "shift" else out.dtype)
        if out.requires_grad:
            loss = out.float().square().sum()
            (loss if aux is None else loss + aux).backward()
            for p in (x, *mixer.parameters()):
                expect(p.grad, torch.float32)


def build_model(target: str, mixer: str, causal: bool) -> nn.Module:
    options = {"dim": mechanisms.DIM, "depth": 2, "causal": causal, "positions": "learned",
               "mixer": lambda _: mechanisms.build(mixer, causal=causal, dtype=torch.float32)}  # fmt: skip
    if target == "pixels":
        return VisionTransformer(
            image_size=(4, 5), patch_size=1, levels=WORDS - 1, num_classes=5, short_conv=3, **options
        )
    encoder = Encoder(vocab_size=WORDS, max_length=N, **options)
    return (TokenClassifier if target == "tokens" else SequenceClassifier)(encoder, num_classes=5)


def run_model(made: nn.Module, target: str) -> None:
    """A step as the Learner makes it: loss, scores, backward pass, the guard, clipping, AdamW."""
    spec = runs.spec(WORDS, 5, target="tokens" if target == "tokens" else "class", max_length=N)
    made, objective, guard = on_cuda(made.train()), Objective(spec), FiniteGuard()
    scores, optimizer = objective.scores(training=True), make_optimizer(made, OPTIM)
    for metric in scores.values():
        for name, value in metric._defaults.items():
            setattr(metric, name, there(value))
    ids = torch.ones(B, N, dtype=torch.long, device="cuda")
    places = torch.ones(7, dtype=torch.long, device="cuda") if target == "tokens" else None
    batch = Batch(ids, mask(), ids if target == "tokens" else ids[:, 0], ids[:, 0], scored=places)
    with Copies():
        with torch.autocast("cuda", torch.bfloat16):
            answers = objective.ask(made.run, batch)
            loss = objective.loss(answers)
            objective.update(scores, answers)
        loss.backward()
        gradients = {name: p.grad for name, p in made.named_parameters()}
        norm, optimizer.found_inf = guard.watch(1, loss.detach(), gradients, together=False)
        torch.nn.utils.clip_grads_with_norm_(made.parameters(), 1.0, norm)
        optimizer.step()
    for x in (answers.outputs, loss, norm, *gradients.values()):
        expect(x, torch.float32)


def expect(x: Tensor | None, dtype: torch.dtype) -> None:
    if x is None or x.device.type != "cuda" or x.dtype != dtype:
        raise RuntimeError(f"expected {dtype} on cuda, got {None if x is None else (x.dtype, x.device)}")


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, kind, causal in mechanisms.EVERY_WAY:
        if kind in ("plain", "all"):
            mixer = mechanisms.build(name, kind, causal=causal, dtype=torch.float32)
            yield f"{name}/{kind}/{WAYS[causal]}", partial(run_mixer, mixer, name)
    for how in ("copy", "number", "mask", "host", "type"):
        yield f"control/{how}", partial(run_mixer, Wrong(how), "control")
    for target, name, causal in product(MODELS, ("taylor", "taylor, linear", "softmax"), (False, True)):
        model = build_model(target, name, causal)
        yield f"{target}/{name}/{WAYS[causal]}", partial(run_model, model, target)


class Wrong(nn.Module):
    """What the checks are there to find."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.to_out = how, nn.Linear(mechanisms.DIM, mechanisms.DIM)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        match self.how:
            case "copy":
                x = x * torch.tensor([2.0] * mechanisms.DIM, device="cuda")
            case "number":
                x = x * float(x.sum())
            case "mask":
                x = x.clone().index_put((mask,), x[mask])
            case "host":
                x = x + torch.arange(mechanisms.DIM)
        out = self.to_out(x)
        return out.float() if self.how == "type" else out


def main() -> None:
    common.amp_definitely_not_available = lambda: False  # autocast of a device that torch says it has not
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    # The table is kept for tensors with numbers alone: this stands for it as it is after the first call.
    feature_map._coefficients = lambda d, order, packed, like: like.new_ones(
        (feature_map.taylor_feature_dim(d, order=order, packed=packed), 1)
    )
    failed = {}
    for name, run in cases():
        try:
            with FakeTensorMode():
                run()
            failed[name] = ""
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    json.dump(failed, sys.stdout)


if __name__ == "__main__":
    main()

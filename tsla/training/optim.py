"""AdamW over sensible parameter groups, with linear warm-up and a decay."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class OptimSettings(NamedTuple):
    """How weights are changed.

    lr: peak;  final_lr: fraction of it at the end;  warmup_steps: optimiser steps;  clip_norm: 0 = none;  decay:
    ``"cosine"``, or ``"rsqrt"``, by the root of all steps, with the peak where warm-up ends.
    """

    lr: float
    final_lr: float
    warmup_steps: int
    weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float
    decay: str = "cosine"


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); weight decay on matrices and kernels only.

    Decay pulls towards zero, which is no place for a norm's scale, a bias, an embedding or any other vector; nor for
    what a module names in `undecayed`, its own parameters that are vectors for each of its heads.
    """
    spared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    spared |= {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "undecayed", ())}
    learnt = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in learnt if p.dim() >= 2 and id(p) not in spared]
    kept = [p for p in learnt if p.dim() < 2 or id(p) in spared]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


def schedule(settings: OptimSettings, progress: Callable[[], float]) -> Callable[[int], float]:
    """Factor of the peak learning rate after `step` steps: linear warm-up times a decay, cosine over `progress`."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
        if settings.decay == "rsqrt":
            return warm * math.sqrt((settings.warmup_steps + 1) / max(step + 1, settings.warmup_steps + 1))
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress())))
        return warm * (settings.final_lr + (1 - settings.final_lr) * decay)

    return factor

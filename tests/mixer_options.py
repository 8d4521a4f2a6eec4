"""What each option of a mixer changes, alone; see `test_dead_options`."""

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import NamedTuple

import torch
import train_runs as runs
from torch.utils.flop_counter import FlopCounterMode

from tsla import build
from tsla.config import Config, members
from tsla.config.mixers import HeadsConfig
from tsla.training.redraw import Redraw

SHIFT = ("mixer=taylorshift",)
POLY = ("mixer=taylor_poly",)
PERFORMER = ("mixer=performer",)
SCATTERBRAIN = ("mixer=scatterbrain",)
LSH = (*SCATTERBRAIN, "mixer.support=lsh")
CONV = ("mixer=gated_conv",)
LUNA = ("mixer=luna",)
LINFORMER = ("mixer=linformer",)
PRIMAL = ("mixer=primal",)
ONE_WAY = ("model.causal=true",)


class Case(NamedTuple):
    """`arguments` beside SMALL, then the option takes each of `values` in turn; all that is seen differs."""

    see: Callable[[Config], object]
    values: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    error: str | None = None  # the last value raises it


def heads(*arguments: str) -> dict[str, Case]:
    """The options that all mixers with heads share."""
    local = (*arguments, "mixer.local_heads=1")
    return {
        "heads": Case(model, ("2", "4"), arguments),
        "head_dim": Case(model, ("null", "4", "16"), arguments),
        "value_dim": Case(model, ("null", "4", "5"), arguments),
        "kv_heads": Case(model, ("null", "1"), arguments),
        "gate": Case(model, ("false", "true"), arguments),
        "qk_norm": Case(model, ("false", "true"), arguments),
        "bias": Case(model, ("false", "true"), arguments),
        "dropout": Case(model, ("0.1", "0.5", "null"), arguments),
        "output_projection": Case(model, ("true", "false"), arguments),
        "token_shift": Case(model, ("false", "true"), arguments),
        "local_heads": Case(model, ("0", "1"), arguments),
        "local_window": Case(model, ("2", "3"), local),
    }


def model(config: Config) -> object:
    """Shapes, outputs and added loss in training, and the operations of a step."""
    torch.manual_seed(0)
    made = build.build_model(config.model, config.mixer, runs.spec(image=(8, 8))).train()
    ids = torch.arange(1, 129).reshape(2, 64) % 17 + 1
    with FlopCounterMode(display=False) as counter:
        logits, aux = made.run(ids, torch.arange(64) < torch.tensor([[64], [40]]))
        logits.square().sum().backward()
    return [tuple(p.shape) for p in made.parameters()], logits.tolist(), aux, counter.get_total_flops()


def drawn(config: Config) -> object:
    """Random features after each of a few optimiser steps."""
    torch.manual_seed(0)
    made, callback, seen = build.build_model(config.model, config.mixer, runs.spec()), Redraw(0), []
    for step in range(1, 7):
        callback.on_train_batch_end(SimpleNamespace(global_step=step), made, None, None, 0)
        seen.append([b.double().sum().item() for b in made.buffers()])
    return seen


MIXERS: dict[str, dict[str, Case]] = {
    "NoneConfig": {"name": Case(model, ("none", "taylor"))},
    "TaylorConfig": {
        "name": Case(model, ("taylor", "softmax")),
        **heads("mixer=taylor"),
        "order": Case(model, ("0", "2", "4", "3"), (), "mixer.order (3) must be even"),
        "center": Case(model, ("zero", "mean")),
        "decay": Case(model, ("none", "fixed", "selective")),
        "impl": Case(model, ("direct", "linear")),
        "crossover": Case(model, ("0", "100")),
    },
    "TaylorShiftConfig": {
        "name": Case(model, ("taylorshift", "taylor")),
        **heads("mixer=taylorshift"),
        "a": Case(model, ("0.5", "0.7", "0.1"), SHIFT, "mixer.c (1.0) must be at least b^2 / (4 a) (2.5)"),
        "b": Case(model, ("1", "0.5", "0"), SHIFT),
        "c": Case(model, ("1", "2"), SHIFT),
        "normalize": Case(model, ("true", "false"), SHIFT),
        "scale_output": Case(model, ("true", "false"), SHIFT),
        "impl": Case(model, ("direct", "linear"), SHIFT),
        "crossover": Case(model, ("0", "100"), SHIFT),
    },
    "TaylorPolyConfig": {
        "name": Case(model, ("taylor_poly", "taylor")),
        **heads("mixer=taylor_poly"),
        "order": Case(model, ("0", "2", "4", "3"), POLY, "mixer.order (3) must be even"),
        "normalize_first": Case(model, ("false", "true"), POLY),
        "root": Case(model, ("none", "value", "sigmoid"), POLY),
        "impl": Case(model, ("direct", "linear"), POLY),
        "crossover": Case(model, ("0", "100"), POLY),
    },
    "SoftmaxConfig": {"name": Case(model, ("softmax", "taylor")), **heads("mixer=softmax")},
    "WindowConfig": {
        "name": Case(model, ("window", "none")),
        **heads("mixer=window"),
        "window": Case(model, ("0", "1", "2"), ("mixer=window",)),
    },
    "LinearConfig": {
        "name": Case(model, ("linear", "none")),
        **heads("mixer=linear"),
        "map": Case(model, ("elu", "relu", "cosine", "rebased", "taylor", "t2r"), ("mixer=linear", "mixer.bias=true")),
        "horizon": Case(model, ("null", "70"), ("mixer=linear", "mixer.map=cosine")),
    },
    "PerformerConfig": {
        "name": Case(model, ("performer", "none")),
        **heads(*PERFORMER),
        "features": Case(model, ("null", "4", "3"), PERFORMER, "mixer.features (3) must be even: they come in pairs"),
        "kind": Case(model, ("hyperbolic", "positive", "relu"), PERFORMER),
        "scaling": Case(model, ("random", "fixed"), PERFORMER),
        "redraw_every": Case(drawn, ("1", "3", "null"), PERFORMER),
    },
    **{
        cls: {
            "name": Case(model, (name, "none"), more),
            **heads(f"mixer={name}", *more),
            "features": Case(model, ("null", "4", "3"), (f"mixer={name}", *more), "mixer.features (3) must be even"),
            "kind": Case(model, ("gaussian", "arccos"), (f"mixer={name}", *more)),
            "redraw_every": Case(drawn, ("1", "3", "null"), (f"mixer={name}", *more)),
        }
        for cls, name, more in (("RFAConfig", "rfa", ()), ("RFAGateConfig", "rfa_gate", ONE_WAY))
    },
    "LinformerConfig": {
        "name": Case(model, ("linformer", "none")),
        **heads(*LINFORMER),
        "rank": Case(model, ("null", "4", "65"), LINFORMER, "rank (65) must be at most max_length (64)"),
        "sharing": Case(model, ("none", "head", "kv", "layer"), LINFORMER),
        "max_length": Case(model, ("null", "70", "63"), LINFORMER, "mixer.max_length (63) must be at least"),
    },
    "PrimalConfig": {
        "name": Case(model, ("primal", "none")),
        "heads": Case(model, ("2", "4", "3"), PRIMAL, "mixer.heads (3) must divide model.dim (16)"),
        "rank": Case(model, ("20", "4"), PRIMAL),
        "rank_multi": Case(model, ("null", "4"), PRIMAL),
        "bias": Case(model, ("false", "true"), PRIMAL),
        "dropout": Case(model, ("0.1", "0.5", "null"), PRIMAL),
        "ksvd": Case(model, ("0", "0.05", "0.1"), PRIMAL),
        "trace": Case(model, ("parameters", "weights"), PRIMAL),
    },
    "ScatterbrainConfig": {
        "name": Case(model, ("scatterbrain", "none")),
        **heads(*SCATTERBRAIN),
        "support": Case(model, ("local", "lsh"), SCATTERBRAIN),
        "window": Case(model, ("0", "3", "null", "5"), SCATTERBRAIN),
        "cluster": Case(model, ("null", "4", "5"), LSH),
        "rounds": Case(model, ("null", "1", "3"), LSH),
        "map": Case(model, ("favor", "taylor", "hedgehog", "elu"), (*SCATTERBRAIN, "mixer.window=2")),
        "features": Case(model, ("null", "4", "3"), SCATTERBRAIN, "mixer.features (3) must be even"),
        "redraw_every": Case(drawn, ("1", "3", "null"), SCATTERBRAIN),
    },
    "GatedConvConfig": {
        "name": Case(model, ("gated_conv", "none")),
        "kernel": Case(model, ("1", "3", "4"), CONV),
        "expand": Case(model, ("1", "2"), CONV),
        "dropout": Case(model, ("0.1", "0.5", "null"), CONV),
    },
    "LunaConfig": {
        "name": Case(model, ("luna", "none")),
        "heads": Case(model, ("2", "4", "5"), LUNA, "mixer.heads (5) must divide model.dim (16)"),
        "slots": Case(model, ("3", "4"), LUNA),
        "tie_kv": Case(model, ("true", "false"), LUNA),
        "bias": Case(model, ("true", "false"), LUNA),
        "dropout": Case(model, ("0.1", "0.5", "null"), LUNA),
    },
}  # fmt: skip


def derived(name: str, cls: type) -> dict[str, Case]:
    """Cases of a mixer that has no line above, from what its dataclass says of its options."""
    one_way = ONE_WAY if cls.directions == {"causal"} else ()
    chosen, own = (f"mixer={name}", *one_way), {}
    shared = heads(*chosen) if issubclass(cls, HeadsConfig) else {}
    for f in fields(cls):
        rule, default = f.metadata, f.default
        if rule["choices"]:
            values = tuple(rule["choices"])
        elif isinstance(default, bool):
            values = ("true", "false")
        else:
            start = default if default is not None else 2 + (rule["low"] or rule["above"] or 0)
            values = (str(start), str(start + 2 if isinstance(start, int) else start * 1.25))
        own[f.name] = Case(model, values, chosen)
    return own | shared | {"name": Case(model, (name, "none"), one_way)}


MIXERS |= {cls.__name__: derived(name, cls) for name, cls in members("mixer").items() if cls.__name__ not in MIXERS}

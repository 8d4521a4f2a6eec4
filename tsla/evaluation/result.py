"""What a run reports: result.json, and the table and line it ends with."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tsla.evaluation.evaluate import Scores
from tsla.evaluation.plateau import plateau_of
from tsla.models import Account
from tsla.training.fit import Fitted
from tsla.training.objective import Objective
from tsla.training.run_dir import peak_memory_bytes
from tsla.training.terminal import clock_time


def make_result(
    what: Mapping[str, Any], costs: Account, fitted: Fitted, tested: Scores, objective: Objective,
    references: Mapping[str, float], provenance: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The content of result.json: fractions 0-1, nats, seconds, bytes. Test metrics are of the best checkpoint."""
    scores = scores_of(objective, tested, references, "test")
    scores["metrics"][f"val/{objective.monitor}"] = fitted.best_score
    return {
        **what,
        "params": costs.parameters,
        **scores,
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "train_tokens_per_second": fitted.tokens_per_second,
        "flops_per_token": costs.flops_per_token,
        "state_bytes": costs.state_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
        **provenance,
    }


def scores_of(
    objective: Objective, scores: Scores, references: Mapping[str, float], split: str
) -> dict[str, Any]:  # fmt: skip
    """What a JSON file says of the scores on a split, those of slices too, beside the trivial rules."""
    return {
        "monitor": objective.monitor,
        "metrics": {f"{split}/{name}": value for name, value in scores.metrics.items()},
        "slice_score": objective.slice_score,
        "slices": {name: [part._asdict() for part in parts] for name, parts in scores.slices.items()},
        "references": dict(references),
        "plateau": plateau_of(scores.metrics[objective.monitor], references),
    }


def score_table(name: str, heading: str, score: float, references: Mapping[str, float]) -> Table:
    """The model's score under a heading, beside the references; rows in rising order, the model's own stands out."""
    table = Table()
    table.add_column("")
    table.add_column(heading, justify="right")
    for label, value in sorted([*references.items(), (name, score)], key=lambda row: row[1]):
        style = "bold green" if label == name else "dim"
        table.add_row(label, f"{value:.3f}", style=style)
    return table


def slice_table(name: str, parts: list[Mapping[str, Any]], heading: str) -> Table:
    """Scores by the values of one slice."""
    table = Table()
    table.add_column(name)
    table.add_column("items", justify="right")
    table.add_column(heading, justify="right")
    for part in parts:
        table.add_row(part["value"], f"{part['items']:,}", f"{part['score']:.3f}")
    return table


def cost_line(result: Mapping[str, Any]) -> str:
    """Parameters, state, time and speed of a run, in one line."""
    speed = f"{result['train_tokens_per_second']:,.0f} tokens/s"
    return (
        f"{result['params']:,} parameters, {result['state_bytes'] / 1024:,.0f} KiB of state, "
        f"{result['steps']:,} steps in {clock_time(result['seconds'])} at {speed}, "
        f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"
    )


def pretrain_line(found: Mapping[str, Any]) -> str:
    """How a run was pretrained, in one line, from what its result.json says of it."""
    hidden = f", {found['mask']:.0%} hidden" if "mask" in found else ""
    loss = found["metrics"]["val/loss"]
    return (
        f"pretrained: {found['name']}{hidden}, {found['steps']:,} steps, {found['tokens']:,} tokens in "
        f"{clock_time(found['seconds'])}, validation loss {'-' if loss is None else f'{loss:.3f}'}"
    )

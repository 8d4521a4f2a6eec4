"""What a run reports: result.json, and the table and line it ends with."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tsla.models import Account
from tsla.training.fit import Fitted
from tsla.training.run_dir import peak_memory_bytes


def make_result(
    what: Mapping[str, Any], costs: Account, fitted: Fitted, tested: Mapping[str, float],
    references: Mapping[str, float], provenance: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The content of result.json: fractions 0-1, nats, seconds, bytes. Test metrics are of the best checkpoint."""
    return {
        **what,
        "params": costs.parameters,
        "metrics": {
            "test/accuracy": tested["accuracy"],
            "test/loss": tested["loss"],
            "val/accuracy": fitted.best_val_accuracy,
        },
        "references": dict(references),
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "train_tokens_per_second": fitted.tokens_per_second,
        "flops_per_token": costs.flops_per_token,
        "state_bytes": costs.state_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
        **provenance,
    }


def accuracy_table(name: str, accuracy: float, references: Mapping[str, float]) -> Table:
    """Rows in rising accuracy; the model's own stands out."""
    table = Table()
    table.add_column("")
    table.add_column("test accuracy", justify="right")
    for label, value in sorted([*references.items(), (name, accuracy)], key=lambda row: row[1]):
        style = "bold green" if label == name else "dim"
        table.add_row(label, f"{value:.3f}", style=style)
    return table


def cost_line(result: Mapping[str, Any]) -> str:
    """Parameters, state, time and speed of a run, in one line."""
    minutes, seconds = divmod(round(result["seconds"]), 60)
    return (
        f"{result['params']:,} parameters, {result['state_bytes'] / 1024:,.0f} KiB of state, "
        f"{result['steps']:,} steps in {minutes}:{seconds:02} at {result['train_tokens_per_second']:,.0f} tokens/s, "
        f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"
    )

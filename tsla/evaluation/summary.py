"""The table a run ends with: its accuracy among the reference lines, and what it cost."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def accuracy_table(title: str, name: str, accuracy: float, references: Mapping[str, float]) -> Table:
    """Rows in rising accuracy; the model's own stands out."""
    table = Table(title=title, title_justify="left", title_style="bold")
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

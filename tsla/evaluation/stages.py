"""The table of a distillation: what teacher and student are worth after each stage; kept as it grows."""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from tsla.evaluation.attention import AttentionScores
from tsla.training.run_dir import write_json, write_text

NAMES = ("entropy", "monotonicity", "kl")


class StageTable:
    """Rows of scores by stage, in distill.json after each, and in distill.csv and distill.md.

    Args:
        folder: where the files go; the rows that a distill.json there has are had.
        facts: what else distill.json says.
        monitor: the task's score.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], monitor: str) -> None:
        self.folder, self.facts = folder, dict(facts)
        self.scores = (f"val/{monitor}", f"test/{monitor}")
        self.rows: list[dict[str, Any]] = []
        if (folder / "distill.json").exists():
            self.rows = json.loads((folder / "distill.json").read_text())["rows"]

    @property
    def content(self) -> dict[str, Any]:
        """What distill.json holds: the facts and the rows, numbers that there are not as None."""
        return {**self.facts, "rows": self.rows}

    def has(self, stage: str) -> bool:
        """Whether there is a row of that stage."""
        return any(row["stage"] == stage for row in self.rows)

    def add(self, stage: str, attention: AttentionScores | None, val: float, test: float) -> None:
        """Add a row, and write it all."""
        found = [None] * len(NAMES) if attention is None else [x if math.isfinite(x) else None for x in attention]
        self.rows.append({"stage": stage, **dict(zip((*NAMES, *self.scores), (*found, val, test), strict=True))})
        write_json(self.folder / "distill.json", self.content)
        write_text(self.folder / "distill.csv", self._csv())
        write_text(self.folder / "distill.md", self.markdown())

    def as_table(self) -> Table:
        """For the terminal, of 80 columns too."""
        _, *cells = self._cells()
        table = Table(caption=f"val, test: {self.scores[0].partition('/')[2]}; KL in nats", caption_justify="left")
        table.add_column("", no_wrap=True)
        for name in (*NAMES[:2], "KL", "val", "test"):
            table.add_column(name, justify="right")
        for row in cells:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The command, and the table."""
        heading, *cells = self._cells()
        rule = ["---", *["---:"] * (len(heading) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (heading, rule, *cells)]
        return "\n".join([f"`{self.facts['command']}`", "", *lines, ""])

    def _cells(self) -> list[list[str]]:
        heading = ["", "entropy", "monotonicity", "KL (nats)", *(name.replace("/", " ") for name in self.scores)]
        names = (*NAMES, *self.scores)
        return [heading, *([row["stage"], *("-" if row[n] is None else f"{row[n]:.3f}" for n in names)]
                           for row in self.rows)]  # fmt: skip

    def _csv(self) -> str:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, ["stage", *NAMES, *self.scores], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue()

"""Writes the table of recipes in docs/lra.md: what each costs, counted on the meta device, without data or a GPU.

python scripts/lra_recipes.py
"""

from pathlib import Path

import torch

from tsla import build
from tsla.config import compose
from tsla.config.compose import group_choices
from tsla.models import account
from tsla.models.account import account_step
from tsla.tasks.base import TaskSpec
from tsla.tasks.characters import PRINTABLE, vocab_size
from tsla.tasks.listops import LENGTHS
from tsla.tasks.listops_grammar import TOKENS
from tsla.tasks.pathfinder import SIZES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lra.md"
RECIPES = [name for name in group_choices("experiment") if name.startswith("lra_")]
MARKS = ("<!-- recipes -->\n", "<!-- /recipes -->\n")
REVIEWS = 135  # ids of S4's vocabulary of IMDb, which is made from its texts
BYTES = 257


def published(task: str, protocol: str, kind: str = "tokens") -> TaskSpec:
    """The spec of a task of Long Range Arena as it is once the published data are read."""
    of_s4 = protocol == "s4"
    match task:
        case "listops":
            return TaskSpec(task, task, "class", 10, LENGTHS[protocol], len(TOKENS))
        case "text":
            return TaskSpec(task, "bytes", "class", 2, 4096, REVIEWS if of_s4 else BYTES)
        case "retrieval":
            words = vocab_size(PRINTABLE) if of_s4 else BYTES
            return TaskSpec(task, "bytes", "class", 2, 4000, words, pairs="nli" if of_s4 else "concat")
        case _:
            side = SIZES.get(task, 32)
            words, channels = (None, 1) if kind == "series" else (BYTES, None)
            outputs = 10 if task == "image" else 2
            return TaskSpec(task, kind, "class", outputs, side**2, words, channels, image=(side, side))


def row(name: str) -> str:
    """The line of a recipe."""
    config = compose([f"experiment={name}", "task.path=x"])
    task = config.task
    spec = published(task.name, config.task.protocol, getattr(task, "kind", "tokens"))
    with torch.device("meta"):
        model = build.build_model(config.model, config.mixer, spec)
    rows, steps = config.trainer.batch_rows, config.trainer.max_steps
    one = account_step(model, spec.max_length, 1, channels=spec.channels)
    costs = account(model, spec.max_length, channels=spec.channels)
    tokens = f"{rows} x {'2 x ' * bool(spec.pairs)}{spec.max_length:,}"
    memory = (one.held_bytes + rows * one.kept_bytes) / 2**30
    cells = [f"`{name}`", f"{config.model.depth} x {config.model.dim}", f"{costs.parameters:,}", tokens, f"{steps:,}",
             f"{rows * one.flops:.2g}", f"{steps * rows * one.flops:.2g}", f"{memory:.1f} GiB"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def section() -> str:
    """The table."""
    head = ["experiment", "layers x width", "parameters", "tokens of a step", "steps", "operations of a step",
            "of all steps", "memory"]  # fmt: skip
    rule = ["---", "---"] + ["---:"] * (len(head) - 2)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule)]
    return "\n".join([*lines, *map(row, RECIPES)]) + "\n"


def written(page: str, table: str) -> str:
    """The page with this table between its marks."""
    before, after = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    return page[:before] + table + page[after:]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), section()))

"""Tiny data of every task of Long Range Arena, in the forms in which its own lie on a disk."""

from pathlib import Path

import image_cases
import listops_cases
import pathfinder_cases
import pytest
import text_cases

from tsla.config.compose import group_choices

RECIPES = [name for name in group_choices("experiment") if name.startswith("lra_")]


def write(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the data of a recipe's task below `folder`; returns the arguments that read them, on a CPU, in short."""
    task, path = recipe.split("_")[1], folder / recipe
    short = ["trainer.batch_rows=2", "trainer.compile=false", f"task.path={path}"]
    match task:
        case "listops":
            listops_cases.small(monkeypatch)
            listops_cases.write_files(path, listops_cases.FILES)
        case "text":
            text_cases.small(monkeypatch)
            text_cases.reviews(path)
            short.append("task.max_length=60")
        case "retrieval":
            text_cases.small(monkeypatch)
            text_cases.papers(path)
            short.append("task.max_length=60")
        case "image":
            image_cases.installed(monkeypatch, folder)
            image_cases.write_cifar(path)
            short += ["task.train_rows=4", "task.eval_rows=2"]
        case _:
            pathfinder_cases.write(path, per_batch=(10,), size={"pathfinder": 32, "pathx": 128}[task])
            short += ["task.train_rows=4", "task.eval_rows=1"]
    return short

"""What the tests of the commands share: a folder of their own, few rounds, one thread."""

import csv
from pathlib import Path

import pytest
import torch


@pytest.fixture
def few_rounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tsla.bench.timing.FEWEST", 2)
    monkeypatch.setattr("tsla.bench.timing.MOST", 2)
    torch.set_num_threads(1)


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))

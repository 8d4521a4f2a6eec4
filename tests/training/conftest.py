"""Runs that several test files compare with."""

from pathlib import Path

import pytest
import torch
import train_runs as runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains each kind of run once, uninterrupted."""
    trained: dict[str, Path] = {}

    def get(kind: str) -> Path:
        torch.set_num_threads(1)
        if kind not in trained:
            folder = tmp_path_factory.mktemp(kind)
            data = f"data_dir={tmp_path_factory.getbasetemp() / 'data'}"
            assert runs.train(*runs.KINDS[kind], data, f"run_dir={folder / 'run'}") == 0
            trained[kind] = folder / "run"
        return trained[kind]

    return get

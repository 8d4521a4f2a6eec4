"""docs/results/long_range.md: its tables are made of the committed results, each of which is of its own cell."""

import json
import shlex
from dataclasses import replace

import pytest
from script_files import load_script

from tsla.config import compose
from tsla.config.grid import cells_of, read_suite

SCRIPT = load_script("long_range_tables")


def test_the_tables_are_those_of_the_results():
    text = SCRIPT.PAGE.read_text()
    assert SCRIPT.page(text) == text
    assert all(f"<!-- {name} -->\n|" in text for name in SCRIPT.TABLES)


@pytest.mark.parametrize("name", SCRIPT.SUITES)
def test_every_result_is_of_its_cell(name):
    cells = {cell.name: cell.config for cell in cells_of(read_suite(SCRIPT.SUITES[name]))}
    files = sorted((SCRIPT.RESULTS / name).glob("*.json"))
    assert files
    for file in files:
        result, config = json.loads(file.read_text()), cells[file.stem]
        assert result["seed"] == config.seed and result["experiment"] == config.experiment
        made = compose(shlex.split(result["command"])[2:])
        assert replace(made, run_dir=None) == replace(config, run_dir=None)

"""docs/parity.md: the rows are the cases of its script, each still within its tolerance, on the page and when run."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from parity_cases import LINFORMER, PERFORMER
from script_files import load_script

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "parity.md").read_text()


script = load_script("parity_tables")


def rows():
    """Case name, errors (None where there are none) and tolerance of every row of the page."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        package = re.split(r"[ ,]\s*(?=[\d]|in ten)", section.splitlines()[0])[0]
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 5 and re.match(r"\d", cells[2]):
                numbers = [float(cell) if cell else None for cell in cells[2:]]
                found.append((f"{package} | {cells[0]} | {cells[1]}", *numbers))
    return found


def test_the_rows_are_the_cases_of_the_script():
    names = [case.name for case in script.CASES]
    assert len(set(names)) == len(names) > 50
    assert [name for name, *_ in rows()] == names, f"make the page anew: {script.COMMAND}"
    assert script.COMMAND in PAGE


def test_every_error_on_the_page_is_below_its_tolerance():
    for (name, output, gradients, tolerance), case in zip(rows(), script.CASES, strict=True):
        assert tolerance == case.tolerance and output <= tolerance, name
        assert (gradients is not None) == case.gradients and (gradients or 0.0) <= tolerance, name


def test_the_versions_are_those_that_are_pinned():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    for package in (script.SERIES, script.LOCAL, script.FLA, PERFORMER, LINFORMER):
        (release,) = re.findall(rf"^## {package} (\S+)$", PAGE, re.MULTILINE)
        assert f"{package}=={release}" in lock


@pytest.mark.parametrize("case", script.CASES, ids=lambda case: case.name)
def test_what_the_page_says_holds(case):
    if case.package != script.VECTORS:
        try:
            version(case.package)
        except PackageNotFoundError:
            pytest.skip(f"{case.package} is not installed")
    output, gradients = script.errors(case)
    assert output <= case.tolerance and (gradients or 0.0) <= case.tolerance

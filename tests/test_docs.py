"""What the README, the pages of docs and the docstrings show works as it stands."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch

import tsla
from tsla import cli
from tsla.bench.options import parse_attention, parse_crossover, parse_decode, parse_mixers, parse_model
from tsla.config import compose
from tsla.config.distill import parse_distill
from tsla.config.grid import cells_of, find_suite, read_suite, suite_of
from tsla.data_command import composed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))} | {"README.md": README}
PYTHON = [
    (name, block)
    for name, text in PAGES.items()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
SHELL = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [
    shlex.split(line, comments=True)
    for block in SHELL
    for line in block.splitlines()
    if shlex.split(line, comments=True)
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
MODULES = [name for _, name, _ in pkgutil.walk_packages(tsla.__path__, "tsla.")]


def test_the_readme_has_code():
    assert "README.md" in dict(PYTHON) and len(LINES) >= 5
    for text in PAGES.values():
        fences = re.findall(r"^```(\S*)$", text, re.MULTILINE)
        assert len(fences) == 2 * len(re.findall(r"^```\S+$", text, re.MULTILINE))  # every block names its language
    assert [line for line in LINES if line[0] == "make"][:2] == [["make", "quickstart"], ["make", "test"]]


def test_there_are_ten_examples():
    sections = PAGES["examples.md"].split("\n## ")[1:]
    assert [section.split(".")[0] for section in sections] == [str(place) for place in range(1, 11)]
    assert all(section.count("\n```python\n") == 1 for section in sections)


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page}-{at}" for at, (page, _) in enumerate(PYTHON)])
def test_python_blocks_run(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, page, "exec"), names)  # our own file
    assert len(names) > 1


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_commands_are_there(line, tmp_path, monkeypatch, capsys):
    """Each command is known; what it names of a past run is only looked for."""
    monkeypatch.chdir(tmp_path)
    match line:
        case ["make", target]:
            assert target in TARGETS
        case ["tsla", "train", "--help"] | ["tsla", "info" | "--help" | "--version"]:
            assert cli.main(line[1:]) == 0
        case ["tsla", "train", resume] if resume.startswith("resume="):
            assert cli.main(line[1:]) == 2
            assert "a run directory with a config.yaml" in capsys.readouterr().err
        case ["tsla", "distill", resume] if resume.startswith("resume="):
            assert cli.main(line[1:]) == 2
            assert "must be a run of tsla distill" in capsys.readouterr().err
        case ["tsla", "distill", *arguments]:
            assert parse_distill(arguments).mixer
        case ["tsla", "train", *arguments]:
            assert compose(arguments)
        case ["tsla", "suite", name, *_] if "=" not in name:
            assert cells_of(read_suite(find_suite(name)))
        case ["tsla", "suite", *arguments]:
            assert cells_of(suite_of(arguments))
        case ["tsla", "data", "inspect", *_]:
            assert cli.main(line[1:]) == 1
            assert "is not on this disk" in capsys.readouterr().err
        case ["tsla", "data", "list"]:
            assert cli.main(line[1:]) == 0
        case ["tsla", "data", "prepare" | "verify" | "baselines", name, *arguments]:
            assert composed(name, arguments)
        case ["tsla", "eval" | "report" | "predict", *_]:
            assert cli.main(line[1:]) == 2
            assert "does not exist" in capsys.readouterr().err
        case ["tsla", "bench", name, *arguments]:
            parsers = {"attention": parse_attention, "model": parse_model, "mixers": parse_mixers,
                       "decode": parse_decode, "crossover": parse_crossover}  # fmt: skip
            assert parsers[name](arguments)
        case [script, *_] if script.startswith("scripts/"):
            assert (ROOT / script).is_file()
        case _:
            pytest.fail(f"unknown command: {shlex.join(line)}")


def test_your_own_data_in_five_commands(tmp_path, monkeypatch, capsys):
    """Word for word, but for a model and a training that are tiny."""
    monkeypatch.chdir(tmp_path)
    for place, kind in enumerate(("good", "bad")):
        for number in range(30):
            path = tmp_path / "reviews" / kind / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"film number {number} was {('fine', 'dull')[place]}")
    (tmp_path / "new.csv").write_text("text\nfilm number 99 was fine\n")
    (block,) = (block for block in SHELL if "data inspect" in block)
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [line[0] for line in lines] == ["data", "train", "eval", "predict", "report"]
    lines[1] += ["trainer.max_steps=2", "model.dim=16", "trainer.accelerator=cpu", "data_dir=data"]
    assert [cli.main(line) for line in lines] == [0] * 5
    out = capsys.readouterr().out
    assert "tsla train experiment=files task.path=reviews" in out and "report/report.html" in out
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1].split(",")[1] in ("good", "bad")


def test_inline_commands_compose():
    """Also those in running text and tables, such as `tsla train experiment=digits`."""
    found = re.findall(r"`(tsla [^`]+)`", README)
    for command in found:
        words = shlex.split(command)
        assert words[1] in ("train", "suite", "report", "data", "bench", "info", "distill", "--help", "--version"), (
            command
        )
        assert words[1] != "info" or words[2:] in ([], ["--build"])
        if words[1] == "suite":
            assert not words[2:] or cells_of(read_suite(ROOT / words[2]))
        if words[1] == "train" and "--help" not in words and not any("resume" in word for word in words):
            assert compose(words[2:])


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (folder / target).exists(), f"{name}: {target}"


def test_the_help_shows_commands_that_compose():
    lines = [line for line in cli.HELP.split("examples")[1].splitlines() if line.strip().startswith("tsla train")]
    assert len(lines) >= 3
    for line in lines:
        assert compose(re.split(r"\s{3,}", line.strip())[0].split()[2:])


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    names = {public: getattr(tsla, public) for public in tsla.__all__} | {"torch": torch}
    assert module.__doc__
    for test in doctest.DocTestFinder(recurse=True).find(module, name):
        own = dict(names)
        for example in test.examples:
            exec(compile(example.source, f"{test.name}", "single"), own)

"""docs/mixers.md: its table is what the committed results say, of every mixer, and its verdict follows from them."""

import pytest
from script_files import load_script

from tsla.config.mixers import MIXERS


@pytest.fixture(scope="module")
def script():
    return load_script("mixers_table")


def test_the_page_is_what_the_script_writes(script):
    page = script.PAGE.read_text()
    assert script.written(page, script.section()) == page


def test_every_mixer_has_its_rows(script):
    lines = script.section().splitlines()
    for name in MIXERS:
        (line, *_) = (line for line in lines if line.startswith(f"| `{name}`"))
        assert "tokens" not in line and line.count("|") == 8
        assert line.split("|")[5:7] != [" – ", " – "], f"{name} has no costs"


def row(mixer, task, *values):
    mean = sum(values) / len(values)
    return {"mixer": mixer, "task": task, "mean": str(mean), "min": str(min(values)), "max": str(max(values)),
            "seeds": str(len(values))}  # fmt: skip


def test_the_verdict(script):
    """Above the control row by more than seeds differ, on either of two tasks."""
    whole = [
        row("none", "mqar", 0.01), row("a", "mqar", 0.5), row("b", "mqar", 0.03), row("c", "mqar", 0.05),
        row("none", "listops_short", 0.26), row("b", "listops_short", 0.29), row("c", "listops_short", 0.40),
        row("a", "listops_short", 0.27),
    ]  # fmt: skip
    seeds = [row("none", "mqar", 0.0, 0.02), row("a", "mqar", 0.45, 0.49), row("none", "listops_short", 0.24, 0.28)]
    found = script.scores(whole, seeds)
    assert sorted(found["none", "mqar"]) == [0.0, 0.01, 0.02]
    assert script.spread(found, "mqar") == pytest.approx(0.05)
    assert script.spread(found, "listops_short") == pytest.approx(0.04)
    assert script.untrained(found) == ["b"]
    told = script.verdict(found)
    assert "On `mqar` the best seed of `none` has 0.020" in told and "differ by 0.050 at most" in told
    assert "all but `b`, `c` are further above it" in told and told.endswith("So all but `b` count as trained.")


def test_three_seeds_are_told_from_their_mean(script):
    found = script.scores([row("a", "digits", 0.9, 0.7, 0.85)], [])
    assert sorted(found["a", "digits"]) == pytest.approx([0.7, 0.85, 0.9])

"""docs/softmax_error.md: some of its numbers computed again, what it says of them, and its figure."""

import re
from pathlib import Path

import pytest
import torch
from script_files import load_script
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "softmax_error.md").read_text()


script = load_script("softmax_error")
Scores = script.Scores


def tables():
    """Head and rows, by their first cell, of each table of the page."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append((head, {name: [float(cell) for cell in cells] for name, *cells in rows}))
    return found


SPREAD, NARROW, WIDE, WIDTH = tables()


def column(table, name):
    """The numbers under a head, from the first row to the last."""
    head, rows = table
    return [cells[head.index(name) - 1] for cells in rows.values()]


def test_the_page_names_its_command_and_has_all_rows():
    assert script.COMMAND in PAGE and "softmax_error.png" in PAGE
    assert list(SPREAD[1]) == [f"{spread:g}" for spread in script.SPREADS]
    assert list(NARROW[1]) == list(WIDE[1]) == [f"{mean:g}" for mean in script.MEANS]
    assert list(WIDTH[1])[:-1] == [str(d) for d in script.DIMS]


@pytest.mark.parametrize(
    ("table", "row", "name", "scores", "order", "center"),
    [
        (SPREAD, "0.5", "order 2", Scores(spread=0.5), 2, "zero"),
        (SPREAD, "1", "order 4", Scores(spread=1.0), 4, "zero"),
        (NARROW, "2", 'order 2, "zero"', Scores(2.0), 2, "zero"),
        (NARROW, "-2", 'order 2, "mean"', Scores(-2.0), 2, "mean"),
        (WIDE, "3", 'order 4, "mean"', Scores(3.0, 1.0), 4, "mean"),
        (WIDTH, "64", "spread 0.35, order 2", Scores(d=64), 2, "zero"),
        (WIDTH, "queries of one length", "spread 1, order 2", Scores(spread=1.0, normal=True), 2, "zero"),
    ],
)
def test_numbers_computed_again(table, row, name, scores, order, center):
    """As printed; rounding of sums may differ between machines."""
    head, rows = table
    assert rows[row][head.index(name) - 1] == pytest.approx(script.error(scores, order, center), rel=0.02)


@pytest.mark.parametrize("scores", [Scores(-1.0, 0.5), Scores(2.0, 1.0, 8), Scores(0.5, 3.0, normal=True)])
def test_scores_are_as_ordered(scores):
    q, k, _ = script.draw(scores)
    drawn = (q @ k.mT) * scores.d**-0.5
    assert drawn.mean().item() == pytest.approx(scores.mean, abs=0.01 * scores.spread)
    assert drawn.std().item() == pytest.approx(scores.spread, rel=0.03)
    assert not scores.normal or drawn.std(-1).std().item() < 0.03 * scores.spread


def test_the_error_by_the_formula():
    """Weights written out: those of softmax, and 1 + s + s^2 / 2 of scores less their mean."""
    q, k, v = script.draw(Scores(2.0))
    scores = q @ k.mT / 4
    exact, less = scores.softmax(-1) @ v, scores - scores.mean(-1, keepdim=True)
    weights = 1 + less + less.square() / 2
    ours = weights / weights.sum(-1, keepdim=True) @ v
    assert script.error(Scores(2.0), 2, "mean") == pytest.approx(((ours - exact).norm() / exact.norm()).item())


def test_what_the_page_says_of_orders():
    """Errors fall with the order, by less the wider the spread, and rise with the spread."""
    errors = torch.tensor([column(SPREAD, f"order {order}") for order in script.ORDERS], dtype=torch.float64)
    assert (errors.diff(dim=0) < 0).all() and (errors.diff(dim=1) > 0).all()
    gains = errors[2] / errors[1]
    assert (gains.diff() > 0).all() and gains[0] < 0.01 and gains[-1] > 0.8
    at = {spread: errors[:, place] for place, spread in enumerate(script.SPREADS)}
    assert at[0.5][1] < 0.1 and at[1.0][2] < at[1.0][1] / 2 and (at[2.0] > 0.5).all()


@pytest.mark.parametrize("table", [NARROW, WIDE])
@pytest.mark.parametrize("order", [2, 4, 6])
def test_what_the_page_says_of_centres(table, order):
    """Centring makes every mean as good as mean 0, where it neither helps nor hurts."""
    zero, mean = (torch.tensor(column(table, f'order {order}, "{kind}"')) for kind in ("zero", "mean"))
    place = script.MEANS.index(0.0)
    assert_close(mean, zero[place].expand(len(mean)), rtol=0.05, atol=0)
    assert (zero >= 0.95 * mean).all() and zero.argmin() == place
    assert zero[script.MEANS.index(2.0)] > (1.2 if table is WIDE else 4.0) * mean[place]


def test_what_the_page_says_of_negative_means():
    plain = SPREAD[1]["0.35"][0]
    assert NARROW[1]["-2"][0] > plain
    for order, lowest in ((2, -1.0), (4, -1.6), (6, -2.2)):
        s = torch.arange(-400, 100) / 100.0
        values = sum(s**p / torch.tensor(float(p + 1)).lgamma().exp() for p in range(order + 1))
        assert s[values.argmin()].item() == pytest.approx(lowest, abs=0.05)


def test_what_the_page_says_of_the_head_dim():
    for name in WIDTH[0][1:]:
        values = column(WIDTH, name)
        assert values == sorted(values, reverse=True)
    assert column(WIDTH, "spread 0.35, order 2")[0] < 1.5 * column(WIDTH, "spread 0.35, order 2")[-1]


def test_the_figure_is_small():
    picture = (ROOT / "docs" / "softmax_error.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000

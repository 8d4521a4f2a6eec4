"""Writes docs/softmax_error.md and its figure: how far Taylor attention is from softmax attention, in float64.

    python scripts/softmax_error.py

The tests run some of the rows again, and check the page against them.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tsla.evaluation.figures import DASHES, HUES, plotting
from tsla.ops import taylor_attention, taylor_feature_dim

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "docs" / "softmax_error.md", ROOT / "docs" / "softmax_error.png"
COMMAND = "python scripts/softmax_error.py"
SPREADS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
MEANS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
DIMS = (8, 16, 32, 64)
ORDERS = (0, 2, 4, 6)
NARROW, WIDE = 0.35, 1.0  # the spreads at which means and widths are compared
KEYS, QUERIES, DRAWS, VALUES = 1024, 32, 64, 64


class Scores(NamedTuple):
    """What scores to draw: their mean and standard deviation, the head dim, and whether queries have one length."""

    mean: float = 0.0
    spread: float = NARROW
    d: int = 16
    normal: bool = False


def draw(scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v: one coordinate of q and k is constant and makes the mean, the others are normal and make the spread.

    Of 64 independent sets, each of 32 queries, 1024 keys, and values of 64 normal numbers.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(length: int, width: int) -> Tensor:
        return torch.randn(DRAWS, 1, length, width, generator=generator, dtype=torch.float64)

    d = scores.d
    q, k, v = normal(QUERIES, d - 1), normal(KEYS, d - 1), normal(KEYS, VALUES)
    if scores.normal:
        q = q / q.square().mean(-1, keepdim=True).sqrt()
    one = torch.ones(DRAWS, 1, KEYS, 1, dtype=torch.float64)
    q = torch.cat([scores.mean * d**0.5 * one[:, :, :QUERIES], scores.spread * (d / (d - 1)) ** 0.5 * q], dim=-1)
    return q, torch.cat([one, k], dim=-1), v


@cache
def error(scores: Scores, order: int, center: str = "zero") -> float:
    """Size of the difference of the outputs of Taylor and softmax attention over that of the outputs of softmax."""
    q, k, v = draw(scores)
    exact = scaled_dot_product_attention(q, k, v)
    ours = taylor_attention(q, k, v, order=order, center=center, impl="direct").output
    return ((ours - exact).square().mean() / exact.square().mean()).sqrt().item()


# --- the page ---------------------------------------------------------------------------------------------------------


def shown(value: float) -> str:
    """Three digits, and two of what is below 0.1."""
    return f"{value:.3f}" if value >= 0.0995 else f"{value:#.2g}"


def table(head: Sequence[str], rows: Iterable[tuple[str, Iterable[float]]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(map(shown, values))} |" for name, values in rows])


def by_spread() -> str:
    rows = ((f"{spread:g}", (error(Scores(spread=spread), order) for order in ORDERS)) for spread in SPREADS)
    return table(("spread", *(f"order {order}" for order in ORDERS)), rows)


def by_mean(spread: float) -> str:
    kinds = [(order, center) for order in ORDERS[1:] for center in ("zero", "mean")]
    rows = ((f"{mean:g}", (error(Scores(mean, spread), *kind) for kind in kinds)) for mean in MEANS)
    return table(("mean", *(f'order {order}, "{center}"' for order, center in kinds)), rows)


def by_width() -> str:
    kinds = [(spread, order) for spread in (NARROW, WIDE) for order in ORDERS[1:]]
    widths = [(str(d), Scores(d=d)) for d in DIMS] + [("queries of one length", Scores(normal=True))]
    rows = ((name, (error(at._replace(spread=spread), order) for spread, order in kinds)) for name, at in widths)
    return table(("head dim", *(f"spread {spread:g}, order {order}" for spread, order in kinds)), rows)


def page() -> str:
    """The page, made by computing every number."""
    check = Scores(2.0, NARROW, normal=True)
    features = {order: taylor_feature_dim(16, order=order) for order in (2, 4)}
    narrow = taylor_feature_dim(8, order=4)
    return f"""\
# How near Taylor attention is to softmax attention

![Relative error against the spread of scores, against their mean, and against the head dim](softmax_error.png)

The Taylor polynomial of exp is near exp where scores are near 0. So what counts is how far the scores of a query,
`q.k / sqrt(head_dim)`, are **spread** over its keys (their standard deviation), how far their **mean** is from 0, and
the **order** of the polynomial. Numbers are relative errors of outputs: the rms of the difference from softmax
attention over the rms of softmax attention. Order 0 ignores the scores and takes the plain average of the values: its
column is what an error is worth. An error near it says that nothing of what softmax attends to is left.

Look at your own scores before choosing: `scores = q @ k.mT / q.shape[-1] ** 0.5`, then `scores.std(-1)` and
`scores.mean(-1)`.

## What to choose

- **Spread below about 0.5, mean near 0: order 2 is enough.** Its error grows faster than the square of the spread:
  {at(0.2, 2)} at 0.2, {at(0.5, 2)} at 0.5.
- **Spread from 0.5 to 1: order 4 helps**, at spread 1 from {at(WIDE, 2)} to {at(WIDE, 4)}. At head dim 16 it costs
  {features[4]} features instead of {features[2]}, so make heads narrower with it: at head dim 8 it has {narrow}.
- **Spread of 2 and more: no order here is near softmax.** There softmax picks a few keys, and a polynomial of low
  degree cannot. A model trained with Taylor attention need not be near softmax to be good; one whose softmax is to be
  replaced has to. `qk_norm` holds the spread down, and heads of windowed softmax (`HeadSplit`) can do the picking
  nearby.
- **Mean away from 0, spread of 1 or less: `center="mean"` helps**, at the cost of a factor for each feature of a query.
  The error becomes that at mean 0: at mean 2 and spread {NARROW:g} it falls from {shown(error(Scores(2.0), 2))} to
  {shown(error(Scores(2.0), 2, "mean"))} with order 2, from {shown(error(Scores(2.0), 4))} to
  {shown(error(Scores(2.0), 4, "mean"))} with order 4. The smaller the spread, the more it helps.
- **Negative means are the worst case of `center="zero"`.** 1 + s + s²/2 is lowest at s = -1, so below that the keys
  that softmax likes most get the least weight: at mean -2 and spread {NARROW:g} the error is
  {shown(error(Scores(-2.0), 2))}, that of a plain average {shown(error(Scores(-2.0), 0))}. The lowest point
  of order 4 is at -1.6, that of order 6 at -2.2. `center="mean"` takes the problem away.
- **Mean near 0: `center="mean"` changes nothing**, for better or worse. **Spread of 2 and more: it hardly helps**,
  since the spread alone is too much.

## Spread

Mean 0, head dim 16, `center="zero"`.

{by_spread()}

## Mean and centre

Spread {NARROW:g}, head dim 16.

{by_mean(NARROW)}

Spread {WIDE:g}.

{by_mean(WIDE)}

## Head dim

At the same spread it matters little. Queries of a narrow head differ more in length, and those of great length, whose
scores are spread further than the rest, make the error. In the last row all queries have one length, as in the limit of
wide heads, and scores are normal numbers. Mean 0, `center="zero"`.

{by_width()}

With such normal scores of spread {NARROW:g}, `center="mean"` takes the error of order 2 at mean 2 from
{shown(error(check, 2))} to {shown(error(check, 2, "mean"))}, and leaves it at
{shown(error(check._replace(mean=0.0), 2, "mean"))} at mean 0.

## How it was computed

```sh
{COMMAND}
```

In float64, bidirectional, with `impl="direct"`: {DRAWS} independent sets of {QUERIES} queries, {KEYS} keys and values
of {VALUES} standard normal numbers, from one seed. With d the head dim, m the mean and s the spread, the first
coordinate of every query is m √d and that of every key 1; the other d - 1 are standard normal numbers, in queries
times s √(d / (d - 1)). So q.k / √d has mean m and, over all pairs, standard deviation s. Queries of one length have
their d - 1 normal numbers divided by the rms of these. Another seed changes the numbers by a few per cent.
"""


def at(spread: float, order: int) -> str:
    return shown(error(Scores(spread=spread), order))


# --- the figure -------------------------------------------------------------------------------------------------------


def figure() -> Any:
    """Four panels: spread; mean at two spreads; head dim."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11.0, 3.7))
    axes = [canvas.add_axes((0.068 + 0.236 * place, 0.15, 0.205, 0.64)) for place in range(4)]
    hues = dict(zip(ORDERS, ("0.55", *HUES), strict=False))
    for order, hue in hues.items():
        values = [error(Scores(spread=spread), order) for spread in SPREADS]
        axes[0].plot(SPREADS, values, color=hue, marker="o", markersize=3.5, linewidth=1.6, label=f"order {order}")
        for axis, spread in zip(axes[1:3], (NARROW, WIDE), strict=True):
            for center in ("zero", "mean") if order else ("zero",):
                values = [error(Scores(mean, spread), order, center) for mean in MEANS]
                dashes, marker = (DASHES[0], "o") if center == "zero" else (DASHES[1], "")
                axis.plot(MEANS, values, color=hue, linestyle=dashes, marker=marker, markersize=3.5, linewidth=1.6)
        for spread, dashes in ((NARROW, DASHES[0]), (WIDE, DASHES[2])) if order else ():
            values = [error(Scores(spread=spread, d=d), order) for d in DIMS]
            axes[3].plot(DIMS, values, color=hue, linestyle=dashes, marker="o", markersize=3.5, linewidth=1.6)
    finish(canvas, axes, hues)
    return canvas


def finish(canvas: Any, axes: Sequence[Any], hues: dict[int, str]) -> None:
    """Titles, scales that all panels share, and one legend."""
    from matplotlib import ticker
    from matplotlib.lines import Line2D

    axes[0].set(title="spread of scores, mean 0", xscale="log", xlabel="standard deviation")
    axes[1].set(title=f"mean of scores, spread {NARROW:g}", xlabel="mean")
    axes[2].set(title=f"mean of scores, spread {WIDE:g}", xlabel="mean")
    axes[3].set(title=f"head dim, spread {NARROW:g} (dotted: {WIDE:g})", xscale="log", xlabel="head dim")
    for axis in axes:
        axis.set_yscale("log")
        axis.set_ylim(4e-5, 2)
        axis.yaxis.set_major_locator(ticker.FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 1]))
        axis.yaxis.set_major_formatter("{x:g}" if axis is axes[0] else "")
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    for axis, ticks in ((axes[0], (0.1, 0.2, 0.5, 1, 2, 3)), (axes[1], MEANS), (axes[2], MEANS), (axes[3], DIMS)):
        axis.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    axes[0].set_ylabel("relative error of the output")
    keys = {f"order {order}" + " (plain average)" * (not order): {"color": hue} for order, hue in hues.items()}
    keys |= {
        'center="zero"': {"color": "0.3", "marker": "o", "markersize": 3.5},
        'center="mean"': {"color": "0.3", "linestyle": DASHES[1]},
    }
    handles = [Line2D([], [], linewidth=1.6, **style) for style in keys.values()]
    canvas.legend(handles, keys.keys(), loc="upper left", bbox_to_anchor=(0.058, 0.935), ncols=len(keys), frameon=False,
                  fontsize=8, handlelength=2.2, handletextpad=0.5, columnspacing=1.3)  # fmt: skip
    canvas.suptitle("Taylor attention against softmax attention", x=0.062, ha="left", fontsize=11.5, fontweight="bold")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with plotting():
        figure().savefig(FIGURE, dpi=150, metadata={"Software": None})
    PAGE.write_text(page())

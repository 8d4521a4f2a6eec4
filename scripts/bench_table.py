"""Writes the README's table of `make bench`, between its two marks, from the CSV files of docs/results/bench.

python scripts/bench_table.py
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "bench"
MARKS = "<!-- bench -->", "<!-- /bench -->"

Row = dict[str, str]


def rows(name: str, folder: Path) -> list[Row]:
    """A CSV file; nothing, if it was not made."""
    file = folder / f"{name}.csv"
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def machine(folder: Path) -> str:
    """The line of attention.md that tells it."""
    return (folder / "attention.md").read_text().split("\n\n")[1]


def attention(found: Sequence[Row]) -> list[str]:
    """Times of both passes for each shape, at the longest length, and how many times ours they are."""
    longest = str(max(int(row["length"]) for row in found))
    own = [row for row in found if row["length"] == longest]
    kinds = list(dict.fromkeys((row["d"], row["e"], row["backward"]) for row in own))
    cells = {(row["implementation"], row["d"], row["e"], row["backward"]): row for row in own}
    heads = [f"d={d} e={e}, {'both' if backward == 'True' else 'forward'}" for d, e, backward in kinds]
    lines = [f"| {longest} tokens, {own[0]['heads']} heads | error | " + " | ".join(heads) + " |",
             "|---|---:|" + "---:|" * len(kinds)]  # fmt: skip
    for name in dict.fromkeys(row["implementation"] for row in own):
        errors = [float(row["error"]) for row in own if row["implementation"] == name and row["error"]]
        times = [time(cells.get((name, *kind)), cells.get(("auto", *kind))) for kind in kinds]
        lines.append(f"| `{name}` | {max(errors):.0e} | " + " | ".join(times) + " |" if errors else
                     f"| `{name}` | – | " + " | ".join(times) + " |")  # fmt: skip
    return lines


def time(row: Row | None, ours: Row | None) -> str:
    """Milliseconds, and the ratio to ours."""
    if not row or not row["seconds"]:
        return "–"
    ratio = f" (× {float(row['seconds']) / float(ours['seconds']):.2f})" if ours and ours["seconds"] else ""
    return f"{1e3 * float(row['seconds']):.1f} ms{ratio}"


def others(folder: Path) -> list[str]:
    """One line for each of the other measurements that there are."""
    lines = []
    for row in rows("attention", folder / "long"):
        if row["extra_bytes"] and row["gflops"]:
            size = f"{row['length']} tokens, {row['heads']} heads, d={row['d']} e={row['e']}, both passes"
            rate = f"{float(row['gflops']):.1f} GFLOP/s ({float(row['of_matmul']):.2f} of torch.mm)"
            more = f"{float(row['extra_bytes']) / 2**20:.0f} MiB beyond inputs, output and gradients"
            lines.append(f"- `{row['implementation']}`, {size}: {time(row, None)}, {rate}, {more}")
    for row in rows("variants", folder):
        if row["ratio"]:
            which = "both passes" if row["backward"] == "True" else "forward"
            lines.append(f"- ours, {row['what']} over {row['over']}, {which}: × {float(row['ratio']):.2f}")
    found = rows("decode", folder)
    softmax = {row["context"]: row for row in found if row["implementation"] == "sdpa" and row["seconds"]}
    for row in found:
        if row["implementation"] == "auto" and row["seconds"] and row["context"] in softmax:
            ratio = float(softmax[row["context"]]["seconds"]) / float(row["seconds"])
            lines.append(f"- one token after {row['context']}: {1e3 * float(row['seconds']):.3f} ms; SDPA with a cache "
                         f"of keys and values takes {ratio:.2f} times that")  # fmt: skip
    for row in [*rows("model", folder), *rows("model", folder / "batch")]:
        if row["seconds"]:
            size = f"{row['batch']} x {row['length']} tokens"
            lines.append(f"- a training step with `{row['mixer']}`, {size}: "
                         f"{float(row['tokens_per_second']):,.0f} tokens/s")  # fmt: skip
    for row in rows("loop", folder):
        lines.append(f"- our training loop over a bare one: × {float(row['fit']) / float(row['bare']):.2f} tokens/s")
    return lines


def table(folder: Path) -> str:
    """All of it, as Markdown."""
    return "\n\n".join([machine(folder), "\n".join(attention(rows("attention", folder))), "\n".join(others(folder))])


def replaced(text: str, between: str) -> str:
    """The page with something else between its marks.

    Raises:
        ValueError: the marks are not there once each.
    """
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have {begin} and {end} once each")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{between}\n{end}", text, flags=re.DOTALL)


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(replaced(README.read_text(), table(FOLDER)))

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

ALONE = """\
Some of them in a process of their own. What works in large tensors depends on whether it finds memory that another has
freed, as above, or must ask the system for each, as here:\
"""


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


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(found: Sequence[Row]) -> str:
    """How many times ours SDPA takes, at lengths where the direct form is taken."""
    times = {(row["implementation"], row["length"], row["d"], row["e"], row["backward"]): float(row["seconds"])
             for row in found if row["seconds"]}  # fmt: skip
    kinds = list(dict.fromkeys(key[2:] for key in times))
    body = [
        [length, *(f"× {times['sdpa', length, *kind] / times['auto', length, *kind]:.2f}" for kind in kinds)]
        for length in dict.fromkeys(key[1] for key in times)
    ]
    named = [f"d={d} e={e}, {'both' if backward == 'True' else 'forward'}" for d, e, backward in kinds]
    return markdown(["SDPA over `auto`, 4 rows of 8 heads; tokens", *named], body) if body else ""


def long(found: Sequence[Row]) -> str:
    """Time, rate and memory of both passes over long sequences."""
    body = [
        [f"`{row['implementation']}`" + (", causal" if row["causal"] == "True" else ""), f"{int(row['length']):,}",
         time(row, None), f"{float(row['of_matmul']):.2f}", f"{float(row['extra_bytes']) / 2**20:,.0f} MiB"]
        for row in found if row["extra_bytes"] and row["gflops"]
    ]  # fmt: skip
    size = f"{found[0]['heads']} heads, d={found[0]['d']} e={found[0]['e']}, both passes" if found else ""
    headings = [size, "tokens", "time", "operations over torch.mm's", "memory beyond inputs, output and gradients"]
    return markdown(headings, body) if body else ""


def variants(found: Sequence[Row]) -> str:
    """Ours against ours."""
    ratios = {
        (row["what"], row["over"], row["backward"]): f"× {float(row['ratio']):.2f}" for row in found if row["ratio"]
    }
    pairs = list(dict.fromkeys(key[:2] for key in ratios))
    body = [[f"{what} over {over}", *(ratios.get((what, over, passes), "–") for passes in ("False", "True"))]
            for what, over in pairs]  # fmt: skip
    return markdown(["`auto`, time of", "forward", "both passes"], body) if body else ""


def decode(found: Sequence[Row]) -> str:
    """One more token, from a state and from a cache."""
    cells = {(row["implementation"], row["context"]): row for row in found if row["seconds"]}
    body = []
    for context in dict.fromkeys(row["context"] for row in found):
        own, cached = cells.get(("auto", context)), cells.get(("sdpa", context))
        if own and cached:
            ratio = float(cached["seconds"]) / float(own["seconds"])
            body.append([f"{int(context):,}", *(f"{1e3 * float(row['seconds']):.2f} ms" for row in (own, cached)),
                         f"× {ratio:.1f}"])  # fmt: skip
    headings = ["a token, of 16 after", "`auto`, from its state", "SDPA, with a cache of keys and values", ""]
    return markdown(headings, body) if body else ""


def model(found: Sequence[Row]) -> str:
    """Tokens a second of training steps."""
    cells = {(row["mixer"], f"{row['batch']} × {int(row['length']):,} tokens"): row for row in found if row["seconds"]}
    sizes = list(dict.fromkeys(size for _, size in cells))
    body = [
        [f"`{name}`", *(f"{float(cells[name, size]['tokens_per_second']):,.0f}" if (name, size) in cells else "–"
                        for size in sizes)]
        for name in dict.fromkeys(name for name, _ in cells)
    ]  # fmt: skip
    return markdown(["tokens/s of a training step", *sizes], body) if body else ""


def others(folder: Path) -> list[str]:
    """A table for each of the other measurements that there are."""
    loops = [f"Our training loop over a bare one: × {float(row['fit']) / float(row['bare']):.2f} tokens/s."
             for row in rows("loop", folder)]  # fmt: skip
    steps = [*rows("model", folder), *rows("model", folder / "batch")]
    both = long([*rows("attention", folder / "long"), *rows("attention", folder / "long" / "causal")])
    brief, ratios = short(rows("attention", folder / "short")), variants(rows("variants", folder))
    own = rows("attention", folder / "alone")
    alone = [ALONE, "\n".join(attention(own))] if own else []
    return [
        part for part in (*alone, brief, both, ratios, decode(rows("decode", folder)), model(steps), *loops) if part
    ]


def table(folder: Path) -> str:
    """All of it, as Markdown."""
    return "\n\n".join([machine(folder), "\n".join(attention(rows("attention", folder))), *others(folder)])


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

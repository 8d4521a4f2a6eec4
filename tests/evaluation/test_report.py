"""The report itself: complete, safe whatever its runs are called, self-contained, small and quick."""

import csv
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import report_runs

from tsla.evaluation import report as module
from tsla.evaluation.figures import Figure, _curves, looks_of
from tsla.evaluation.report import plain, write_report
from tsla.evaluation.runs import find_runs
from tsla.evaluation.tables import make_tables

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would make of a page, with a note of everything that is not closed, or that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.handlers, self.ids = [], [], [], [], []
        self.texts = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


@pytest.fixture
def undrawn(monkeypatch):
    """For tests of the words: no figures, which take most of the time."""

    def draw_nothing(tables, folder):
        (folder / "x").write_text("x")
        return [[Figure(folder / "x", folder / "x", "x")] for _ in tables]

    monkeypatch.setattr(module, "draw_figures", draw_nothing)


def report(tmp_path, *paths):
    out = tmp_path / "out"
    files = write_report(list(paths) or [tmp_path / "runs"], out)
    assert all(path.stat().st_size for path in files)
    text = (out / "report.html").read_text()
    return Page(text), text, (out / "report.md").read_text()


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_code(markdown):
    """Markdown without spans of code, by CommonMark's rules, and without what is escaped."""
    out, rest = "", markdown
    while rest:
        if rest[0] == "\\":
            rest = rest[2:]
        elif rest[0] == "`":
            fence = re.match("`+", rest)[0]
            end = re.search(rf"(?<!`){fence}(?!`)", rest[len(fence) :])
            assert end, rest[:80]  # a span that never ends takes the rest of the page with it
            rest = rest[len(fence) + end.end() :]
        else:
            out, rest = out + rest[0], rest[1:]
    return out


def tables_in(markdown):
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)]


def bars(line):
    return len(re.findall(r"(?<!\\)\|", line))


def assert_contained(page, text):
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags and page.handlers == []
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text
    assert len(text.encode()) < 3 * 2**20


def test_one_run(tmp_path):
    run = report_runs.with_confusion(report_runs.write(tmp_path / "run"))
    page, text, markdown = report(tmp_path, run)
    assert_contained(page, text)
    assert page.tags.count("figure") == 2 and page.tags.count("h2") == 1
    for part in ("digits", "0.900", "majority (reference)", "tsla train experiment=digits seed=0", "12,345"):
        assert any(part in piece for piece in page.texts), part
        assert part in markdown
    assert "test accuracy by length" in markdown and "True classes" in markdown
    names = sorted(path.name for path in (tmp_path / "out/figures").iterdir())
    assert names == ["digits-costs.png", "digits-costs.svg", "digits-curves.png", "digits-curves.svg"]
    assert (tmp_path / "out/figures/digits-costs.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"figures/{name}" in markdown for name in names if name.endswith("png"))


def test_thirty_runs_of_several_tasks_are_quick_and_small(tmp_path):
    for at, (task, monitor) in enumerate(
        [("digits", "accuracy"), ("ett", "r2"), ("genes", "f1"), ("text", "accuracy")]
    ):
        for mixer in ("taylor", "softmax", "none"):
            for seed in range(2 + at % 2):
                path = tmp_path / "runs" / f"{task}-{mixer}-{seed}"
                report_runs.write(path, task, mixer, seed, 0.5 + 0.01 * seed, monitor, steps=1000)
    started = time.process_time()  # of this process: other tests may run beside it
    page, text, markdown = report(tmp_path)
    assert time.process_time() - started < 10
    assert_contained(page, text)
    assert page.tags.count("figure") == 9
    assert "30 finished runs, 4 tasks, 3 mixers" in markdown and "## Overview" in markdown
    assert markdown.count("0.505 ± 0.007") == 2 * 3 + 6 and markdown.count("0.510 ± 0.010") == 2 * 3 + 6
    rows = lines(tmp_path / "out/report.csv")
    assert sum(row["kind"] == "runs" for row in rows) == 12 and sum(row["kind"] == "reference" for row in rows) == 8
    commands = [command for row in rows for command in row["commands"].split("\n") if command]
    assert len(commands) == len(lines(tmp_path / "out/runs.csv")) == 30


def test_every_row_has_its_commands(tmp_path, undrawn):
    for seed in range(3):
        report_runs.write(tmp_path / f"runs/{seed}", seed=seed)
    page, _, markdown = report(tmp_path)
    for seed in range(3):
        assert f"tsla train experiment=digits seed={seed}" in page.texts
    assert "| `tsla train experiment=digits seed=0` |" in markdown
    (row, *_) = lines(tmp_path / "out/report.csv")
    assert row["commands"].split("\n") == [f"tsla train experiment=digits seed={seed}" for seed in range(3)]
    assert [row["seed"] for row in lines(tmp_path / "out/runs.csv")] == ["0", "1", "2"]


def test_nasty_names_do_no_harm(tmp_path):
    nasty = report_runs.NASTY
    parts = [{"value": nasty, "items": 1, "score": 0.5}, {"value": "_x", "items": 1, "score": 0.5}]
    for at, name in enumerate([nasty, "=../../up 日本語 🙂"]):
        changes = {"task": name, "mixer": name, "command": f"tsla {name}", "references": {name: 0.3},
                   "slices": {nasty: parts}, "versions": {nasty: nasty}, "git_sha": nasty}  # fmt: skip
        path = report_runs.write(tmp_path / f"runs/{at}", changes=changes, options={"model.x": nasty})
        report_runs.with_confusion(path)
        (path / "confusion.csv").write_text('x,"<b>",|\n1,2,3\n"a\n",4,5\n')
    unfinished = {"task.name": nasty, "mixer.name": nasty, "seed": nasty}
    report_runs.write(tmp_path / "runs" / "<i>&`|'", finished=False, options=unfinished)
    page, text, markdown = report(tmp_path)
    assert_contained(page, text)
    assert not {"b", "i", "script"} & set(page.tags)
    assert any("<script>alert(1)</script>|`a``b`$\\frac$" in piece for piece in page.texts)  # shown as it is called
    for made in (text, markdown):
        assert all(letter.isprintable() or letter == "\n" for letter in made)
    assert "<" not in (shown := without_code(markdown)) and "](http" not in shown
    for first, *others in tables_in(markdown):  # no cell is broken in two
        assert {bars(line) for line in others} == {bars(first)}
    for name in ("report.csv", "runs.csv"):
        assert all(cell[:1] not in ("=", "+", "@") for row in lines(tmp_path / "out" / name) for cell in row.values())
    assert all(re.fullmatch(r"[a-z0-9-]+\.(png|svg)", path.name) for path in (tmp_path / "out/figures").iterdir())
    assert len(list((tmp_path / "out/figures").iterdir())) == 2 * 4 + 2


def test_data_sets_of_one_task_stand_apart(tmp_path):
    for at, (data, monitor, steps) in enumerate(
        [("reviews/", "accuracy", 40), ("m.csv", "r2", 400), ("m.csv", "r2", 60)]
    ):
        options = {"task.path": data, "task.label": ["stars"], "trainer.max_steps": steps}
        mixer = ("taylor", "taylor", "softmax")[at]
        report_runs.write(
            tmp_path / f"runs/{at}", "files", mixer, monitor=monitor, options=options, changes={"steps": steps}
        )
    page, text, markdown = report(tmp_path)
    assert_contained(page, text)
    titles = ["files: reviews (accuracy)", "files: m.csv (r2)"]
    assert all(f"## {title}\n" in markdown and page.texts.count(title) >= 2 for title in titles)
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert names - {"overview.png", "overview.svg"} == {
        f"files-{name}-{kind}" for name in ("reviews-accuracy", "m-csv-r2")
        for kind in ("curves.png", "curves.svg", "costs.png", "costs.svg")
    }  # fmt: skip
    assert {row["table"] for row in lines(tmp_path / "out/report.csv")} == set(titles)
    unequal = "trainer.max_steps: 60 (softmax); 400 (taylor)"
    assert sum(unequal in piece for piece in page.texts) == markdown.count(unequal) == 2  # overview and table


@pytest.mark.parametrize(("monitor", "title"), [("r2", "training loss"), ("accuracy", "training loss (nats)")])
def test_the_loss_is_in_nats_where_it_is_of_classes(tmp_path, monitor, title):
    report_runs.write(tmp_path / "a", monitor=monitor)
    (table,) = make_tables(find_runs([tmp_path])).tasks
    assert _curves(table, looks_of([table])).axes[0].get_title() == title


def test_legends_tell_what_differs_and_no_two_entries_are_the_same(tmp_path):
    for at in range(3):
        options = {f"model.a_long_name_of_an_option_{n}": "same" if n < 2 else at for n in range(3)}
        options |= {f"mixer.{'x' * 70}": at, "trainer.max_steps": 10}
        report_runs.write(tmp_path / str(at), options=options)
    (table,) = make_tables(find_runs([tmp_path])).tasks
    (legend,) = _curves(table, looks_of([table])).legends
    entries = [text.get_text().strip() for text in legend.get_texts()]
    assert len(set(entries)) == 3 and all(len(entry) <= 60 for entry in entries)
    assert entries[0].startswith("taylor, xxx") and entries[2].endswith("… (3)")


def test_unfinished_runs_are_listed(tmp_path, undrawn):
    report_runs.write(tmp_path / "runs/a")
    report_runs.write(tmp_path / "runs/b", finished=False, steps=20)
    page, text, markdown = report(tmp_path)
    assert_contained(page, text)
    assert "Without a result" in page.texts and "20 of 40" in page.texts
    assert f"`tsla train resume={tmp_path}/runs/b`" in markdown
    assert [row["kind"] for row in lines(tmp_path / "out/report.csv")][-1] == "unfinished"


def test_unfinished_runs_alone(tmp_path):
    report_runs.write(tmp_path / "runs/b", finished=False)
    page, text, markdown = report(tmp_path)
    assert_contained(page, text)
    assert "figure" not in page.tags and "0 finished runs" in markdown


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"test/accuracy": float("nan"), "val/accuracy": float("nan")}, "references": {}},
        {"train_tokens_per_second": 0, "params": 0, "peak_memory_bytes": 0, "seconds": 0, "steps": 0},
        {"train_tokens_per_second": float("nan"), "seconds": float("inf"), "references": {"x": float("nan")}},
        {"train_tokens_per_second": 1e17, "params": 10**17, "metrics": {"test/accuracy": -1e17, "val/accuracy": 1e17}},
    ],
)  # fmt: skip
def test_odd_numbers_can_be_drawn(tmp_path, changes):
    report_runs.write(tmp_path / "runs/a", changes=changes)
    report_runs.write(tmp_path / "runs/b", seed=1)
    report_runs.write(tmp_path / "runs/c", mixer="none")
    page, text, _ = report(tmp_path)
    assert_contained(page, text)


def test_runs_without_curves_can_be_drawn(tmp_path):
    for at, content in enumerate(["", "step,epoch,train/loss\n", "step,epoch,val/accuracy\n7,0,0.5\n", None]):
        path = report_runs.write(tmp_path / f"runs/{at}", mixer=f"m{at}") / "metrics.csv"
        path.unlink() if content is None else path.write_text(content)
    page, text, markdown = report(tmp_path)
    assert_contained(page, text)
    assert page.tags.count("img") == 2 and all(f"| m{at} |" in markdown for at in range(4))


def test_a_report_is_written_again_the_same(tmp_path):
    report_runs.write(tmp_path / "runs/a")
    files = write_report([tmp_path / "runs"], tmp_path / "out")
    before = {path: path.read_bytes() for path in files}
    assert {path: path.read_bytes() for path in write_report([tmp_path / "runs"], tmp_path / "out")} == before


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("mine")
    run = report_runs.write(tmp_path / "runs/a")
    with pytest.raises(ValueError, match=r"out \(.*file\) must be a folder, got a file"):
        write_report([run], tmp_path / "file")
    (run / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"result\.json is damaged: task is missing"):
        write_report([run], tmp_path / "out")
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_reporting_loads_neither_torch_nor_lightning():
    code = "import sys, tsla.evaluation.report; print({'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [("listops_short", "listops_short"), ("_a_", "\\_a\\_"), ("a|b", "a\\|b"), ("<b>&", "&lt;b&gt;&amp;"), ("`", "\\`"),
     ("[a](b)", "\\[a\\](b)"), ("\\", "\\\\"), ("# a*", "\\# a\\*")],
)  # fmt: skip
def test_markdown_is_shown_letter_by_letter(text, markdown):
    assert plain(text) == markdown

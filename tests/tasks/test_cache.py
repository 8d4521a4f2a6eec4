"""The cache: built once, complete or absent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tsla.tasks.cache import cached

KEY = {"version": 1, "rows": 3, "nested": {"b": [1, 2], "a": None}}


class Builder:
    """A build function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "rows").write_text(f"build {self.calls}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_first_call_builds_and_the_second_finds(tmp_path):
    build = Builder()
    folder = cached(tmp_path / "not" / "there", "task", KEY, build)
    assert folder.parent == tmp_path / "not" / "there" / "task"
    assert len(folder.name) == 12 and set(folder.name) <= set("0123456789abcdef")
    assert json.loads((folder / "key.json").read_text()) == KEY
    assert cached(tmp_path / "not" / "there", "task", KEY, build) == folder
    assert build.calls == 1
    assert (folder / "inner" / "rows").read_text() == "build 1"
    assert names(folder.parent) == {folder.name}


def test_order_of_the_key_does_not_matter_and_content_does(tmp_path):
    build = Builder()
    folder = cached(tmp_path, "task", KEY, build)
    assert cached(tmp_path, "task", dict(reversed(KEY.items())), build) == folder
    others = {cached(tmp_path, "task", key, build) for key in (KEY | {"version": 2}, KEY | {"rows": "3"}, {})}
    assert len(others | {folder}) == 4 and build.calls == 4
    assert cached(tmp_path, "other", KEY, build) != folder


@pytest.mark.parametrize("task", ["", ".", "..", "a/b", "/tmp"])
def test_task_is_a_plain_folder_name(tmp_path, task):
    with pytest.raises(ValueError, match="must be a plain folder name"):
        cached(tmp_path, task, KEY, Builder())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_build_leaves_nothing(tmp_path, error):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        cached(tmp_path, "task", KEY, fail)
    assert names(tmp_path / "task") == set()
    assert (cached(tmp_path, "task", KEY, Builder()) / "inner" / "rows").read_text() == "build 1"


def run(*lines: str) -> subprocess.Popen[str]:
    program = "\n".join(
        ["import os, sys, time", "from pathlib import Path", "from tsla.tasks.cache import cached", *lines]
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_never_counts(tmp_path):
    killed = run(
        "def build(folder):",
        "    (folder / 'half').write_text('half')",
        "    os._exit(9)",
        f"cached(Path({str(tmp_path)!r}), 'task', {KEY!r}, build)",
    )
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    left = names(tmp_path / "task")
    assert len(left) == 1, "the test needs an unfinished folder to be there"
    folder = cached(tmp_path, "task", KEY, Builder())
    assert left != {folder.name}
    assert names(tmp_path / "task") == {folder.name}
    assert names(folder) == {"inner", "key.json"}


def test_a_folder_without_its_key_is_built_again(tmp_path):
    build = Builder()
    folder = cached(tmp_path, "task", KEY, build)
    (folder / "key.json").unlink()
    (folder / "foreign").touch()
    assert cached(tmp_path, "task", KEY, build) == folder
    assert build.calls == 2 and names(folder) == {"inner", "key.json"}


def test_two_processes_build_once(tmp_path):
    racers = [
        run(
            "def build(folder):",
            "    time.sleep(0.5)",
            f"    (folder / 'built').write_text('{number}')",
            "    print('built')",
            f"start = Path({str(tmp_path)!r}, 'start')",
            "print('ready', flush=True)",
            "while not start.exists(): time.sleep(0.001)",
            f"print(cached(Path({str(tmp_path)!r}), 'task', {KEY!r}, build))",
        )
        for number in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    outputs = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sum(output.count("built") for output in outputs) == 1
    assert outputs[0][-1] == outputs[1][-1]
    assert names(tmp_path / "task") == {Path(outputs[0][-1]).name}

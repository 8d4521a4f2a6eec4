"""Rows on disk, of every task: made once by two processes, and made anew when anything they depend on changes."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import disk_cases
import pytest
from disk_cases import CASES, digest, made
from native_cases import needs_compiler

from tsla.config.compose import group_choices
from tsla.tasks import cache

ROOT = Path(__file__).resolve().parents[2]


def marked(names):
    return [pytest.param(n, marks=[needs_compiler] * (n in ("pathfinder", "pathfinder_64", "pathx"))) for n in names]


every_task = pytest.mark.parametrize("name", marked(CASES))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with everything that tasks read."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        disk_cases.write(patch)
    return folder


@pytest.fixture(autouse=True)
def here(written, tmp_path, monkeypatch):
    """The same in a folder of the test's own, as links: what a test changes is a file of its own then."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    disk_cases.stand_in(monkeypatch)


@pytest.fixture
def builds(monkeypatch):
    """How often each task was built."""
    count, build = Counter(), cache._build

    def counted(folder, *arguments):
        count[folder.parent.name] += 1
        build(folder, *arguments)

    monkeypatch.setattr(cache, "_build", counted)
    return count


def test_every_task_is_tried():
    """But for the digits, which are read from the installed package each time."""
    assert {name.partition(",")[0] for name in CASES} == set(group_choices("task")) - {"digits"}


@every_task
def test_the_same_again_is_not_built(name, builds):
    first, again = made(*CASES[name].arguments), made(*CASES[name].arguments)
    assert digest(first) == digest(again) and first.folder == again.folder
    assert builds.total() == 1


@every_task
def test_another_version_is_built(name, builds, monkeypatch):
    first = made(*CASES[name].arguments).folder
    module = sys.modules[type(made(*CASES[name].arguments)).__module__]
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert made(*CASES[name].arguments).folder != first
    assert builds.total() == 2


@every_task
def test_a_changed_option_is_built(name, builds):
    first, changed = made(*CASES[name].arguments), made(*CASES[name].arguments, CASES[name].change)
    assert digest(first) != digest(changed) and first.folder != changed.folder
    assert builds.total() == 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.file])
def test_a_changed_file_is_read_again(name, builds):
    case = CASES[name]
    first = digest(made(*case.arguments))
    content = Path(case.other).read_bytes()
    Path(case.file).unlink()
    Path(case.file).write_bytes(content)
    os.utime(case.file, ns=(0, 0))  # a clock may not have gone on since
    assert digest(made(*case.arguments)) != first
    assert builds.total() == 2


# --- two processes ----------------------------------------------------------------------------------------------------


class Racer:
    """A process that makes rows when it is told to."""

    def __init__(self, folder):
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "disk_cases.py")], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def told(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def says(self):
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def racers(written, tmp_path_factory):
    folder = shutil.copytree(written, tmp_path_factory.mktemp("race") / "own")
    both = [Racer(folder), Racer(folder)]
    assert [racer.says() for racer in both] == ["ready", "ready"]
    yield both
    for racer in both:
        racer.process.communicate(timeout=60)
        assert racer.process.returncode == 0


@every_task
def test_of_two_processes_one_builds(name, racers):
    """The second looks for the rows while the first is in the middle of them, and then waits."""
    first, second = racers
    first.told(name)
    assert [first.says(), first.says()] == ["asking", "building"]
    second.told(name)
    assert second.says() == "asking"
    first.told("go")
    rows = first.says()
    assert len(rows) == 64 and second.says() == rows

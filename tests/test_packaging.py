"""What is shipped: its version, its files, its rules, and what its tests are worth."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import tsla

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "tsla").rglob("*.py"))
PROOFS = ("raises", "warns", "gradcheck", "gradgradcheck", "fail")
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def plain(package: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def test_one_version():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert version("tsla") == tsla.__version__
    assert f"version: {tsla.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert (
        tsla.__version__ in (ROOT / "CHANGELOG.md").read_text() or "Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_every_dependency_is_pinned():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {plain(line.split("==")[0]) for line in lock if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    for needed in [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["tensorboard"]]:
        assert plain(re.match(r"[\w.-]+", needed)[0]) in pinned, needed


# What can run what data say; of pickle.Unpickler, tsla/tasks/pickles.py makes one that finds no code.
RUN_CODE = ("eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_runs_code_from_data(path):
    for call in calls(path):
        name, options = name_of(call), {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name not in RUN_CODE, name
        if name in ("torch.load", "trainer.fit", "trainer.validate"):
            assert options.get("weights_only") == "True", f"{name} in line {call.lineno}"
        assert not (name.startswith("np.") and "allow_pickle" in options) and options.get("shell") != "True"
    text = path.read_text()
    assert not re.search(r"\b_target_\b", text) and "NotImplementedError" not in text and "hydra.utils" not in text


def test_no_config_names_code():
    for path in (ROOT / "configs").rglob("*.yaml"):
        text = path.read_text().replace("optional recipe: ${experiment}_${model}", "")  # names of two of our own files
        assert "_target_" not in text and "${" not in text, path


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert body[-1].end_lineno - body[0].lineno < 50, node.name


def proves(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether a test can fail by something that it says."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            name = name_of(node).split(".")[-1]
            if name in helpers or name.startswith("assert_") or name in PROOFS:
                return True
    return False


def helpers_that_prove(trees: list[ast.Module]) -> set[str]:
    """Names of functions of the tests that prove something, themselves or through each other."""
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found: set[str] = set()
    while True:
        more = {f.name for f in functions if proves(f, found)} - found
        if not more:
            return found
        found |= more


def test_no_test_is_vacuous():
    trees = {path: ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    helpers = helpers_that_prove(list(trees.values()))
    tests = [
        (path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(tests) > 300
    assert [f"{relative(path)}::{node.name}" for path, node in tests if not proves(node, helpers)] == []


def test_the_check_for_vacuous_tests_can_fail():
    empty, real = ast.parse("def test_a():\n    f(1)\n    assert True"), ast.parse("def test_b():\n    assert f(1)")
    assert [proves(tree.body[0], set()) for tree in (empty, real)] == [False, True]
    assert helpers_that_prove([ast.parse("def f(x):\n    assert x\ndef g(x):\n    f(x)")]) == {"f", "g"}


def test_tests_have_names_of_their_own():
    """Two test functions of one name in one file: the first would never run."""
    for path in TESTS:
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names)), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {f"tsla/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs <= set(names) and len(configs) > 10
    assert {relative(path) for path in SOURCES} <= set(names) and "tsla/py.typed" in names
    native = {relative(path) for path in (ROOT / "tsla").rglob("*") if path.suffix in (".cpp", ".h")}
    assert native <= set(names) and "tsla/kernels/cpu/attention.cpp" in native
    others = [name for name in names if not name.startswith(("tsla/", f"tsla-{tsla.__version__}.dist-info/"))]
    assert others == []


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(wheel, tmp_path):
    installed, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    code = (
        "import sys, tsla, tsla.cli\n"
        f"assert tsla.__file__.startswith({str(installed)!r}), tsla.__file__\n"
        "sys.exit(tsla.cli.main(sys.argv[1:]))"
    )
    arguments = ["train", "trainer.max_steps=2", "trainer.accelerator=cpu"]
    arguments += ["task.train_rows=100", "task.eval_rows=20"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=work, env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (work / "runs" / "quickstart").iterdir()
    assert (run / "result.json").exists() and (run / "model" / "model.safetensors").exists()

"""CONTRIBUTING's mechanism in four pieces, added to a copy of the repository: everything else picks it up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = ("experiment=digits", "model.dim=16", "mixer.heads=2", "trainer.max_steps=2", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with what CONTRIBUTING says."""
    root = tmp_path_factory.mktemp("copy") / "tsla"
    for name in ("tsla", "configs", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock", "CHANGELOG.md", "CITATION.cff", "README.md"):
        shutil.copy(ROOT / name, root)
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a mechanism")[2].partition("\n## ")[0]
    module, options, imports, case, yaml = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    (root / "tsla/mixers/squared.py").write_text(module)
    (root / "configs/mixer/squared.yaml").write_text(yaml)
    _edit(
        root / "tsla/config/mixers.py", "MixerConfig = (\n", f"{options}\n\nMixerConfig = (\n    SquaredConfig\n    | "
    )
    _edit(root / "tsla/build_mixer.py", "        case TaylorConfig():\n", f"{case}        case TaylorConfig():\n")
    _edit(root / "tsla/build_mixer.py", "\n\nclass Place", f"\n{imports}\n\nclass Place")
    return root


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} no longer has one {old!r}"
    path.write_text(text.replace(old, new))


def run(copy: Path, *arguments: str) -> str:
    """What a command of that copy prints."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("tests/mixers", "squared"),
        ("tests/models/test_meta.py", "squared"),
        ("tests/test_build.py", "squared"),
        ("tests/test_dead_options.py", "Squared or every_field"),
        ("tests/config", "squared or tayler"),
        ("tests/test_cli.py", "squared or tayler"),
        ("tests/bench/test_decode_and_model_bench.py", "squared"),
    ],
)
def test_tests_take_it_up(copy, file, chosen):
    printed = run(copy, "pytest", "-q", "-p", "no:cacheprovider", "--no-header", file, "-k", chosen)
    assert re.search(r"^\d+ passed", printed.splitlines()[-1]), printed[-500:]


@pytest.mark.slow
def test_commands_take_it_up(copy):
    assert "squared" in run(copy, "tsla.cli", "train", "--help")
    run(copy, "tsla.cli", "suite", *TINY, "mixer=linear,squared", "out=suite", "estimate=false")
    run(copy, "tsla.cli", "report", "suite", "out=report")
    assert "squared" in (copy / "report/report.html").read_text()
    printed = run(copy, "tsla.cli", "bench", "model", "only=squared", "dim=16", "heads=2", "depth=1", "length=32",
                  "loop=0", "memory=false", "seconds=0", "out=bench")  # fmt: skip
    assert "squared" in printed
    cells = "from tsla.config.grid import cells_of, suite_of as s; print([c.name for c in cells_of(s(['mixer=all']))])"
    done = subprocess.run([sys.executable, "-c", cells], cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "'squared'" in done.stdout

"""Every mixer and model trains a step on "cuda" in bf16, on a machine that has none: tests/fake_cuda.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS, TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("c++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(torch.backends.cuda.is_built() or COMPILER is None, reason="needs torch for the CPU, and C++"),
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, str]:
    """What failed, by case; nothing is the empty text. In a process of its own: the device is there before torch is."""
    library = tmp_path_factory.mktemp("cuda") / "fake_cuda.so"
    subprocess.run(
        [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", TESTS / "fake_cuda.cpp", "-o", library,
         f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"],
        check=True,
    )  # fmt: skip
    environment = os.environ | {"TSLA_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, TESTS / "fake_cuda.py", library], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_mixer_and_model_was_tried(failures):
    assert len(failures) > 80 and {"tokens/taylor/causal", "none/plain/causal"} < failures.keys()


def test_nothing_is_made_elsewhere_waited_for_or_of_another_type(failures):
    assert {name: told for name, told in failures.items() if told and not name.startswith("control/")} == {}


def test_what_is_wrong_would_show(failures):
    """The controls: a copy from the host, a number asked for, a tensor left behind, a wrong type."""
    told = {name: text for name, text in failures.items() if name.startswith("control/")}
    assert len(told) == 5 and all(told.values()), told

"""The GPU kernels compile for real cards, without a GPU, and the tables in docs/results are of them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsla.ops import gpu

ROOT = Path(__file__).resolve().parents[2]
STACK = 1024  # bytes of a thread
KERNELS = {"key_sums", "query_sums", "running", "read_queries", "read_keys", "pull_keys", "pull_queries"}

pytestmark = pytest.mark.skipif(not gpu.ready(), reason="Triton is not installed")


def table(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: in this one Triton interprets."""
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_all_compile_within_a_card(arch, tmp_path):
    done = table("triton_table", f"out={tmp_path}", f"arch={arch}", "shapes=16x64", "dtypes=bfloat16")
    assert done.returncode == 0, done.stdout + done.stderr
    found = read(tmp_path / "compile.csv")
    assert {row["kernel"] for row in found} == KERNELS | {"decays", "step"}
    assert all(0 < int(row["registers"]) <= 255 and int(row["stack"]) <= STACK for row in found)
    assert all(int(row["shared"]) <= int(row["shared_limit"]) for row in found)
    assert sum(row["kernel"] == "read_queries" for row in found) == 4  # causal or not, with options or without


def test_the_committed_table_is_of_these_kernels():
    """Every card, type and shape; blocks as the code makes them now."""
    from tsla.kernels.triton.plan import PRODUCTS

    rows = read(ROOT / "docs" / "results" / "triton" / "compile.csv")
    assert all(int(row["stack"]) <= STACK and int(row["shared"]) <= int(row["shared_limit"]) for row in rows)
    kinds = {(row["arch"], row["dtype"], row["d"], row["e"]) for row in rows if row["kernel"] == "pull_keys"}
    assert len(kinds) == 3 * 3 * 4
    for dtype, products in PRODUCTS.items():
        own = [row for row in rows if row["dtype"] == str(dtype)[6:]]
        for kernels, (tokens, warps) in ((("key_sums", "query_sums"), products.summing),
                                         (("read_queries", "pull_keys"), products.reading)):  # fmt: skip
            blocks = {(row["tokens"], row["warps"]) for row in own if row["kernel"] in kernels}
            assert blocks == {(str(tokens), str(warps))}


def test_the_committed_roofline_is_what_is_counted(tmp_path):
    done = table("triton_roofline", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    new, old = (folder / "roofline.csv" for folder in (tmp_path, ROOT / "docs" / "results" / "triton"))
    assert new.read_text() == old.read_text()
    case = {"card": "H100 SXM", "d": "16", "e": "64", "n": "16384", "causal": "False"}
    rows = [row for row in read(new) if case.items() <= row.items()]
    assert {row["pass"] for row in rows} == {"forward", "backward"}
    assert all(float(row["over_bound"]) <= 1.6 for row in rows)


def test_arguments_of_the_table(tmp_path):
    done = table("triton_table", f"out={tmp_path}", "arch=70")
    assert done.returncode == 2 and "arch=70: arguments are out=DIR; arch= of 80, 90, 100" in done.stdout

"""A small library in C++, and processes that load it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
#include "factor.h"
extern "C" int times(int x) { return FACTOR * x; }
extern "C" float dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
extern "C" int simd() {
#if defined(__AVX512F__)
  return 512;
#elif defined(__AVX2__)
  return 256;
#else
  return 0;
#endif
}
"""
ROOT = Path(__file__).resolve().parents[1]
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(CXX is None, reason="needs a C++ compiler")


def libraries(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "native").glob("*.so"))


def child(tmp_path: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    """A process with our library in place of those of the package."""
    code = f"from tsla import native\nnative.LIBRARIES = {{'tiny': {str(tmp_path / 'tiny.cpp')!r}}}\n{code}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

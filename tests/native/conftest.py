"""Every test of native code has a library, a cache and a memory of its own."""

import pytest
from native_cases import CXX, SOURCE

from tsla import native


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing decided, one small library, an empty cache, and no variable of the user's."""
    for variable in ("CXX", "TSLA_ISA", "TSLA_NATIVE", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.cpp").write_text(SOURCE)
    (tmp_path / "factor.h").write_text("#define FACTOR 2\n")
    monkeypatch.setattr(native, "LIBRARIES", {"tiny": str(tmp_path / "tiny.cpp")})
    native.forget()
    native._private.cache_clear()
    yield
    native.forget()


@pytest.fixture
def cxx(tmp_path, monkeypatch):
    """A compiler that notes each compile of tiny.cpp in the file `log`, and does first what the file `before` says."""
    script = tmp_path / "cxx"
    script.write_text(
        f'#!/bin/sh\ncd {tmp_path}\ncase "$*" in\n  *tiny.cpp*) echo x >> log; [ ! -e before ] || . ./before;;\nesac\n'
        f'exec {CXX} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return tmp_path / "before", lambda: len((tmp_path / "log").read_text().split())

"""Native code: compiled once, found again, never loaded half-written or from a folder of others, and done without."""

import _ctypes
import os
import shutil
import signal
import time
import timeit
import warnings

import pytest
from native_cases import CXX, SOURCE, child, libraries, needs_compiler

from tsla import compiler, native

# Compiled once --------------------------------------------------------------------------------------------------------


@needs_compiler
def test_compiled_called_and_found_again(tmp_path):
    assert native.load("tiny").times(21) == 42
    (path,) = libraries(tmp_path)
    assert path.name.startswith(f"tiny-{native.isa()}-")
    assert native.load("tiny") is native.load("tiny")
    made = path.stat().st_mtime_ns
    native.forget()
    assert native.load("tiny").times(5) == 10 and native.available("tiny")
    assert libraries(tmp_path) == [path] and path.stat().st_mtime_ns == made
    assert {file.suffix for file in path.parent.iterdir()} == {".so", ".sha256", ".lock"}


@needs_compiler
def test_a_finished_one_needs_no_probe_and_no_lock(tmp_path, monkeypatch):
    native.load("tiny")
    native.forget()
    monkeypatch.setattr(native, "FileLock", None)
    monkeypatch.setattr(compiler, "_takes", None)
    assert native.load("tiny").times(1) == 2


@needs_compiler
@pytest.mark.parametrize("changed", ["tiny.cpp", "factor.h", "new.h", "CXX"])
def test_what_changes_is_compiled_again(tmp_path, monkeypatch, changed):
    native.load("tiny")
    native.forget()
    if changed == "CXX":
        monkeypatch.setenv("CXX", f"{CXX} -DOTHER")
    else:
        text = {"tiny.cpp": SOURCE.replace("FACTOR *", "3 *"), "factor.h": "#define FACTOR 3\n", "new.h": ""}[changed]
        (tmp_path / changed).write_text(text)
    assert native.load("tiny").times(1) == (3 if changed in ("tiny.cpp", "factor.h") else 2)
    assert len(libraries(tmp_path)) == 2


@needs_compiler
def test_two_processes_compile_once(tmp_path, cxx):
    before, compiles = cxx
    before.write_text("for i in $(seq 600); do [ -e go ] && break; sleep 0.1; done\n")
    code = "import torch\nprint('ready', flush=True)\nprint(native.load('tiny').times(4))"
    both = [child(tmp_path, code) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    time.sleep(0.3)  # for both to ask
    (tmp_path / "go").touch()
    assert [process.communicate()[0] for process in both] == ["8\n", "8\n"]
    assert compiles() == 1 and len(libraries(tmp_path)) == 1


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no digest"])
def test_a_damaged_file_is_compiled_again(tmp_path, cxx, damage):
    _, compiles = cxx
    native.load("tiny")
    native.forget()
    (path,) = libraries(tmp_path)
    whole = path.read_bytes()
    path.unlink()  # the old one is mapped into this process: writing into it would end the tests
    path.write_bytes({"cut": whole[:5000], "empty": b"", "text": b"hello", "no digest": whole}[damage])
    path.chmod(0o755)
    if damage == "no digest":
        path.with_suffix(".sha256").unlink()
    assert native.load("tiny").times(3) == 6
    assert compiles() == 2 and libraries(tmp_path) == [path]


@needs_compiler
def test_a_file_that_is_no_library_is_compiled_again(tmp_path, cxx):
    """Whole by its digest, and yet refused."""
    _, compiles = cxx
    _ctypes.dlclose(native.load("tiny")._handle)  # else asking again for the same path gives what is loaded
    native.forget()
    (path,) = libraries(tmp_path)
    path.unlink()
    path.write_text("hello")
    path.chmod(0o755)
    path.with_suffix(".sha256").write_text(native._digest(path))
    assert native.load("tiny").times(3) == 6 and compiles() == 2


@needs_compiler
def test_a_compile_that_was_killed_leaves_nothing_to_load(tmp_path, cxx):
    before, _ = cxx
    before.write_text('for last; do :; done; echo half > "$last"; echo $$ > started; sleep 60\n')
    process = child(tmp_path, "native.load('tiny')")
    deadline = time.monotonic() + 60
    while not (started := tmp_path / "started").exists() or not started.read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    os.killpg(int(started.read_text()), signal.SIGKILL)
    assert libraries(tmp_path) == [] and list((tmp_path / "cache" / "native").glob("*.partial/*.so"))
    before.unlink()
    assert native.load("tiny").times(2) == 4
    assert len(libraries(tmp_path)) == 1 and not list((tmp_path / "cache" / "native").glob("*.partial"))


# Where nobody else writes ---------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("trouble", ["a file", "others write", "the group writes", "others move", "not ours"])
def test_a_cache_that_will_not_do_is_left_alone(tmp_path, monkeypatch, trouble):
    cache = tmp_path / "cache"
    native.load("tiny")
    native.forget()
    match trouble:
        case "a file":
            shutil.rmtree(cache)
            cache.touch()
        case "others write":
            (cache / "native").chmod(0o757)
        case "the group writes":
            (cache / "native").chmod(0o775)
        case "others move":
            cache.chmod(0o777)
        case "not ours":
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            os.chown(cache / "native", 54321, -1) if os.getuid() == 0 else None
    before = sorted(cache.rglob("*"))
    (built,) = native.build_all()
    assert "no other process will use it" in built.problem and built.seconds is not None
    assert cache not in built.path.parents and built.path.parent.stat().st_mode & 0o777 == 0o700
    assert native.load("tiny").times(2) == 4 and sorted(cache.rglob("*")) == before


@needs_compiler
def test_a_file_that_others_can_write_is_not_loaded(tmp_path, cxx):
    _, compiles = cxx
    native.load("tiny")
    native.forget()
    (path,) = libraries(tmp_path)
    path.chmod(0o777)
    assert native.load("tiny").times(2) == 4 and compiles() == 2
    assert path.stat().st_mode & 0o022 == 0


# Done without ---------------------------------------------------------------------------------------------------------


def told(name: str) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [native.available(name) for _ in range(3)] == [False] * 3
    assert {warning.category for warning in seen} <= {UserWarning}
    return [str(warning.message) for warning in seen]


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "LIBRARIES", {**native.LIBRARIES, "other": "other.cpp"})
    for _ in range(2):
        with pytest.raises(native.NativeError, match=r"no C\+\+ compiler: none of c\+\+, g\+\+ and clang\+\+ runs"):
            native.load("tiny")
    (text,) = told("tiny")
    for part in ("torch is used", "no C++ compiler", "CXX names one", "`tsla info --build`"):
        assert part in text
    assert told("other") == []  # the same compiler is missing
    assert native.describe().startswith("none: there is no C++ compiler")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere/c++", r"CXX \(nowhere/c\+\+\) is no compiler that runs"),
        ("false", r"CXX \(false\) is no compiler"),
        ("c++ 'a", r"CXX \(c\+\+ 'a\) cannot be read: No closing quotation"),
        ("c++ -Ofast", r"CXX \(c\+\+ -Ofast\) must not ask for -ffast-math"),
    ],
)
def test_a_compiler_that_is_none(monkeypatch, value, message):
    monkeypatch.setenv("CXX", value)
    with pytest.raises(native.NativeError, match=message):
        native.load("tiny")


@needs_compiler
def test_a_broken_source_fails_once_with_its_error(tmp_path, cxx):
    _, compiles = cxx
    (tmp_path / "tiny.cpp").write_text('extern "C" int f() { return missing; }\n')
    for _ in range(3):
        with pytest.raises(native.NativeError, match=r"does not compile .*tiny.cpp:\n.*tiny.cpp:1.*error: .*missing"):
            native.load("tiny")
    assert len(told("tiny")) == 1 and compiles() == 1 and libraries(tmp_path) == []


@needs_compiler
def test_a_library_that_does_not_load(tmp_path):
    (tmp_path / "tiny.cpp").write_text('int nowhere(); extern "C" int f() { return nowhere(); }\n')
    with pytest.raises(native.NativeError, match=r"tiny was compiled but does not load: .*nowhere"):
        native.load("tiny")


@needs_compiler
def test_a_compile_without_end_is_ended(tmp_path, cxx, monkeypatch):
    """With what the compiler started, which would otherwise go on."""
    before, _ = cxx
    before.write_text("(sleep 1.5; touch alive) & wait; sleep 60\n")
    monkeypatch.setattr(compiler, "TIMEOUT", 0.3)
    began = time.monotonic()
    with pytest.raises(native.NativeError, match=r"not done after 0.3 seconds"):
        native._made("tiny", "portable", False)
    assert time.monotonic() - began < 30
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_turned_off(monkeypatch):
    monkeypatch.setenv("TSLA_NATIVE", "0")
    with pytest.raises(native.NativeError, match="TSLA_NATIVE=0"):
        native.load("tiny")
    assert told("tiny") == [] and "TSLA_NATIVE=0" in native.describe()
    monkeypatch.setenv("TSLA_NATIVE", "no")
    with pytest.raises(ValueError, match=r"TSLA_NATIVE \('no'\) must be 0 or 1"):
        native.load("tiny")


def test_a_library_that_there_is_not():
    with pytest.raises(ValueError, match=r"library \('huge'\) must be one of tiny"):
        native.load("huge")


@needs_compiler
def test_asking_costs_nothing_once_decided():
    assert native.available("tiny")
    assert min(timeit.repeat(lambda: native.available("tiny"), number=10_000, repeat=5)) / 10_000 < 1e-6

"""What is compiled for which CPU, what it does beside torch, and what `tsla info` says of it."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_cases import CXX, ROOT, child, libraries, needs_compiler

from tsla import cli, compiler, machine, native
from tsla.kernels.cpu.call import Call
from tsla.kernels.cpu.sinc import STRUCTS

PARALLEL = """
#ifdef _OPENMP
#include <omp.h>
extern "C" int threads() {
  int n = 0;
#pragma omp parallel reduction(+ : n)
  n += 1;
  return n;
}
#else
extern "C" int threads() { return 0; }
#endif
"""
FAULTY = """
extern "C" int* made() { return new int[4]{1, 2, 3, 4}; }
extern "C" int read(const int* x, int i) { return x[i]; }
extern "C" int add(int x, int y) { return x + y; }
"""
x86 = machine.cpu_flags()


# Instruction sets -----------------------------------------------------------------------------------------------------


def test_values_of_the_instruction_set(monkeypatch):
    assert native.isa() in native.ISAS
    monkeypatch.setenv("TSLA_ISA", "portable")
    assert native.isa() == "portable"
    monkeypatch.setenv("TSLA_ISA", "avx")
    with pytest.raises(ValueError, match=r"TSLA_ISA \('avx'\) must be one of avx512, avx2, portable"):
        native.isa()
    with pytest.raises(ValueError, match=r"isa \('sse'\) must be one of"):
        native.load("tiny", isa="sse")


@pytest.mark.parametrize(
    ("kind", "flags", "runs"),
    [
        ("x86_64", "avx2 fma f16c avx512f avx512bw avx512dq avx512vl", ("avx512", "avx2", "portable")),
        ("x86_64", "avx2 fma f16c avx512f avx512dq avx512vl", ("avx2", "portable")),
        ("x86_64", "avx2 f16c", ("portable",)),
        ("aarch64", "", ("portable",)),
        ("arm64", "avx2 fma f16c", ("portable",)),
    ],
)
def test_what_a_cpu_runs(monkeypatch, kind, flags, runs):
    monkeypatch.setattr(native.platform, "machine", lambda: kind)
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(flags.split()))
    native._runnable.cache_clear()
    try:
        assert native._runnable() == runs and native.isa() == runs[0]
        monkeypatch.setenv("TSLA_ISA", "avx512")
        if "avx512" not in runs:
            with pytest.raises(ValueError, match=r"'avx512'\) must be one that this CPU can run: .*portable"):
                native.isa()
    finally:
        native._runnable.cache_clear()


@pytest.mark.skipif(not x86, reason="needs an x86 CPU that Linux describes")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_torch_agrees(capability):
    assert native.isa() == torch.backends.cpu.get_cpu_capability().lower().replace("default", "portable")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ATEN_CPU_CAPABILITY": capability}
    code = "import sys\nfrom tsla import native\nprint(native.isa(), 'torch' in sys.modules)\n"
    code += "import torch\nprint(torch.backends.cpu.get_cpu_capability())"
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    level, loaded, capable = out.split()
    assert loaded == "False" and level == capable.lower().replace("default", "portable")


@needs_compiler
def test_instruction_sets_give_the_same_numbers():
    a, b = (torch.randn(1001).tolist() for _ in range(2))
    found, widths = {}, {"avx512": 512, "avx2": 256, "portable": 0}
    for level in native._runnable():
        library = native.load("tiny", isa=level)
        library.dot.restype = ctypes.c_float
        found[level] = library.dot((ctypes.c_float * 1001)(*a), (ctypes.c_float * 1001)(*b), 1001)
        assert library.simd() == widths[level]
    exact = sum(x * y for x, y in zip(a, b, strict=True))
    assert found == pytest.approx(dict.fromkeys(found, exact), abs=1e-3)


def test_flags_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(compiler, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    for level in native.ISAS:
        monkeypatch.setattr(compiler, "_takes", lambda cxx, flag: flag == "-mavx512bf16")
        first, *rest = compiler.flag_sets(compiler.Compiler(("c++",), ""), level, False)
        assert "-fopenmp" in first and all("-fopenmp" not in flags for flags in rest)
        assert ("-mavx512bf16" in first, "-mavx512f" in first) == (level == "avx512",) * 2
        assert ("-mavx2" in first) == (level != "portable") and not any("fast-math" in flag for flag in first)
        assert (rest == [[flag for flag in first if flag != "-fopenmp"]]) and "-O3" in first


# Beside torch ---------------------------------------------------------------------------------------------------------


@needs_compiler
def test_without_openmp(tmp_path, monkeypatch):
    (tmp_path / "tiny.cpp").write_text(PARALLEL)
    script = tmp_path / "cxx"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {CXX} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert native.load("tiny").threads() == 0
    native.forget()
    assert native.load("tiny").threads() == 0 and len(libraries(tmp_path)) == 1


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_pool_of_threads_and_numbers_as_before(tmp_path):
    (tmp_path / "tiny.cpp").write_text(PARALLEL)
    code = """
import json
library = native.load("tiny")
import torch
torch.set_num_threads(3)
threads = library.threads()
torch.randn(300, 300) @ torch.randn(300, 300)
maps = [line.split()[-1] for line in open("/proc/self/maps")]
runtimes = sorted({path for path in maps if "omp" in path.rsplit("/")[-1]})
halves = torch.full((9,), 1e-39).mul(0.5).tolist()
print(json.dumps([threads, runtimes, float("1e-310") * 1.0, halves]))
"""
    process = child(tmp_path, code)
    out, err = process.communicate()
    assert process.returncode == 0, err
    threads, runtimes, tiny, halves = json.loads(out)
    if threads:  # 0: the compiler has no OpenMP
        assert threads == 3 and len(runtimes) == 1, runtimes
        assert runtimes[0] in Path("/proc/self/maps").read_text()  # that of torch, which is here without the library
    assert tiny == 1e-310 and all(0 < half < 1e-39 for half in halves)


@pytest.mark.slow
@needs_compiler
def test_sanitizers(tmp_path):
    (tmp_path / "tiny.cpp").write_text(FAULTY)
    with pytest.raises(native.NativeError, match="sanitizers need LD_PRELOAD="):
        native.load("tiny", sanitize=True)
    runtime = subprocess.run(
        [CXX, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    code = """
import ctypes
library = native.load('tiny', sanitize=True)
library.made.restype = ctypes.c_void_p
x = ctypes.c_void_p(library.made())
print(library.read(x, 3), library.add(1, 2), flush=True)
"""
    wrong = {
        "": "",
        "library.read(x, 4)": "heap-buffer-overflow",
        "library.add(2**31 - 1, 1)": "signed integer overflow",
    }
    for call, report in wrong.items():
        process = child(tmp_path, code + call, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0")
        out, err = process.communicate()
        assert (process.returncode == 0) == (not call) and report in err and out == "4 3\n", err


# tsla info ------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_info_build(tmp_path, capsys):
    assert cli.main(["info", "--build"]) == 0
    (path,) = libraries(tmp_path)
    out = capsys.readouterr().out
    assert out.startswith(f"tiny  {native.isa()}  ") and out.endswith(f" s  {path}\n")
    assert cli.main(["info", "--build"]) == 0
    assert capsys.readouterr().out == f"tiny  {native.isa()}  cached  {path}\n"
    assert cli.main(["info"]) == 0
    assert f"native     {native.isa()}, by {CXX}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "false", "tsla: CXX (false) is no compiler that runs\n"),
        ("TSLA_ISA", "mmx", "tsla: TSLA_ISA ('mmx') must be one of avx512, avx2, portable\n"),
        ("TSLA_NATIVE", "0", "tsla: TSLA_NATIVE=0 turns native code off\n"),
    ],
)
def test_info_build_says_what_is_missing(monkeypatch, capsys, variable, value, message):
    monkeypatch.setenv(variable, value)
    assert cli.main(["info", "--build"]) == 1
    assert capsys.readouterr().err == message
    assert cli.main(["info"]) == 0
    assert "  native     none: " in capsys.readouterr().out


@needs_compiler
def test_the_libraries_of_the_package_compile(monkeypatch):
    monkeypatch.undo()
    kernels = {"attention": "kernels/cpu/attention.cpp", "sinc": "kernels/cpu/sinc.cpp"}
    assert {**kernels, "pathfinder": "tasks/pathfinder.cpp"} == native.LIBRARIES
    assert native.load("attention").tsla_abi() == ctypes.sizeof(Call)
    assert native.load("sinc").tsla_abi() == sum(map(ctypes.sizeof, STRUCTS))

"""The system's C++ compiler: which it is, what it is told, and what it answers."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tsla.machine import cpu_flags

ISAS = ("avx512", "avx2", "portable")
# What a CPU must have, in the words of Linux, which are -m options of the compiler as well.
NEEDS = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=fast")
SANITIZERS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

TIMEOUT = 300  # seconds that a compile may take
PROBE = """
#ifdef _OPENMP
#include <omp.h>
extern "C" int probe() { return omp_get_max_threads(); }
#endif
"""


class NativeError(RuntimeError):
    """A library that is not to be had: no compiler, a source that it refuses, or a result that does not load."""


class Compiler(NamedTuple):
    """A compiler that runs: its command, and what it answers to ``--version``."""

    command: tuple[str, ...]
    version: str


def compiler() -> Compiler:
    """The compiler to use.

    Raises:
        NativeError: there is none, or ``CXX`` names none.
    """
    return _compiler(os.environ.get("CXX") or "", os.environ.get("PATH") or "")


@lru_cache(maxsize=4)
def _compiler(named: str, path: str) -> Compiler:
    """`path` is here for the cache alone."""
    try:
        commands = [shlex.split(named)] if named.strip() else [["c++"], ["g++"], ["clang++"]]
    except ValueError as error:
        raise NativeError(f"CXX ({named}) cannot be read: {error}") from None
    if {"-ffast-math", "-Ofast"} & set(commands[0]):  # would flush denormals to zero, in all of this process
        raise NativeError(f"CXX ({named}) must not ask for -ffast-math")
    for program, *options in commands:
        found = shutil.which(program)
        status, answer = _run([found, *options, "--version"], None) if found else (1, "")
        if found and status == 0 and answer.strip():
            return Compiler((found, *options), answer.strip())
    raise NativeError(f"CXX ({named}) is no compiler that runs" if named.strip() else
                      "there is no C++ compiler: none of c++, g++ and clang++ runs")  # fmt: skip


def flag_sets(cxx: Compiler, level: str, sanitize: bool) -> Iterator[list[str]]:
    """The flags as they should be, and only if no such library is there, those that the compiler takes."""
    needed, optional = _flags(level, sanitize)
    yield [*needed, *optional]
    taken = [flag for flag in optional if _takes(cxx, flag)]
    if taken != optional:
        yield [*needed, *taken]


def _flags(level: str, sanitize: bool) -> tuple[list[str], list[str]]:
    """Flags of every compile, and those of a compiler that takes them.

    No compiler need have OpenMP. One that is not GCC may bring threads of its own, beside those of torch.
    """
    needed = [*FLAGS, *(f"-m{name}" for name in NEEDS[level]), *(SANITIZERS if sanitize else ())]
    optional = ["-fopenmp"]
    if level == "avx512":
        needed.append("-mprefer-vector-width=512")
        optional += ["-mavx512bf16"] if "avx512_bf16" in cpu_flags() else []
    return needed, optional


def compile_library(cxx: Compiler, flags: list[str], source: Path, out: Path) -> None:
    """Compiles `source` to `out`, in whose folder the compiler puts what it needs on the way.

    Raises:
        NativeError: with the first errors that the compiler reports.
    """
    status, output = _run([*cxx.command, *flags, str(source), "-o", str(out)], out.parent)
    if status != 0:
        lines = output.strip().splitlines()
        errors = [line for line in lines if "error" in line or "undefined" in line] or lines
        raise NativeError("\n".join([f"{shlex.join(cxx.command)} does not compile {source}:", *errors[:5]]))


@lru_cache(maxsize=16)
def _takes(cxx: Compiler, flag: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="tsla-probe-") as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text(PROBE)
        return _run([*cxx.command, *FLAGS, flag, str(source), "-o", f"{scratch}/probe.so"], Path(scratch))[0] == 0


def _run(command: list[str], scratch: Path | None) -> tuple[int, str]:
    """Exit status and all output of a compiler, whose own temporary files go to `scratch`.

    It is a session of its own, and is ended with all the programs that it started: they hold its output open.
    """
    env = {**os.environ, "LC_ALL": "C"} | ({} if scratch is None else {"TMPDIR": str(scratch)})
    env.pop("LD_PRELOAD", None)  # a sanitizer's runtime would report leaks of the compiler
    try:
        with subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=TIMEOUT)
            except BaseException:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return 1, f"error: not done after {TIMEOUT} seconds"
    except OSError as error:
        return 1, f"error: {error}"

"""C++ of the package, compiled on this machine on first use, once: for kernels and for generators of data.

A library is one source file, with the headers in its folder. The system's compiler makes it, in a few seconds, into
``$TSLA_CACHE/native`` (or ``$XDG_CACHE_HOME/tsla/native``, or ``~/.cache/tsla/native``), under a name that holds a
hash of the sources, the compiler and the flags; `tsla info --build` does so ahead of time. A folder that cannot be
written, or that others can write, is not used: then each process compiles for itself.

Environment:
    TSLA_NATIVE: 0 turns native code off.
    TSLA_ISA: one of `ISAS`, in place of the best that this CPU has.
    CXX: the compiler, with options if need be; else the first of c++, g++ and clang++ that runs.

Floating point stays IEEE: denormals, NaN and infinities are what they are elsewhere (no -ffast-math), though products
and sums may be fused.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import sys
import tempfile
import warnings
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from filelock import FileLock

from tsla.compiler import ISAS, NEEDS, TIMEOUT, Compiler, NativeError, compile_library, compiler, flag_sets
from tsla.machine import cache_folder, cpu_flags

PACKAGE = Path(__file__).parent
LIBRARIES = {  # name: source, from here on
    "attention": "kernels/cpu/attention.cpp",
    "sinc": "kernels/cpu/sinc.cpp",
    "pathfinder": "tasks/pathfinder.cpp",
}


class Built(NamedTuple):
    """A library of `build_all`.

    seconds: that compiling took; None if it had been compiled before.
    path: the shared library; None if there is none.
    problem: why there is none, or why it will not be there for other processes; empty if all is well.
    """

    name: str
    isa: str
    seconds: float | None
    path: Path | None
    problem: str


_loaded: dict[tuple[str, str, bool], ctypes.CDLL | str] = {}  # a text is the reason of a failure
_available: dict[str, bool] = {}
_told: set[str] = set()


def isa() -> str:
    """The one of `ISAS` that is used here: ``TSLA_ISA``, else the best that this CPU has and torch is allowed.

    torch is allowed less by ``ATEN_CPU_CAPABILITY``.

    Raises:
        ValueError: ``TSLA_ISA`` is none of them, or one that this CPU cannot run.
    """
    asked = os.environ.get("TSLA_ISA")
    if asked:
        return _checked("TSLA_ISA", asked)
    limit = os.environ.get("ATEN_CPU_CAPABILITY", "").replace("default", "portable")
    best = ISAS.index(limit) if limit in ISAS else 0
    return next(level for level in _runnable() if ISAS.index(level) >= best)


def load(name: str, *, isa: str | None = None, sanitize: bool = False) -> ctypes.CDLL:
    """The shared library of that name, compiled if it has not been before; a process loads it once.

    A failure is remembered as well. Loads torch first, so that both share one pool of OpenMP threads.

    Args:
        name: one of `LIBRARIES`.
        isa: one of `ISAS`; by default what `isa` says.
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer, whose runtime ``LD_PRELOAD`` must name.

    Raises:
        NativeError: there is no compiler, it refuses the source, or native code is turned off.
        ValueError: `name` or `isa` is none that there is, or this CPU cannot run `isa`.
    """
    if name not in LIBRARIES:
        raise ValueError(f"library ({name!r}) must be one of {', '.join(LIBRARIES)}")
    if _turned_off():
        raise NativeError("TSLA_NATIVE=0 turns native code off")
    key = (name, _level(isa), sanitize)
    if key not in _loaded:
        try:
            _loaded[key] = _made(*key)[0]
        except NativeError as error:
            _loaded[key] = str(error)
    found = _loaded[key]
    if isinstance(found, str):
        raise NativeError(found)
    return found


def available(name: str) -> bool:
    """Whether `load` gives that library; decided once per process, with a warning if something is missing.

    Raises:
        ValueError: as `load`; a `TSLA_ISA` that makes no sense is not passed over.
    """
    known = _available.get(name)  # nothing else: this is asked in every call of attention
    return _decided(name) if known is None else known


def build_all() -> list[Built]:
    """Every library for the `isa` of this machine, compiled unless it was before, and loaded to see that it can be."""
    level, built = isa(), []
    for name in LIBRARIES:
        try:
            if _turned_off():
                raise NativeError("TSLA_NATIVE=0 turns native code off")
            built.append(_made(name, level, False)[1])
        except NativeError as error:
            built.append(Built(name, level, None, None, str(error)))
    return built


def describe() -> str:
    """A line on what native code would be built for and by, or why there is none. Compiles nothing."""
    try:
        if _turned_off():
            return "none: TSLA_NATIVE=0 turns it off"
        cxx = compiler()
        return f"{isa()}, by {shlex.join(cxx.command)}: {cxx.version.splitlines()[0]}"
    except (NativeError, ValueError) as error:
        return f"none: {error}"


def forget() -> None:
    """Decide again what is available, and load again what is asked for. What was loaded stays in memory."""
    for memory in (_loaded, _available, _told):
        memory.clear()


def _decided(name: str) -> bool:
    try:
        load(name)
        _available[name] = True
    except NativeError as error:
        _available[name] = False
        if not _turned_off() and str(error) not in _told:  # one notice where one compiler is missing for all
            _told.add(str(error))
            warnings.warn(f"torch is used in place of faster native code: {error}\nInstall a C++ compiler (CXX names "
                          "one) and run `tsla info --build`, or set TSLA_NATIVE=0", stacklevel=3)  # fmt: skip
    return _available[name]


def _turned_off() -> bool:
    value = os.environ.get("TSLA_NATIVE") or "1"
    if value not in ("0", "1"):
        raise ValueError(f"TSLA_NATIVE ({value!r}) must be 0 or 1")
    return value == "0"


# What this machine runs -----------------------------------------------------------------------------------------------


def _level(asked: str | None) -> str:
    return isa() if asked is None else _checked("isa", asked)


def _checked(key: str, level: str) -> str:
    if level not in ISAS:
        raise ValueError(f"{key} ({level!r}) must be one of {', '.join(ISAS)}")
    if level not in _runnable():
        raise ValueError(f"{key} ({level!r}) must be one that this CPU can run: {', '.join(_runnable())}")
    return level


@lru_cache(maxsize=1)
def _runnable() -> tuple[str, ...]:
    """Those of `ISAS` that this CPU has. Asks torch only where the system does not tell, as macOS on x86."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("portable",)
    if flags := cpu_flags():
        return tuple(level for level in ISAS if flags.issuperset(NEEDS[level]))
    best = import_module("torch").backends.cpu.get_cpu_capability().lower()
    return ISAS[ISAS.index(best) :] if best in ISAS else ("portable",)


# The cache ------------------------------------------------------------------------------------------------------------


def _made(name: str, level: str, sanitize: bool) -> tuple[ctypes.CDLL, Built]:
    """The library, from the cache or compiled into it; from a folder of this process if that one is not to be used."""
    if os.name != "posix":
        raise NativeError(f"native code is built on Linux and macOS, not on {platform.system()}")
    cxx, why = compiler(), ""
    if sanitize and "asan" not in os.environ.get("LD_PRELOAD", ""):  # its runtime would end this process
        raise NativeError(f"sanitizers need LD_PRELOAD=$({cxx.command[0]} -print-file-name=libasan.so)")
    try:
        try:
            library, path, seconds = _from(_kept(), cxx, name, level, sanitize)
        except OSError as error:
            why = f"no other process will use it: {error}"
            library, path, seconds = _from(_private(), cxx, name, level, sanitize)
    except OSError as error:
        raise NativeError(f"{name} cannot be compiled: {error}") from None
    return library, Built(name, level, seconds, path, why)


def _from(folder: Path, cxx: Compiler, name: str, level: str, sanitize: bool) -> tuple[ctypes.CDLL, Path, float | None]:
    """The library of that folder, its file, and the seconds that it took to compile it.

    A finished one is taken without a lock, since the folder may be one that cannot be written.
    """
    source = PACKAGE / LIBRARIES[name]
    for flags in flag_sets(cxx, level, sanitize):
        path = folder / f"{name}-{level}-{_key(source, cxx, flags)}.so"
        if library := _opened(path):
            return library, path, None
    began = perf_counter()
    with FileLock(path.with_suffix(".lock"), timeout=2 * TIMEOUT):
        if library := _opened(path):  # by another process, while this one waited
            return library, path, None
        _compile(cxx, flags, source, path)
    try:
        return _dlopen(path), path, perf_counter() - began
    except OSError as error:
        raise NativeError(f"{name} was compiled but does not load: {error}") from None


def _key(source: Path, cxx: Compiler, flags: list[str]) -> str:
    """16 hex digits that differ wherever the result might; a home may be shared by machines of several kinds."""
    files = [source, *sorted(source.parent.glob("*.h"))]
    parts = [platform.machine(), sys.platform, *cxx.command, cxx.version, *flags, *(file.name for file in files)]
    digest = hashlib.sha256()
    for part in (*map(str.encode, parts), *(file.read_bytes() for file in files)):
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16]


def _compile(cxx: Compiler, flags: list[str], source: Path, path: Path) -> None:
    """Compiles beside `path` and renames into place. The caller holds the lock, so what lies here is abandoned."""
    for abandoned in path.parent.glob(f"{path.stem}.*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{path.stem}.", suffix=".partial", dir=path.parent) as scratch:
        partial = Path(scratch, path.name)
        compile_library(cxx, flags, source, partial)
        partial.chmod(0o755)  # whatever the umask: nobody else may write it
        _digest_file(path).write_text(_digest(partial))
        os.replace(partial, path)


def _opened(path: Path) -> ctypes.CDLL | None:
    """A finished library; None where there is none, or one that is damaged or that others could have written."""
    try:
        if _only_ours(path) and _digest(path) == _digest_file(path).read_text():
            return _dlopen(path)
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _digest(path: Path) -> str:
    """Of a library, which is compared before it is loaded: one that was cut short would end the process by a signal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _dlopen(path: Path) -> ctypes.CDLL:
    torch = import_module(
        "torch"
    )  # first, so that the library takes torch's OpenMP runtime, and torch not the compiler's
    library = ctypes.CDLL(str(path))
    if float.fromhex("0x1p-1050") * 1.5 == 0:  # linked with fast math, whatever the option was called
        torch.set_flush_denormal(False)
        raise NativeError(f"{path.name} turned denormal numbers off in this process: take fast-math options out of CXX")
    return library


def _kept() -> Path:
    """The folder of all processes of this user.

    Raises:
        OSError: it cannot be made, or is not for this user alone: what lies in it runs as code in this process.
    """
    folder = cache_folder().absolute() / "native"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _only_ours(folder) or any(_replaceable_in(parent) for parent in folder.resolve().parents):
        raise PermissionError(f"others can write {folder}")
    return folder


def _only_ours(path: Path) -> bool:
    """Whether none but this user and root can have written there. A folder of root's may be part of an image."""
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _replaceable_in(folder: Path) -> bool:
    """Whether anybody can put another file in the place of one of ours."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


@lru_cache(maxsize=1)
def _private() -> Path:
    """A folder of this process, of mode 0700, that goes with it."""
    folder = tempfile.mkdtemp(prefix="tsla-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

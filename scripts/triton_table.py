"""Compiles the GPU kernels ahead of time, without a GPU, and tabulates what each program takes of a multiprocessor.

python scripts/triton_table.py [out=docs/results/triton] [arch=80,90,100] [shapes=16x64] [kernels=step]

Every kernel is compiled as the passes launch it: the launches of both passes and of a decoding step are recorded, with
their types and constants, for the shapes and options below. Registers and stack are read from the machine code by
cuobjdump, which comes with Triton; shared memory is what the compiler asks for. A stack holds what registers do not:
few words of it, in programs that do more with the registers they have, were measured to be the faster ones.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # which would leave nothing to compile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsla.kernels import taylor
from tsla.kernels.taylor import Given, Inputs
from tsla.kernels.triton import decode, passes, pull, read, sums

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "triton"
SHAPES = [(16, 16), (16, 64), (32, 32), (64, 64)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ARCHS = {80: ("A100", 163), 90: ("H100", 227), 100: ("B200", 227)}  # and the KiB of shared memory a program may have
KERNELS = {sums: ("key_sums", "query_sums", "running", "decays"), read: ("read_queries", "read_keys"),
           pull: ("pull_queries", "pull_keys"), decode: ("step",)}  # fmt: skip
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8", torch.int64: "i64"}
STACK = 1024
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Launch(NamedTuple):
    """A kernel and what it is called with, by name."""

    kernel: Any
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.__name__


class Resources(NamedTuple):
    """What a thread, and what a program takes."""

    registers: int
    stack: int
    shared: int


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside are listed instead."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **named: Any) -> None:
                found.append(Launch(self.kernel, dict(zip(self.kernel.arg_names, arguments, strict=False)) | named))

            return launch

    real = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}
    for (module, name), kernel in real.items():
        setattr(module, name, Recorder(kernel))
    try:
        yield found
    finally:
        for (module, name), kernel in real.items():
            setattr(module, name, kernel)


def launches(d: int, e: int, dtype: torch.dtype, *, causal: bool, options: bool, heads: int = 4) -> list[Launch]:
    """Those of both passes, and of a step of decoding if causal; `options`: masks, gates, shifts, states."""
    n, f = 2048, (d + 1) * (d + 2) // 2
    kv_heads = heads // 2
    q, k, v = (torch.empty(1, x, n, y, dtype=dtype) for x, y in ((heads, d), (kv_heads, d), (kv_heads, e)))
    mask = torch.ones(1, n, dtype=torch.bool) if options else None
    gates = torch.zeros(1, heads, n) if options and causal else None
    shift = torch.zeros(1, heads, n) if options else None
    states = kv_heads if gates is None else heads
    kv, z = torch.zeros(1, states, f, e), torch.zeros(1, states, f)
    started = (kv, z) if options else (None, None)
    x = Inputs(q, k, v, mask, gates, shift, *started, 0.25, [1.0, 1.0, 1.0], causal, False, True, True, False)
    with recorded() as found:
        results = taylor._empty(x)
        passes.forward(x, results)
        given = Given(results.out, results.den if options else None, *((kv, z) if options else (None, None)))
        passes.backward(x, results, given, taylor._empty_gradients(x, in_float=False))
        if causal:
            one = x._replace(q=q[:, :, :1], k=k[:, :, :1], v=v[:, :, :1], kv=kv, z=z)
            one = one._replace(mask=mask[:, :1], gates=gates[:, :, :1], shift=shift[:, :, :1]) if options else one
            passes.forward(one, taylor._empty(one))
    return found


def compiled(launch: Launch, arch: int) -> Resources:
    """What a launch takes on an architecture."""
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {name: launch.arguments[name] for name in OPTIONS if name in launch.arguments}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, stack = usage(made.asm["cubin"])
    return Resources(registers, stack, made.metadata.shared)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def rows(
    arch: list[int], shapes: list[tuple[int, int]], dtypes: list[torch.dtype], kernels: list[str]
) -> Iterator[dict[str, Any]]:
    """One for each kernel, architecture and configuration."""
    for d, e in shapes:
        for dtype in dtypes:
            for causal, options in ((False, False), (False, True), (True, False), (True, True)):
                made = {launch.name: launch for launch in launches(d, e, dtype, causal=causal, options=options)}
                for name, launch in made.items():
                    for target in arch if name in kernels else []:
                        found = compiled(launch, target)
                        yield {
                            "arch": f"sm_{target}", "kernel": name, "d": d, "e": e, "dtype": str(dtype)[6:],
                            "causal": causal, "options": options, "tokens": launch.arguments.get("TOKENS", ""),
                            "warps": launch.arguments.get("num_warps", 4),
                            **found._asdict(),
                            "shared_limit": ARCHS[target][1] * 1024,
                        }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write the table; 1 if a program asks for too much shared memory, or for more than `STACK` bytes a thread."""
    every = {"arch": {str(arch): arch for arch in ARCHS}, "shapes": {f"{d}x{e}": (d, e) for d, e in SHAPES},
             "dtypes": {str(dtype)[6:]: dtype for dtype in DTYPES},
             "kernels": {name: name for names in KERNELS.values() for name in names}}  # fmt: skip
    given = dict(argument.partition("=")[::2] for argument in arguments)
    out = Path(given.pop("out", OUT))
    chosen = {name: list(values.values()) for name, values in every.items()}
    for name, value in given.items():
        if name not in every or not set(value.split(",")) <= set(every[name]):
            allowed = "; ".join(f"{known}= of {', '.join(values)}" for known, values in every.items())
            print(f"{name}={value}: arguments are out=DIR; {allowed}")
            return 2
        chosen[name] = [every[name][one] for one in value.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with (out / "compile.csv").open("w", newline="") as file:
        writer = None
        for row in rows(**chosen):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            if row["stack"] > STACK or row["shared"] > row["shared_limit"]:
                wrong += 1
                print(row)
    print(f"{out / 'compile.csv'}: {wrong} programs spill or ask for too much")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

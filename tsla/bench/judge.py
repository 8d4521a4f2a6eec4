"""Implementations of attention on one case: each held against its formula in float64, then timed in turns."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tsla.bench import cuda
from tsla.bench.cases import CUDA, TAYLOR, Case, Implementation, Made, Unavailable, inputs_of, operations
from tsla.bench.exact import relative_error
from tsla.bench.forms import Form, run_of
from tsla.bench.memory import free_bytes, peak_extra_bytes
from tsla.bench.peers import implementations
from tsla.bench.timing import MATMUL, MATMUL_OPERATIONS, Timing, interleaved, matmul

# Largest error, over the largest value, of what may be timed.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
CHECKED = 256  # tokens at which outputs and gradients are checked; at full length, some rows of the output are
SAMPLED = 16  # half of them the first, whose values are not yet averaged away: they set the scale of causal errors
NOT_INSTALLED = "not installed: pip install 'tsla[bench]'"

Run = Callable[[], list[Tensor]]


class Judged(NamedTuple):
    """One implementation on one case.

    problem: why it has no time, or "".  error: against float64.  seconds: of a call, with quartiles.  rate: operations
    per second as `operations` counts them, of Taylor attention only.  of_matmul: that over torch.mm's in the same
    rounds.  extra_bytes: peak memory of a process, or of a GPU, beyond inputs, output and gradients.
    by: on a GPU how it was called, as a ``"graph"`` or by ``"calls"`` from Python.
    """

    case: Case
    name: str
    computes: str
    problem: str = ""
    error: float | None = None
    time: Timing | None = None
    rate: float | None = None
    of_matmul: float | None = None
    extra_bytes: int | None = None
    by: str = ""


class Ready(NamedTuple):
    """A call that was found right, and its error; on a GPU its memory, and its graph if it could be captured."""

    run: Run
    error: float
    extra_bytes: int | None = None
    graph: torch.cuda.CUDAGraph | None = None

    @property
    def timed(self) -> Callable[[], object]:
        """What is timed."""
        return self.run if self.graph is None else self.graph.replay


def judge(case: Case, chosen: Sequence[Implementation], *, seconds: float, memory: bool) -> list[Judged]:
    """Every implementation on `case`: checked, timed in turns, and its memory, on the CPU in a process of its own."""
    if case.device == CUDA:
        cuda.begin()
    ready, problems = prepare({one.name: one for one in chosen}, dict.fromkeys((one.name for one in chosen), case))
    times = timed({name: found.timed for name, found in ready.items()}, seconds, case.device, case.dtype)
    yardstick = (cuda.MATMUL_OPERATIONS if case.device == CUDA else MATMUL_OPERATIONS) / times[MATMUL].median
    judged = []
    for one in chosen:
        if one.name in problems:
            judged.append(Judged(case, one.name, one.computes, problems[one.name]))
            continue
        time, found = times[one.name], ready[one.name]
        rate = operations(case) / time.median if one.computes == TAYLOR else None
        extra, by = found.extra_bytes if memory else None, ""
        if case.device == CUDA:
            by = "calls" if found.graph is None else "graph"
        elif memory and not one.compiled:  # there, the compiler's own memory would be measured
            extra = peak_extra_bytes(partial(call_of, one.name, case))
        judged.append(Judged(case, one.name, one.computes, "", found.error, time, rate,
                             None if rate is None else rate / yardstick, extra, by))  # fmt: skip
    return judged


def prepare(chosen: Mapping[str, Implementation], cases: Mapping[str, Case]) -> tuple[dict[str, Ready], dict[str, str]]:
    """Under the names given: calls that were checked, and why others have none."""
    ready: dict[str, Ready] = {}
    problems: dict[str, str] = {}
    for name, one in chosen.items():
        try:
            found = checked(one, cases[name])
            if cases[name].device == CUDA:
                graphs = [other.graph for other in ready.values() if other.graph is not None]
                extra = cuda.extra_bytes(found.run)
                graph = cuda.capture(found.run, TOLERANCE[cases[name].dtype], *graphs[:1])
                found = found._replace(extra_bytes=extra, graph=graph)
            ready[name] = found
        except ModuleNotFoundError as error:
            problems[name] = (
                NOT_INSTALLED if error.name and not error.name.startswith(("torch", "tsla")) else str(error)
            )
        except Exception as error:  # of one implementation, a kernel's compiler among them; the others go on
            problems[name] = str(error).strip().split("\n")[0] or type(error).__name__
    return ready, problems


def timed(
    runs: Mapping[str, Callable[[], object]], seconds: float, device: str = "cpu", dtype: str = "float32"
) -> dict[str, Timing]:
    """Times of the calls in turns with torch.mm, the yardstick: of float32 on the CPU, else of this type."""
    if device == CUDA:
        return cuda.interleaved({MATMUL: cuda.matmul(dtype), **runs}, seconds=seconds)
    return interleaved({MATMUL: matmul(), **runs}, seconds=seconds)


def checked(one: Implementation, case: Case) -> Ready:
    """The call of an implementation, once it was found to compute what it should.

    Outputs and gradients on a short sequence of the same kind; some rows of output and q's gradient at full length.

    Raises:
        Unavailable: it cannot do this case, or not in the memory there is.
        ValueError: an error above `TOLERANCE`: what is wrong is not worth a time.
    """
    if one.needs(case) > (cuda.free_bytes() if case.device == CUDA else free_bytes()) / 2:
        raise Unavailable(f"needs some {one.needs(case) / 2**30:.0f} GiB")
    short = case._replace(length=min(case.length, CHECKED))
    made, inputs = made_of(one, short)
    rows = torch.arange(short.length, device=case.device)
    exact: Form = lambda q, k, v: made.exact(q, *_per_head(k, v, case), rows)  # noqa: E731
    right = run_of(exact, [x.double() for x in inputs], case.backward)()
    found = run_of(made.form, inputs, case.backward)()
    worst = max(relative_error(*pair) for pair in zip(found, right, strict=True))
    made, inputs = made_of(one, case)
    run = run_of(torch.compile(made.form, dynamic=False) if one.compiled else made.form, inputs, case.backward)
    with warnings.catch_warnings():
        if one.compiled:
            warnings.simplefilter("ignore")  # what torch's compiler says of torch
        found = run()
    worst = max(worst, _error_of_rows(made, inputs, found, case))
    if one.compiled:  # the short sequence has told of the formula, and this of its compiled form
        right = [x.double() for x in run_of(made.form, inputs, case.backward)()]
        worst = max(worst, *(relative_error(*pair) for pair in zip(found, right, strict=True)))
    if not worst <= TOLERANCE[case.dtype]:
        raise ValueError(f"wrong: off by {worst:.2g}, no time")
    return Ready(run, worst)


def _error_of_rows(made: Made, inputs: list[Tensor], found: list[Tensor], case: Case) -> float:
    """Error of some rows of the output and of q's gradient, which need no other rows: cheap at any length."""
    q, k, v = (x.double() for x in inputs)
    half = SAMPLED // 2
    rows = torch.cat([torch.arange(min(half, case.length)), torch.linspace(0, case.length - 1, half).long()]).unique()
    rows = rows.to(case.device)
    right = made.exact(q.requires_grad_(case.backward), *_per_head(k, v, case), rows)
    worst = relative_error(found[0][:, :, rows], right.detach())
    if case.backward:
        (slope,) = torch.autograd.grad(right, q, right.detach())
        worst = max(worst, relative_error(found[1][:, :, rows], slope[:, :, rows]))
    return worst


def made_of(one: Implementation, case: Case) -> tuple[Made, list[Tensor]]:
    """An implementation and its inputs for a case; what packages warn of when they are imported is not ours to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = one.make(case)
    return made, made.prepare(inputs_of(case))


def call_of(name: str, case: Case) -> Run:
    """The call of an implementation by its name, run once on a few tokens, for a process that knows nothing yet."""
    one = implementations()[name]
    made, inputs = made_of(one, case._replace(length=min(case.length, CHECKED)))
    run_of(made.form, inputs, case.backward)()
    made, inputs = made_of(one, case)
    return run_of(made.form, inputs, case.backward)


def _per_head(k: Tensor, v: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    times = case.heads // case.kv_heads
    if times == 1:
        return k, v
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)

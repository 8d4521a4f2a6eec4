"""Ours against ours: what direction, groups, types, heads and length change, in pairs timed in turns."""

from typing import NamedTuple

from tsla.bench.cases import Case, Implementation
from tsla.bench.judge import prepare, timed


class Against(NamedTuple):
    """The time of one kind of call over that of another; problem: why there is none, or ""."""

    what: str
    over: str
    backward: bool
    problem: str = ""
    ratio: float | None = None
    seconds: float | None = None
    other_seconds: float | None = None


def variants(ours: Implementation, base: Case, long: int, seconds: float) -> list[Against]:
    """Ratios at `base`; and one head over many, and four times the tokens, up to `long` of them."""
    spread = base._replace(length=long // base.heads, kv_heads=base.heads)
    pairs = {
        ("causal", "bidirectional"): (base._replace(causal=True), base),
        ("multi-query", "multi-head"): (base._replace(kv_heads=1), base._replace(kv_heads=base.heads)),
        ("bfloat16", "float32"): (base._replace(dtype="bfloat16"), base._replace(dtype="float32")),
        (f"1 head, {long} tokens", f"{base.heads} heads, {spread.length}"): (
            spread._replace(heads=1, kv_heads=1, length=long), spread,
        ),
        (f"{long} tokens", f"{long // 4} tokens"): (base._replace(length=long), base._replace(length=long // 4)),
    }  # fmt: skip
    return [_against(ours, *names, *cases, seconds) for names, cases in pairs.items()]


def _against(ours: Implementation, what: str, over: str, case: Case, other: Case, seconds: float) -> Against:
    ready, problems = prepare({"case": ours, "other": ours}, {"case": case, "other": other})
    if problems:
        return Against(what, over, case.backward, " ".join(problems.values()))
    times = timed({name: found.timed for name, found in ready.items()}, seconds, case.device, case.dtype)
    first, second = times["case"].median, times["other"].median
    return Against(what, over, case.backward, "", first / second, first, second)

"""A row of docs/parity.md: ours, the field's, and how near they must be."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

LOCAL, FLA, PERFORMER, LINFORMER = "local-attention", "fla-core", "performer-pytorch", "linformer"
EXACT, SINGLE, DIGITS = 1e-12, 1e-4, 1e-9  # float64; sums of hundreds in float32 inside; ten printed digits

Pair = tuple[Callable[..., Any], Callable[..., Any], dict[str, Tensor]]  # ours, theirs, and the inputs of both


class Case(NamedTuple):
    """A comparison: of which package, what, with which option, how near, and what to run."""

    package: str
    what: str
    option: str
    tolerance: float
    make: Callable[[], Pair]
    gradients: bool = True

    @property
    def name(self) -> str:
        """One line that no other case has."""
        return f"{self.package} | {self.what} | {self.option}"

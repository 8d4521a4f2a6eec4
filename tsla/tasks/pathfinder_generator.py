"""Images of Pathfinder by C++ (pathfinder.cpp), as the published generator makes them, accidents and all.

Do two markers stand on the ends of one snake of paddles, or of two? It is that of arXiv 1805.08315,
from which Long Range Arena has its images.
"""

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsla.compiler import NativeError
from tsla.native import load
from tsla.tasks.pathfinder_stamps import DEGREES, Paddle, Stamps, directions, marker, stamps

CONTOURS = (6, 9, 14)  # paddles of a snake
SHORTEST = 3  # whose distractors are single paddles
FRAME = 1  # pixels at the edge that no paddle enters
MARKER_GAIN = 20  # brightnesses are in 1/20 of the marker's


class Scene(NamedTuple):
    """What images of a size are made of; the numbers are those of Long Range Arena.

    size: pixels a side.
    paddles: of which each image takes one kind.
    continuity: a turn counts so many times.
    seed_distance: pixels between the beginnings of the two snakes; half of how far they stay from the edge.
    marker_radius: in pixels.
    clutter: paddles of all distractors together, at most.
    target_gain, distractor_gain: brightness of a paddle.
    """

    size: int
    paddles: tuple[Paddle, ...]
    continuity: float
    seed_distance: int
    marker_radius: float
    clutter: int
    target_gain: int
    distractor_gain: int


SCENES = {
    32: Scene(32, (Paddle(2, 0.5, 1),), 1.0, 7, 1.5, 20, 30, 40),
    64: Scene(64, (Paddle(5, 1.0, 1),), 1.8, 12, 2.5, 22, 16, 16),
    128: Scene(128, (Paddle(5, 1.5, 2), Paddle(5, 1.5, 3)), 1.8, 20, 3.0, 35, 18, 18),
}


class Images(NamedTuple):
    """Images, and what is known of them.

    pixels: ``(n, size, size)`` uint8.
    labels: ``(n,)`` uint8, 1 where both markers are on one snake.
    markers: ``(n, 2, 2)`` int32, row and column of the marker at a beginning, then of the one at an end.
    tries: ``(n,)`` int32, pairs of snakes that were begun until both reached their length.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    markers: NDArray[np.int32]
    tries: NDArray[np.int32]


_NUMBERS = ("margins", "size", "apron", "frame", "centre", "contour", "distractors", "distractor_length",
            "target_gain", "distractor_gain", "marker_gain", "marker_half")  # fmt: skip


class Paddles(ctypes.Structure):
    """Addresses of the tables of a `Stamps`."""

    _fields_ = [*((name, ctypes.c_int64) for name in ("half", "margin", "places")),
                *((name, ctypes.c_void_p) for name in Stamps._fields)]  # fmt: skip


class Call(ctypes.Structure):
    """The arguments of a call."""

    _fields_ = [
        ("paddles", ctypes.c_void_p), *((name, ctypes.c_int64) for name in _NUMBERS), ("marker", ctypes.c_void_p),
        ("drift", ctypes.c_void_p), ("key", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("first", "count", "threads")),
        *((name, ctypes.c_void_p) for name in Images._fields),
    ]  # fmt: skip


class Generator:
    """Images of a scene, of which number i is the same however many are made, wherever, and by how many threads.

    Args:
        size: one of `SCENES`.
        contour: paddles of a snake, one of `CONTOURS`; 14 in images above 32 pixels.
        seed: of the sequence of images; each entry counts.
        clutter: paddles of all distractors together, at most. If it is given, the contour may be any from `SHORTEST` to
            the longest there is, in images of every size: easier ones than there are published.

    Raises:
        ValueError: a size, contour or clutter that there is not.
        NativeError: there is no C++ compiler.
    """

    def __init__(self, size: int, contour: int, seed: tuple[int, ...], clutter: int | None = None) -> None:
        check_scene(size, contour, clutter)
        self.library = _library()
        self.scene, self.contour, key = SCENES[size], contour, (*seed, size, contour)
        if clutter is not None:
            self.scene, key = self.scene._replace(clutter=clutter), (*key, clutter)
        self.key = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

    def make(self, first: int, count: int, threads: int) -> Images:
        """The images from number `first` on."""
        size, tables = self.scene.size, _tables(self.scene)
        made = Images(
            np.empty((count, size, size), np.uint8), np.empty(count, np.uint8), np.empty((count, 2, 2), np.int32),
            np.empty(count, np.int32),
        )  # fmt: skip
        length = self.contour // SHORTEST  # of a distractor
        call = Call(
            ctypes.addressof(tables.paddles), len(self.scene.paddles), size, tables.apron, FRAME,
            2 * self.scene.seed_distance, self.contour, self.scene.clutter // length, length, self.scene.target_gain,
            self.scene.distractor_gain, MARKER_GAIN, len(tables.marker) // 2, tables.marker.ctypes.data,
            tables.drift.ctypes.data, self.key, first, count, threads, *(array.ctypes.data for array in made),
        )  # fmt: skip
        self.library.tsla_pathfinder(ctypes.byref(call))
        return made


def check_scene(size: int, contour: int, clutter: int | None = None) -> None:
    """Raise ValueError unless there are images of that size with snakes of so many paddles; see `Generator`."""
    if size not in SCENES:
        raise ValueError(f"size ({size}) must be one of {', '.join(map(str, SCENES))}")
    allowed = CONTOURS if size == 32 else CONTOURS[-1:]
    if clutter is None and contour not in allowed:
        raise ValueError(f"contour ({contour}) must be {' or '.join(map(str, allowed))} for {size} x {size} pixels")
    if not SHORTEST <= contour <= CONTOURS[-1]:
        raise ValueError(f"contour ({contour}) must be from {SHORTEST} to {CONTOURS[-1]}")
    if not 0 <= (clutter or 0) <= SCENES[size].clutter:
        raise ValueError(f"clutter ({clutter}) must be from 0 to {SCENES[size].clutter} for {size} x {size} pixels")


class _Tables(NamedTuple):
    """What a call points at; `stamps` keeps it alive."""

    stamps: list[Stamps]
    paddles: Any
    marker: NDArray[np.uint8]
    drift: NDArray[np.float64]
    apron: int


@lru_cache(maxsize=1)
def _tables(scene: Scene) -> _Tables:
    made = [stamps(paddle, scene.continuity) for paddle in scene.paddles]
    paddles = (Paddles * len(made))(
        *(Paddles(paddle.half, paddle.margin, len(tables.circle), *(table.ctypes.data for table in tables))
          for paddle, tables in zip(scene.paddles, made, strict=True))
    )  # fmt: skip
    disc = marker(scene.marker_radius)
    drift = scene.seed_distance * directions(np.arange(DEGREES) * math.pi / 180)
    apron = max(len(disc) // 2, *(paddle.half + paddle.margin for paddle in scene.paddles))
    return _Tables(made, paddles, disc, drift, apron)


def _library() -> ctypes.CDLL:
    library = load("pathfinder")
    library.tsla_abi.restype = ctypes.c_int64
    if library.tsla_abi() != ctypes.sizeof(Call) + ctypes.sizeof(Paddles):
        raise NativeError("the library pathfinder and tsla.tasks.pathfinder_generator disagree about their structs")
    return library

"""What the images of Pathfinder are stamped with, as tables: paddles at every angle, what they take, where they lead.

Points are (row, column), an angle turns from the column axis towards the row axis, and a stamp is 8-bit grey.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DEGREES = 360  # a snake begins at a whole number of degrees from -180
SCALE = 2  # lines and discs are drawn so much larger and made smaller by Lanczos
CROWDED = 459  # of 255: paddle and mask together stay below 1.8
UNIT = 2**31  # a weight of 1

Grey = NDArray[np.uint8]
Whole = NDArray[np.int32]
Real = NDArray[np.float64]


class Paddle(NamedTuple):
    """Size of a paddle in pixels: the line, and the margin around it that no other paddle enters."""

    length: int
    thickness: float
    margin: int

    @property
    def half(self) -> int:
        """Of a stamp, which has 2 * half + 1 pixels a side."""
        return self.length + math.ceil(self.thickness) + self.margin


class Stamps(NamedTuple):
    """Tables of one `Paddle`: `DEGREES` paddles begin a snake, and one for each place of the circle continues it.

    ink, mask: ``(paddles, side, side)``, the line and the line with its margin, drawn from the middle.
    near: ``(paddles, side + 2 margin, side + 2 margin)``, the mask dilated once more.
    core_begin, core: cells ``(y, x, mask from which the paddle does not fit)``; those of paddle i are from
        `core_begin[i]` to `core_begin[i + 1]`.
    kernel_begin, kernel: likewise of each beginning the cells ``(y, x)`` that must be free; without any it never fits.
    head, pivot: ``(degrees, 2)``, of a beginning, from its tail and from the head; to be rounded up.
    onward: ``(paddles, 2)``, from one pivot to the next; to be rounded up.
    circle: ``(places, 2)``, where the next head may stand, from the pivot.
    weight: ``(paddles, places)`` uint32, cos^2 of continuity * turn, in 1 / `UNIT`.
    """

    ink: Grey
    mask: Grey
    near: Grey
    core_begin: Whole
    core: Whole
    kernel_begin: Whole
    kernel: Whole
    head: Real
    pivot: Real
    onward: Real
    circle: Whole
    weight: NDArray[np.uint32]


def stamps(paddle: Paddle, continuity: float) -> Stamps:
    """The tables of a paddle; the larger `continuity`, the straighter the snakes."""
    radius = paddle.length + paddle.margin
    beginnings = np.arange(-180, 180) * math.pi / 180  # deg2rad rounds otherwise
    arcs = np.arange(math.floor(2 * math.pi * radius) + 1) / radius
    around = np.floor(radius * directions(arcs))
    circle = np.ascontiguousarray(np.unique(around, axis=0), dtype=np.int32)
    turns = np.array([math.atan2(y, x) for y, x in circle])
    backwards = np.where(turns < 0, turns + math.pi, turns - math.pi)  # such a paddle is drawn from its head
    drawn = [_draw(paddle, angle) for angle in (*beginnings, *backwards)]
    ink, mask = (np.stack(images) for images in zip(*drawn, strict=True))
    angles = np.concatenate([beginnings, turns])
    apart = np.abs(angles[:, None] - turns)
    apart = np.minimum(continuity * np.minimum(apart, 2 * math.pi - apart), math.pi / 2)
    cosine = directions(apart.ravel())[:, 1].reshape(apart.shape)
    core = [[(y, x, CROWDED - cells[y, x]) for y, x in np.argwhere(cells >= CROWDED - 255)]
            for cells in mask.astype(int)]  # fmt: skip
    reverse = np.where(beginnings < 0, beginnings + math.pi, beginnings - math.pi)
    return Stamps(
        ink, mask, np.stack([_dilated(np.pad(cells, paddle.margin), paddle.margin) for cells in mask]),
        *_joined([np.reshape(cells, (-1, 3)) - [paddle.half, paddle.half, 0] for cells in core]),
        *_joined([_kernel(paddle, cells) for cells in mask[:DEGREES]]),
        paddle.length * directions(beginnings), radius * directions(reverse),
        (radius + paddle.margin) * directions(angles), circle,
        np.rint(cosine**2 * UNIT).astype(np.uint32),
    )  # fmt: skip


def marker(radius: float) -> Grey:
    """A disc, with the room around it that Lanczos needs."""
    half = (math.ceil(radius) + 3) * SCALE
    along = np.arange(2 * half + SCALE) - half
    disc = along[:, None] ** 2 + along**2 <= (radius * SCALE) ** 2
    return _smaller(disc.astype(np.uint8) * 255, (2 * half + SCALE) // SCALE)


def directions(angles: Real) -> Real:
    """Sine and cosine of each angle, ``(n, 2)``, by the C library: numpy's last digit depends on the CPU."""
    return np.array([(math.sin(angle), math.cos(angle)) for angle in angles])


def _draw(paddle: Paddle, angle: float) -> tuple[Grey, Grey]:
    """Ink and mask of a line from the middle."""
    middle = paddle.half * SCALE
    y, x = np.ceil(middle + paddle.length * SCALE * directions(np.array([angle]))[0])
    image = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    ImageDraw.Draw(image).line([(middle, middle), (int(x), int(y))], fill=255, width=round(paddle.thickness * SCALE))
    line = np.array(image)
    side = 2 * paddle.half + 1
    return _smaller(line, side), _smaller(_dilated(line, paddle.margin * SCALE), side)


def _smaller(image: Grey, side: int) -> Grey:
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def _dilated(image: Grey, radius: int) -> Grey:
    """The greatest value within `radius` of each pixel."""
    padded, found = np.pad(image, radius), np.zeros_like(image)
    height, width = image.shape
    along = np.arange(-radius, radius + 1)
    for y, x in np.argwhere(along[:, None] ** 2 + along**2 <= radius**2):
        np.maximum(found, padded[y : y + height, x : x + width], out=found)
    return found


def _kernel(paddle: Paddle, mask: Grey) -> Whole:
    """Cells that must be free where a snake begins: the full ones of its mask, one pixel to the lower right.

    None unless there are some in each closed quadrant. In the original the angle is lost there by accident: of 360
    degrees 30 are left at 32 pixels.
    """
    cells = np.argwhere(mask == 255) - paddle.half + 1
    cells = cells[(np.abs(cells) <= paddle.length + paddle.margin).all(1)]
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    everywhere = (cells[:, None] * signs >= 0).all(2).any(0).all()
    return cells.astype(np.int32) if everywhere else cells[:0].astype(np.int32)


def _joined(lists: list[Whole]) -> tuple[Whole, Whole]:
    """Where each list begins, and the lists one after another."""
    begin = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    return begin, np.ascontiguousarray(np.concatenate(lists), dtype=np.int32)

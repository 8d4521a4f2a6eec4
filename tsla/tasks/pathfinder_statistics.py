"""What images of Pathfinder should be like: the statistics of the published generator, told from the images alone."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tsla.tasks.expected import Statistic, exactly, near, widened
from tsla.tasks.pathfinder_generator import SCENES
from tsla.tasks.pathfinder_stamps import marker

ROWS = 2000  # that are looked at, the first ones
USUAL = 300  # images that the tolerances are for
NEIGHBOURS = np.ones((3, 3))  # of a pixel, across corners too
CENTRE = (14, 17)  # rows and columns where the first snake begins, of 32
REACH = 3  # pixels around a marker in which its first paddle lies
FAINT = 8  # of 255: less of a marker's edge is not looked for
# Of images of 32 pixels, by paddles of a snake: mean grey, snakes begun, light up and left of markers in the middle.
USUAL_OF = {6: (0.0512, 22.3, 0.51), 9: (0.0610, 63.5, 0.49), 14: (0.0794, 335.0, 0.435)}

Pixels = NDArray[np.uint8]


def find_markers(pixels: Pixels) -> NDArray[np.int64]:
    """Row and column of both markers of each image, ``(n, 2, 2)``, in no order.

    A marker is a disc of light; they are where most of its stamp is covered, and not within a radius of each other.
    Compared with what the generator says, 999 of 1,000 images of 32 pixels are right, and all that are larger.
    """
    count, size, _ = pixels.shape
    radius = SCENES[size].marker_radius
    stamp = marker(radius).astype(np.int32)
    half = len(stamp) // 2
    padded = np.pad(pixels, ((0, 0), (half, half), (half, half)))
    covered = np.zeros((count, size, size), np.int32)
    for y, x in np.argwhere(stamp > FAINT):
        covered += np.minimum(padded[:, y : y + size, x : x + size], stamp[y, x])
    first = _highest(covered)
    along = np.arange(size)
    far = (along[:, None] - first[:, 0, None, None]) ** 2 + (along - first[:, 1, None, None]) ** 2
    covered[far <= radius**2] = -1
    return np.stack([first, _highest(covered)], axis=1)


def _highest(values: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.stack(np.unravel_index(values.reshape(len(values), -1).argmax(1), values.shape[1:]), axis=1)


def distances(pixels: Pixels) -> NDArray[np.float64]:
    """How far the markers of each image are apart, in pixels."""
    first, second = find_markers(pixels).swapaxes(0, 1)
    apart: NDArray[np.float64] = np.linalg.norm(first - second, axis=1)
    return apart


def statistics(pixels: Pixels, labels: NDArray[np.int64], contour: int, tries: float | None) -> list[Statistic]:
    """Of images ``(n, size, size)`` and their classes, beside what they should be.

    Labels and extremes are known for all images, most for 32 pixels and snakes of 14 paddles: as measured on 1,400
    images of the original (arXiv 1805.08315). What is told of shorter snakes, and of light around markers in the
    middle, is of 6,000 of ours. A snake that begins there goes up and to the left, by an accident of the original: at
    -150 to -121 degrees alone.

    Args:
        tries: pairs of snakes begun for an image; None where the images are a user's.
    """
    wider = widened(len(pixels), USUAL)
    found = [
        near("share of label 1", np.mean(labels), 0.5, 0.09 * wider),
        exactly("share of images whose lightest pixel is 255", np.mean(pixels.max((1, 2)) == 255), 1),
        exactly("share of images whose darkest pixel is 0", np.mean(pixels.min((1, 2)) == 0), 1),
    ]
    if pixels.shape[1] != 32:
        return found
    mean, begun, light = USUAL_OF[contour]
    if tries is not None:
        found.append(near("snakes begun for an image", tries, begun, 0.25 * begun * wider))
    markers = find_markers(pixels)
    found.append(near("mean grey, 0 to 1", pixels.mean() / 255, mean, 0.0015 * wider))
    found.append(near("light up and left of markers in the middle", _up_left(pixels, markers), light, 0.05 * wider))
    return [*found, *_greys(pixels, wider), *_markers(pixels, markers, labels, wider)] if contour == 14 else found


def _greys(pixels: Pixels, wider: float) -> Iterator[Statistic]:
    light = pixels / np.float32(255)
    yield near("sd of greys", light.std(dtype=np.float64), 0.2005, 0.003 * wider)
    yield near("sd of an image's mean", light.mean((1, 2)).std(), 0.0080, 0.001 * wider)
    yield near("share of pixels that are 0", np.mean(pixels == 0), 0.657, 0.008 * wider)
    for level, share, tolerance in ((0.25, 0.126, 0.003), (0.5, 0.085, 0.002), (0.9, 0.0057, 0.0005)):
        yield near(f"share of pixels above {level}", np.mean(light > level), share, tolerance * wider)
    yield near("pixels above 0 of an image", (pixels > 0).sum((1, 2)).mean(), 351, 7 * wider)
    patches = [ndimage.label(image > 0.25, structure=NEIGHBOURS)[1] for image in light]
    yield near("patches above 0.25 of an image", np.mean(patches), 13.8, 0.6 * wider)
    along = np.arange(pixels.shape[1])
    edge = np.minimum.outer(*[np.minimum(along, along[::-1])] * 2)
    for ring, (mean, tolerance) in enumerate(((0.0017, 0.001), (0.011, 0.003), (0.113, 0.01))):
        yield near(
            f"mean grey of ring {ring + 1} from the edge", light[:, edge == ring].mean(), mean, tolerance * wider
        )


def _markers(
    pixels: Pixels, markers: NDArray[np.int64], labels: NDArray[np.int64], wider: float
) -> Iterator[Statistic]:
    image = np.arange(len(pixels))[:, None]
    yield Statistic("outermost row or column of a marker", float(np.minimum(markers, 31 - markers).min()), 2, 15)
    yield near("median grey of a marker's middle", np.median(pixels[image, markers[..., 0], markers[..., 1]]), 241, 3)
    apart = np.linalg.norm(markers[:, 0] - markers[:, 1], axis=1)
    means = [apart[labels == label].mean() if (labels == label).any() else 0.0 for label in (0, 1)]
    for label, usual in enumerate((12.8, 13.1)):
        yield near(f"distance of the markers, label {label}", means[label], usual, 0.9 * wider)
    by_chance = 1.75 * math.sqrt(USUAL / len(pixels))  # three deviations
    yield near("difference of these distances", means[1] - means[0], 0.3, 0.5 + by_chance)


def _up_left(pixels: Pixels, markers: NDArray[np.int64]) -> float:
    """Of the light in the four quarters around markers where the first snake begins, how much is in that one."""
    within = ((markers >= CENTRE[0]) & (markers <= CENTRE[1])).all(2)
    number, place = np.nonzero(within)
    up_left = everywhere = 0.0
    for y, x, shown in zip(*markers[number, place].T, pixels[number].astype(np.float64), strict=True):
        around = shown[y - REACH : y + REACH + 1, x - REACH : x + REACH + 1].copy()
        around[REACH], around[:, REACH] = 0, 0  # the cross through the marker belongs to no quarter
        up_left, everywhere = up_left + around[:REACH, :REACH].sum(), everywhere + around.sum()
    return float(up_left / max(everywhere, 1))

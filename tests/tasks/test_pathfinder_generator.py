"""Generated images of Pathfinder: statistics and accidents of the published generator, the same for any threads."""

import numpy as np
import pytest
from native_cases import needs_compiler
from scipy import ndimage
from sklearn.linear_model import Ridge

from tsla.compiler import NativeError
from tsla.tasks import pathfinder_generator
from tsla.tasks.pathfinder_generator import SCENES, Generator, Images
from tsla.tasks.pathfinder_stamps import DEGREES, Paddle, stamps

pytestmark = needs_compiler
SIDE = 32
TODAY = (1319773, 50, 1844)  # sums over 100 images: of grey values, labels and tries
EIGHT = np.ones((3, 3))  # neighbours of a pixel, across corners too


@pytest.fixture(scope="module")
def many():
    """1,500 images with snakes of 14 paddles."""
    return Generator(SIDE, 14, (0,)).make(0, 1500, 2)


@pytest.fixture(scope="module")
def hard(many):
    """300 of them, as the table of statistics wants."""
    return Images(*(values[:300] for values in many))


def rings(pixels, count):
    """Mean of the outermost ring of pixels, of the next one, and so on."""
    edge = np.minimum.outer(*[np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])] * 2)
    return [pixels[:, edge == ring].mean() for ring in range(count)]


def components(image, level):
    return ndimage.label(image > level, structure=EIGHT)


def test_grey_values(hard):
    """Those of 1,400 images of the original; the tolerances are for 300."""
    light = hard.pixels / 255
    assert light.mean() == pytest.approx(0.0794, abs=0.0015)
    assert light.std() == pytest.approx(0.2005, abs=0.003)
    assert light.mean((1, 2)).std() == pytest.approx(0.0080, abs=0.001)
    assert (light == 0).mean() == pytest.approx(0.657, abs=0.008)
    assert (light > 0.25).mean() == pytest.approx(0.126, abs=0.003)
    assert (light > 0.5).mean() == pytest.approx(0.085, abs=0.002)
    assert (light > 0.9).mean() == pytest.approx(0.0057, abs=0.0005)
    assert (light > 0).sum((1, 2)).mean() == pytest.approx(351, abs=7)
    assert (hard.pixels.max((1, 2)) == 255).all() and (hard.pixels.min((1, 2)) == 0).all()
    assert rings(light, 3) == [pytest.approx(0.0017, abs=0.001), pytest.approx(0.011, abs=0.003),
                               pytest.approx(0.113, abs=0.01)]  # fmt: skip
    assert np.mean([components(image, 0.25)[1] for image in light]) == pytest.approx(13.8, abs=0.6)


def test_restarts(many):
    """What sines at 90 and 180 degrees round to decides which snakes get on near the edge: without it, 280."""
    assert many.tries.min() >= 1 and many.tries.mean() == pytest.approx(325, abs=30)


def test_markers(hard):
    first, last = hard.markers[:, 0], hard.markers[:, 1]
    assert (first >= 7).all() and (first <= 23).all() and (last >= 2).all() and (last <= 29).all()
    assert first.mean() == pytest.approx(15.2, abs=0.6) and first.std() == pytest.approx(3.5, abs=0.3)
    assert last.std() == pytest.approx(8.7, abs=0.6)
    centres = hard.pixels[np.arange(300)[:, None], hard.markers[..., 0], hard.markers[..., 1]]
    assert np.median(centres) == pytest.approx(241, abs=3)
    apart = np.linalg.norm(first - last, axis=1)
    assert [apart[hard.labels == label].mean() for label in (0, 1)] == [pytest.approx(12.8, abs=0.9),
                                                                        pytest.approx(13.1, abs=0.9)]  # fmt: skip


def test_no_shortcut(many):
    """Neither how far the markers are apart, nor one light patch with both, nor single pixels give the label away."""
    labels = many.labels.astype(bool)
    assert labels.mean() == pytest.approx(0.5, abs=0.05)
    apart = np.linalg.norm(many.markers[:, 0] - many.markers[:, 1], axis=1)
    right = np.array([((apart > limit) == labels).mean() for limit in np.arange(0, 30, 0.5)])
    assert max(right.max(), 1 - right.min()) < 0.58
    joined = []
    for image, (first, last) in zip(many.pixels / 255, many.markers, strict=True):
        found, _ = components(image, 0.05)
        joined.append(found[tuple(first)] == found[tuple(last)])
    assert 0.45 <= (np.array(joined) == labels).mean() <= 0.55
    pixels = many.pixels.reshape(len(labels), -1) / 255
    linear = Ridge(alpha=50).fit(pixels[:1000], 2 * labels[:1000] - 1.0)
    assert ((linear.predict(pixels[1000:]) > 0) == labels[1000:]).mean() < 0.57


@pytest.mark.parametrize(
    ("paddle", "angles"),
    [
        (SCENES[32].paddles[0], [*range(-150, -120)]),
        (SCENES[64].paddles[0], 95),
        (SCENES[128].paddles[0], 354),
        (SCENES[128].paddles[1], 360),
    ],
)
def test_angles_at_which_a_snake_may_begin(paddle, angles):
    """By an accident of the original, at 32 pixels 30 of 360."""
    begin = stamps(paddle, 1.0).kernel_begin
    found = [angle - 180 for angle in range(DEGREES) if begin[angle + 1] > begin[angle]]
    assert (found if isinstance(angles, list) else len(found)) == angles


def test_the_first_paddle_points_up_and_left():
    """The consequence: around the first marker, if it is that of the first snake, ink lies up and left of it."""
    tables = stamps(Paddle(2, 0.5, 1), 1.0)
    begin = tables.kernel_begin
    ink = np.stack([tables.ink[angle] for angle in range(DEGREES) if begin[angle + 1] > begin[angle]])
    assert ink[:, :5, :5].sum() > 0.95 * ink.sum()


@pytest.mark.parametrize(("contour", "tries", "light"), [(6, 22.3, 0.0512), (9, 63.5, 0.0610)])
def test_shorter_snakes(contour, tries, light):
    images = Generator(SIDE, contour, (0,)).make(0, 1000, 2)
    assert images.tries.mean() == pytest.approx(tries, rel=0.12)
    assert images.pixels.mean() / 255 == pytest.approx(light, abs=0.0015)


@pytest.mark.parametrize("size", [64, 128])
def test_larger_images(size):
    """Two markers that are discs of light, and no fewer patches than there are snakes and markers."""
    images = Generator(size, 14, (0,)).make(0, 6, 2)
    radius = SCENES[size].marker_radius
    along = np.arange(size)
    for image, points in zip(images.pixels, images.markers, strict=True):
        assert image.max() == 255
        for y, x in points:
            disc = (along[:, None] - y) ** 2 + (along - x) ** 2 <= (radius - 1) ** 2
            assert image[disc].min() > 200
        assert components(image / 255, 0.25)[1] >= 4
    assert len({image.tobytes() for image in images.pixels}) == 6


def test_images_do_not_depend_on_threads_or_parts():
    one, two, five = (Generator(SIDE, 9, (3, 1)).make(0, 40, threads) for threads in (1, 2, 5))
    for a, b, c in zip(one, two, five, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    part = Generator(SIDE, 9, (3, 1)).make(25, 10, 2)
    assert np.array_equal(part.pixels, one.pixels[25:35]) and np.array_equal(part.labels, one.labels[25:35])
    assert len({image.tobytes() for image in one.pixels}) == 40


@pytest.mark.parametrize("change", [{"seed": (3, 2)}, {"seed": (4, 1)}, {"contour": 6}])
def test_other_images(change):
    setting = {"size": SIDE, "contour": 9, "seed": (3, 1)}
    a, b = (Generator(**s).make(0, 20, 1).pixels for s in (setting, setting | change))
    assert not {image.tobytes() for image in a} & {image.tobytes() for image in b}


def test_the_images_of_today():
    """A change of them needs a new VERSION in tsla/tasks/pathfinder.py, so that no stale folder is read."""
    made = Generator(SIDE, 6, (0,)).make(0, 100, 1)
    assert (int(made.pixels.sum(dtype=np.int64)), int(made.labels.sum()), int(made.tries.sum())) == TODAY


@pytest.mark.parametrize(
    ("size", "contour", "message"),
    [
        (48, 14, r"size \(48\) must be one of 32, 64, 128"),
        (32, 7, r"contour \(7\) must be 6 or 9 or 14 for 32 x 32 pixels"),
        (64, 6, r"contour \(6\) must be 14 for 64 x 64 pixels"),
    ],
)
def test_what_there_is_not(size, contour, message):
    with pytest.raises(ValueError, match=message):
        Generator(size, contour, (0,))


def test_a_library_of_another_version(monkeypatch):
    monkeypatch.setattr(pathfinder_generator.ctypes, "sizeof", lambda _: 1)
    with pytest.raises(NativeError, match="disagree about their structs"):
        Generator(SIDE, 14, (0,))

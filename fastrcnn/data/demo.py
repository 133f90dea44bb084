"""The demo data set: coloured shapes on cluttered backgrounds, generated from a seed, in the VOC2007 layout.

Each image has its own random generator, seeded with the seed and the number of the image. Class, colour, size, texture
and rotation are drawn independently, so only the outline of an object identifies its class.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import write_folder
from fastrcnn.progress import progress

CLASSES = ("circle", "square", "triangle", "star", "cross")
MARKER = "demo.json"  # contains the settings of the demo; written last, so it exists only in a complete demo
VERSION = 1  # version of the generator; increased whenever the same seed gives different images

SMALLEST, LARGEST = 24, 110  # pixels, longer side of an object's box
TINY = 13  # pixels; objects from TINY to SMALLEST are rare and marked difficult
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
ANNOTATION_XML = """<annotation>
  <folder>demo</folder>
  <filename>{}</filename>
  <source><database>drawn by fastrcnn demo</database></source>
  <size><width>{}</width><height>{}</height><depth>3</depth></size>
  <segmented>0</segmented>
{}</annotation>
"""
OBJECT_XML = """  <object>
    <name>{}</name>
    <pose>Unspecified</pose>
    <truncated>{}</truncated>
    <difficult>{}</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>
"""
SUPERSAMPLING = 4  # shapes are drawn larger by this factor, then reduced by averaging, for smooth edges


@dataclass(frozen=True)
class Settings:
    """The settings of a demo data set. Equal settings give data sets that are equal byte for byte."""

    seed: int
    train: int  # number of images in each split
    val: int
    test: int
    size: tuple[int, int]  # width, height in pixels
    version: int = VERSION

    @property
    def marker(self) -> str:
        """The contents of the file demo.json."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class DrawnObject:
    """One object of an image. The box is the half-open bounding box x1 y1 x2 y2 of `mask`."""

    name: str
    mask: np.ndarray  # (H, W) bool, the object's pixels, including those hidden by later objects
    box: tuple[int, int, int, int]
    truncated: bool  # extends beyond the image
    difficult: bool  # tiny, or less than half visible


def write_demo(
    root: Path,
    seed: int = 0,
    train: int = 300,
    val: int = 50,
    test: int = 100,
    size: tuple[int, int] = (224, 160),
) -> Path:
    """Write the demo data set to the new folder `root` and return `root`.

    The folder contains JPEGImages, Annotations and ImageSets/Main/{train,val,trainval,test}.txt, like VOC2007.
    `train`, `val` and `test` are numbers of images; `size` is the width and height of each image in pixels.
    Ground-truth boxes contain the entire object, including hidden parts, and are clipped to the image.

    The folder is written atomically. If `root` already contains a complete demo with the same settings, it is left
    unchanged. Raises UserError if a setting is out of range, or if anything else exists at `root`.
    """
    root = Path(root)
    settings = Settings(seed, train, val, test, (int(size[0]), int(size[1])))
    _check(settings)
    if _is_finished(root, settings):
        return root
    try:
        with write_folder(root) as folder:
            _write_all(folder, settings)
    except UserError:
        if not _is_finished(root, settings):  # otherwise another process wrote the same demo in the meantime
            raise
    return root


def _check(settings: Settings) -> None:
    if settings.seed < 0 or min(settings.train, settings.val, settings.test) < 0:
        numbers = f"seed={settings.seed}, train={settings.train}, val={settings.val}, test={settings.test}"
        raise UserError(f"{numbers}: the seed and the numbers of images of the demo must not be negative.")
    if min(settings.size) < 64 or max(settings.size) > 4096:
        raise UserError(f"size={settings.size}: width and height of the demo's images must be from 64 to 4096 pixels.")


def _is_finished(root: Path, settings: Settings) -> bool:
    """Return whether `root` is a complete demo with these settings. Raises UserError if anything else exists there."""
    if not root.exists() and not root.is_symlink():
        return False
    marker = root / MARKER
    found = marker.read_text(encoding="utf-8", errors="replace")[:300] if marker.is_file() else None
    if found == settings.marker:
        return True
    what = f"is a demo data set with other settings: {found.strip()}" if found else "is not a complete demo data set"
    raise UserError(
        f"{root} already exists and {what}. It is not overwritten. "
        f"Choose another folder for the demo, or delete {root} if you do not need it."
    )


def _write_all(folder: Path, settings: Settings) -> None:
    images, annotations, lists = (folder / n for n in ("JPEGImages", "Annotations", "ImageSets/Main"))
    for new in (images, annotations, lists):
        new.mkdir(parents=True)
    ids = [f"{number:06d}" for number in range(1, settings.train + settings.val + settings.test + 1)]
    for image_id in progress(ids, len(ids), "drawing images"):
        picture, objects = draw_picture(settings.seed, int(image_id), settings.size)
        jpeg = cv2.imencode(".jpg", picture, JPEG)[1]
        (images / f"{image_id}.jpg").write_bytes(jpeg.tobytes())
        xml = _annotation(f"{image_id}.jpg", settings.size, objects)
        (annotations / f"{image_id}.xml").write_text(xml, encoding="utf-8")
    trainval = settings.train + settings.val
    train, val, test = ids[: settings.train], ids[settings.train : trainval], ids[trainval:]
    for split, members in (("train", train), ("val", val), ("trainval", train + val), ("test", test)):
        (lists / f"{split}.txt").write_text("".join(f"{m}\n" for m in members), encoding="utf-8")
    (folder / MARKER).write_text(settings.marker, encoding="utf-8")


def _annotation(filename: str, size: tuple[int, int], objects: list[DrawnObject]) -> str:
    """Return the VOC XML of an image. Boxes become one-based and inclusive: x1 y1 x2 y2 becomes x1+1 y1+1 x2 y2."""
    parts = []
    for item in objects:
        x1, y1, x2, y2 = item.box
        flags = int(item.truncated), int(item.difficult)
        parts.append(OBJECT_XML.format(item.name, *flags, x1 + 1, y1 + 1, x2, y2))
    return ANNOTATION_XML.format(filename, *size, "".join(parts))


# ------------------------------------------------------------------------------------------------ drawing


def draw_picture(seed: int, number: int, size: tuple[int, int]) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draw image `number`, from 1. Return the pixels (H, W, 3) uint8 BGR and the drawn objects from back to front."""
    rng = np.random.default_rng([seed, number])
    canvas = _background(rng, *size)
    placed: list[_Placed] = []
    for _ in range(int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.1, 0.2, 0.25, 0.2, 0.15, 0.1]))):
        new = _place(rng, size, placed)
        if new is not None:
            placed.append(new)
            _paint(rng, canvas, new.coverage)
    canvas += rng.normal(0, rng.uniform(1.5, 4.5), canvas.shape)  # sensor noise on the entire image
    objects = []
    for item, visible in zip(placed, _visible(placed), strict=True):
        mask = item.coverage >= 0.5
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
        difficult = bool(visible < 0.5 or item.side < SMALLEST)
        objects.append(DrawnObject(item.name, mask, box, bool(mask.sum() < item.pixels), difficult))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


@dataclass(frozen=True)
class _Placed:
    name: str
    coverage: np.ndarray  # (H, W) float32, fraction of each pixel that the object covers
    pixels: int  # area of the whole object, including parts outside the image
    side: float  # longer side of the whole object's box, in pixels


def _outline(name: str) -> np.ndarray:
    """Return the corners (N, 2) of a shape centred at the origin, in arbitrary units."""
    if name == "cross":
        a, b = 0.36, 1.0
        return np.array([(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b),
                         (-a, -b), (-a, -a), (-b, -a), (-b, a), (-a, a), (-a, b)])  # fmt: skip
    corners = {"circle": 96, "square": 4, "triangle": 3, "star": 10}[name]
    angles = np.arange(corners) * (2 * np.pi / corners)
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


def _place(rng: np.random.Generator, size: tuple[int, int], placed: list[_Placed]) -> _Placed | None:
    """Return a random object, or None if no place leaves 75 % (in every tenth call, 25 %) of each object visible."""
    name = CLASSES[rng.integers(len(CLASSES))]
    largest = min(LARGEST, 0.7 * min(size))
    side = rng.uniform(TINY, SMALLEST) if rng.random() < 0.04 else np.exp(rng.uniform(*np.log((SMALLEST, largest))))
    least_visible = 0.25 if rng.random() < 0.1 else 0.75
    angle = rng.uniform(0, 2 * np.pi)
    corners = _outline(name) @ np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    # The longer side of the box is `side` for every shape, so the size does not reveal the class.
    corners = (corners - corners.min(0)) * (side / np.ptp(corners, axis=0).max())
    extent = int(side) + 3
    fine = np.zeros((extent * SUPERSAMPLING, extent * SUPERSAMPLING), np.float32)
    cv2.fillPoly(fine, [np.rint((corners + rng.random(2)) * SUPERSAMPLING).astype(np.int32)], 1.0)
    patch = cv2.resize(fine, (extent, extent), interpolation=cv2.INTER_AREA)
    for _ in range(30):
        beyond = 0.45 * side if rng.random() < 0.15 else 0.0  # some objects extend beyond the image
        x, y = (int(rng.uniform(-beyond, length - extent + beyond)) for length in size)
        pasted = np.zeros((size[1], size[0]), np.float32)
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + extent, size[0]), min(y + extent, size[1])
        pasted[y1:y2, x1:x2] = patch[y1 - y : y2 - y, x1 - x : x2 - x]
        new = _Placed(name, pasted, int((patch >= 0.5).sum()), side)
        if min(_visible([*placed, new])) >= least_visible and not _nests(pasted, placed):
            return new
    return None


def _visible(placed: list[_Placed]) -> list[float]:
    """Return the fraction of each object that is inside the image and not covered by later objects."""
    shares = []
    covered: np.ndarray | bool = False
    for item in reversed(placed):
        mask = item.coverage >= 0.5
        shares.append(float((mask & np.logical_not(covered)).sum()) / item.pixels)
        covered = mask | covered
    return shares[::-1]


def _nests(coverage: np.ndarray, placed: list[_Placed]) -> bool:
    """Return whether more than half of a new object is on one other object, which would make the class ambiguous."""
    mask = coverage >= 0.5
    return any((mask & (other.coverage >= 0.5)).sum() > 0.5 * mask.sum() for other in placed)


# ------------------------------------------------------------------------------------------------ painting


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a background (H, W, 3) float32: a gradient with smooth noise and stripes, plus blobs and lines."""
    first, second = (_colour(rng, (0.1, 0.5), (0.35, 0.95)) for _ in range(2))
    blend = _ramp(rng, width, height)[..., None]
    canvas = first * (1 - blend) + second * blend
    for sigma, strength in ((30, 16), (8, 7), (2, 4)):
        noise = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)).astype(np.float32), (0, 0), sigma)
        canvas += strength * rng.uniform(0.4, 1.0) * noise / noise.std()
    if rng.random() < 0.5:
        canvas += rng.uniform(2, 6) * _stripes(rng, width, height)[..., None]
    for _ in range(rng.integers(2, 6)):
        blob = _blob(rng, width, height)[..., None] * rng.uniform(0.25, 0.6)
        canvas += blob * (_colour(rng, (0.1, 0.6), (0.3, 0.95)) - canvas)
    for _ in range(rng.integers(2, 7)):
        line = np.zeros((height, width), np.uint8)
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        bend = rng.uniform(0, 1, 2) * (width, height)
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * bend + t**2 * ends[1]  # quadratic Bezier
        thickness = int(rng.integers(1, 4))
        cv2.polylines(line, [np.rint(curve * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, 4)
        opacity = line[..., None] / 255 * rng.uniform(0.4, 0.9)
        canvas += opacity * (_colour(rng, (0.1, 0.8), (0.2, 0.95)) - canvas)
    return canvas.astype(np.float32)


def _paint(rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray) -> None:
    """Paint an object onto `canvas` in a colour that contrasts with the pixels around and under it."""
    height, width = coverage.shape
    around = cv2.dilate(coverage, np.ones((9, 9), np.uint8)) > 0
    colour = _standing_out(rng, canvas[around])
    shadow = cv2.GaussianBlur(coverage, (0, 0), 2.5)
    dx, dy = rng.uniform(1, 3, 2)
    shadow = cv2.warpAffine(shadow, np.array([[1, 0, dx], [0, 1, dy]]), (width, height))
    canvas *= 1 - 0.35 * shadow[..., None]
    fill = colour * (1 + rng.uniform(0.1, 0.3) * (_ramp(rng, width, height, coverage) - 0.5))[..., None]
    texture = rng.integers(3)
    if texture == 1:
        fill *= 1 + rng.uniform(0.03, 0.09) * _stripes(rng, width, height)[..., None]
    elif texture == 2:
        noise = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 1.5)
        fill *= 1 + rng.uniform(0.03, 0.08) * (noise / noise.std())[..., None]
    if rng.random() < 0.4:
        inner = cv2.erode(coverage, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
        rim = rng.uniform(0.55, 0.75)
        fill *= (rim + (1 - rim) * inner)[..., None]
    canvas += coverage[..., None] * (fill - canvas)


def _standing_out(rng: np.random.Generator, surroundings: np.ndarray) -> np.ndarray:
    """Return a random BGR colour (3,) that differs visibly from most of the BGR pixels `surroundings` (P, 3)."""
    lab = _lab(surroundings[:: max(1, len(surroundings) // 500)])
    wanted = rng.uniform(26, 45)
    best, best_distance = None, -1.0
    for _ in range(40):
        colour = _colour(rng, (0.45, 0.9), (0.45, 1.0))
        distance = float(np.percentile(np.linalg.norm(lab - _lab(colour[None]), axis=1), 10))
        if distance > best_distance:
            best, best_distance = colour, distance
        if best_distance >= wanted:
            break
    assert best is not None
    return best


def _lab(bgr: np.ndarray) -> np.ndarray:
    """Convert BGR colours (P, 3) in [0, 255] to CIE L*a*b*, where distances correspond to perceived differences."""
    share = np.clip(bgr, 0, 255).astype(np.float32)[None] / 255
    return np.asarray(cv2.cvtColor(share, cv2.COLOR_BGR2LAB))[0]


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """Return a random BGR colour (3,) float32 in [0, 255], of any hue."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))[0, 0] * 255


def _ramp(rng: np.random.Generator, width: int, height: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Return a linear ramp (H, W) float32 in a random direction, with values from 0 to 1 within `mask`."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = np.cos(angle) * x + np.sin(angle) * y
    inside = ramp if mask is None else ramp[mask > 0]
    return (ramp - inside.min()) / max(np.ptp(inside), 1.0)


def _stripes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return sine waves (H, W) float32 in [-1, 1], in a random direction and with a period of 5 to 12 pixels."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(5, 12)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period))


def _blob(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return an elongated, wavy blob with a soft edge, unlike any of the classes, as (H, W) float32 in [0, 1]."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = [rng.uniform(0.1, 0.3) * np.cos(k * t + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    radius = rng.uniform(0.08, 0.22) * min(width, height) * (1 + np.sum(waves, axis=0))
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(1.8, 3.0)
    x, y = radius * np.cos(t) * stretch, radius * np.sin(t)
    centre = rng.uniform(0, 1, 2) * (width, height)
    points = np.stack((x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)), 1) + centre
    blob = np.zeros((height, width), np.float32)
    cv2.fillPoly(blob, [np.rint(points).astype(np.int32)], 1.0)
    return cv2.GaussianBlur(blob, (0, 0), rng.uniform(2, 6))

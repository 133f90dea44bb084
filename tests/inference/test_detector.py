"""Detection in pictures in memory: what counts as a picture, as proposals, and what comes back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from limits import PATIENCE
from PIL import Image, ImageOps

from fastrcnn.data.sources import decode_each
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.inference.detector import Detector, as_array
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.parallel import ahead
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import DetectionSettings, SelectiveSearchSettings
from fastrcnn.structures import Batch, Detection, Detections

SEARCH = SelectiveSearchSettings(side=64, k=[50])


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    model = FastRCNN(2, width=0.03, roi_size=3).eval()
    with torch.no_grad():
        model.cls_score.weight.normal_(std=0.5)
        model.bbox_pred.weight.normal_(std=0.05)
    settings = DetectionSettings(score_threshold=0.1)
    scaling = Augmentation((48,), 96, flip=False)
    return Detector(TorchNetwork(model), ["cat", "dog"], settings, scaling, lambda image: propose(image, SEARCH)[:50])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60))


def same(a: Detections, b: Detections) -> None:
    for field in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def nearly(a: Detections, b: Detections) -> None:
    """Several pictures at a time are summed up in another order, so those that tie may change places."""
    for one, other in zip(sorted(a, key=by_place), sorted(b, key=by_place), strict=True):
        assert one.label == other.label
        assert one.box == pytest.approx(other.box, abs=1e-3)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def by_place(found: Detection) -> tuple[float, ...]:
    return (found.label, *(round(v, 1) for v in found.box))


def test_a_picture_is_the_same_in_every_form(detector: Detector, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a é.png"
    Image.fromarray(image).save(path)
    found = detector.detect(image)
    assert len(found) > 3
    assert len(set(found.scores.tolist())) > 3
    assert found.classes == ("cat", "dog")
    for form in (
        str(path),
        path,
        Image.fromarray(image),
        Image.fromarray(image).convert("RGBA"),
        torch.from_numpy(image).permute(2, 0, 1),
        image[:, ::-1][:, ::-1],
        np.asfortranarray(image),
    ):
        same(detector.detect(form), found)
    mirrored = detector.detect(np.ascontiguousarray(image[..., ::-1]))
    assert len(mirrored) != len(found) or not torch.equal(mirrored.scores, found.scores), "BGR is not RGB"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_and_pillows_images_are_rotated_upright(
    image: np.ndarray, tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(image).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    atol = 4 if kind == "jpg" else 0  # two decoders
    np.testing.assert_allclose(as_array(path).astype(int), upright, atol=atol)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(as_array(opened), upright)
        np.testing.assert_array_equal(as_array(opened), upright)  # TIFFs are rotated by Pillow when they are loaded
        np.testing.assert_array_equal(as_array(ImageOps.exif_transpose(opened)), upright)
        np.testing.assert_array_equal(as_array(opened.convert("RGB")), upright)


def test_boxes_are_in_the_pictures_own_pixels(detector: Detector, image: np.ndarray) -> None:
    """A detector that moves nothing gives its proposals, cut off at the edge, whatever size the network sees."""
    still = Detector(
        detector.network,
        ["cat", "dog"],
        DetectionSettings(score_threshold=0.0, box_regression=False, nms_iou=1.0),
        detector.scaling,
        propose,
    )
    proposals = np.array([[10, 20, 30, 45], [-5, 0, 400, 59.5], [500, 500, 600, 600]])
    found = still.detect(image, proposals)
    boxes = {tuple(box) for box in found.boxes.tolist()}
    assert boxes == {(10.0, 20.0, 30.0, 45.0), (0.0, 0.0, 80.0, 59.5)}
    same(still.detect(image, torch.from_numpy(proposals).float()), found)
    assert len(still.detect(image, np.zeros((0, 4)))) == 0


def test_proposals_are_selective_searchs_where_none_are_given(detector: Detector, image: np.ndarray) -> None:
    own = propose(image, SEARCH)[:50]
    same(detector.detect(image), detector.detect(image, own))
    assert set(detector.watch.seconds) == {"proposals", "network", "nms"}
    assert set(detector.watch.work) == {"proposals"}
    assert all(seconds > 0 for seconds in (*detector.watch.seconds.values(), *detector.watch.work.values()))


@pytest.mark.parametrize("batch", [1, 2])
def test_lists_give_lists_in_their_order(detector: Detector, image: np.ndarray, batch: int) -> None:
    other = np.ascontiguousarray(image[::-1])
    images = [image, other, image]
    found = detector.detect(images, batch=batch)
    assert len(found) == 3
    for of_image, alone in zip(found, images, strict=True):
        nearly(of_image, detector.detect(alone))
    boxes = [propose(i, SEARCH)[:20] for i in images]
    for of_image, alone, own in zip(detector.detect(images, boxes, batch=batch), images, boxes, strict=True):
        nearly(of_image, detector.detect(alone, own))
    assert detector.detect([]) == []


class Watched:
    """The network of a detector, which is told of each batch before it looks at it."""

    def __init__(self, network: TorchNetwork, told: Callable[[Sequence[Batch]], object]) -> None:
        self.network, self.told = network, told
        self.classifier, self.device, self.runs_on = network.classifier, network.device, network.runs_on

    def outputs(self, pyramid: Sequence[Batch], *rest: object) -> list:
        self.told(pyramid)
        return self.network.outputs(pyramid, *rest)  # type: ignore[arg-type]


def several(image: np.ndarray, number: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.roll(image, 5 * i, axis=1)[:, : 80 - 3 * i]) for i in range(number)]


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_proposals_of_the_next_image_are_made_while_the_network_looks_at_this_one(
    detector: Detector, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    """The network waits with each image until the search for the next one, which itself waits for the network, is
    over."""
    monkeypatch.setattr(ahead, "cores", lambda: cores)
    images = several(image, 4)
    place = {i.shape[1]: number for number, i in enumerate(images)}
    looks, made = ([threading.Event() for _ in range(5)] for _ in range(2))
    made[4].set()
    at = iter(range(4))

    def search(one: np.ndarray) -> np.ndarray:
        number = place[one.shape[1]]
        assert number == 0 or looks[number - 1].wait(30)
        boxes = detector.propose(one)
        made[number].set()
        return boxes

    def look(_: Sequence[Batch]) -> None:
        number = next(at)
        looks[number].set()
        assert made[number + 1].wait(30)

    both = replace(detector, network=Watched(detector.network, look), propose=search)  # type: ignore[arg-type]
    for of_image, alone in zip(both.detect(images), images, strict=True):
        same(of_image, detector.detect(alone))


@pytest.mark.parametrize(("batch", "every"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)])
def test_results_are_those_of_proposals_made_before(
    detector: Detector, image: np.ndarray, batch: int, every: int
) -> None:
    """Bit for bit: the same images go through the network together."""
    images = several(image, 7)
    boxes = [detector.propose(i) for i in images]
    batches: list[list[int]] = []
    watched = replace(
        detector,
        network=Watched(detector.network, lambda p: batches.append([s.width for s in p[0].samples])),  # type: ignore[arg-type]
    )
    got = list(watched.detect_each(enumerate(images), batch=batch, every=every))
    want = list(detector.detect_each(enumerate(images), boxes.__getitem__, batch, every))
    for (key, shown, found, new), (i, _, wanted, _) in zip(got, want, strict=True):
        assert (key, new) == (i, i % every == 0)
        assert shown is images[i]
        same(found, wanted)
    widths = [i.shape[1] for i in images[::every]]
    assert batches == [widths[i : i + batch] for i in range(0, len(widths), batch)]
    if every == 1:
        for of_list, (_, _, found, _) in zip(detector.detect(images, batch=batch), got, strict=True):
            same(of_list, found)


@pytest.mark.parametrize("end", ["closed", "interrupted", "failed"])
def test_few_images_are_decoded_ahead_and_no_thread_outlives_the_end(
    detector: Detector, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    paths = {f"{i}": tmp_path / f"{i}.png" for i in range(40)}
    for path in paths.values():
        Image.fromarray(image).save(path)
    decoded, imdecode, searched = [], cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda *a: (decoded.append(1), imdecode(*a))[1])

    def look(_: Sequence[Batch]) -> None:
        if end == "interrupted":
            raise KeyboardInterrupt

    def search(one: np.ndarray) -> np.ndarray:
        searched.append(1)
        if end == "failed":
            raise UserError("no search")
        return detector.propose(one)

    both = replace(detector, network=Watched(detector.network, look), propose=search)  # type: ignore[arg-type]
    with closing(decode_each(paths, [], [])) as images, closing(both.detect_each(images)) as each:
        if end == "closed":
            assert next(each)[0] == "0"
        else:
            with pytest.raises(KeyboardInterrupt if end == "interrupted" else UserError):
                next(each)
    assert len(searched) <= 4
    assert len(decoded) <= 4 + 2, "twice as many as there are cores with proposals, two decoded before"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("batch", [1, 2])
def test_each_file_of_a_list_is_decoded_once(
    detector: Detector, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, pixels in zip(paths, several(image, 5), strict=True):
        Image.fromarray(pixels).save(path)
    decoded, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: (decoded.append(1), imdecode(*a))[1])
    found = detector.detect([str(path) for path in paths], batch=batch)
    assert len(decoded) == 5
    for of_file, of_array in zip(found, detector.detect(several(image, 5), batch=batch), strict=True):
        same(of_file, of_array)
    paths[3].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png: the file is not an image"):
        detector.detect(paths, batch=batch)


@pytest.mark.parametrize("size", [(1, 1), (2, 3000), (700, 1), (40, 60)])
def test_pictures_of_any_size(detector: Detector, size: tuple[int, int]) -> None:
    found = detector.detect(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    if len(found):
        assert (found.boxes[:, 2:].amax(dim=0) <= torch.tensor(size[::-1])).all()


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (np.zeros((4, 4, 3)), TypeError, r"image: expected dtype uint8 \(values 0 to 255\), got float64"),
        (np.zeros((4, 4, 3), np.uint16), TypeError, "got uint16. Shift 12-bit values right by 4 bits or 16-bit"),
        (np.zeros((4, 4), np.uint8), ValueError, r"image: .* array with shape \(H, W, 3\), got \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "image: expected a non-empty array"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"image: expected a tensor with shape \(3, H, W\)"),
        (torch.zeros(3, 4, 4), TypeError, "image: expected dtype uint8"),
        (
            Image.new("F", (4, 4)),
            TypeError,
            "image: expected a PIL image with 8 bits per channel, got mode F. Pass the file's path",
        ),
        (Image.new("I;16", (4, 4)), TypeError, "got mode I;16"),
        (7, TypeError, "image: expected a path, a PIL image, an array or a tensor, got int"),
        ("gone.jpg", UserError, "gone.jpg: the file cannot be read"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else "",
)
def test_what_is_no_picture_is_said(detector: Detector, bad: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        detector.detect(bad)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (
            np.array([[0, 0, 4, 4], [0, 0, np.nan, 4]]),
            ValueError,
            r"row 1 is .*nan.*, which is not a box x1 y1 x2 y2 of finite numbers .* invalid rows: 1\.",
        ),
        (
            np.array([[5.0, 5, 2, 9]]),
            ValueError,
            r"row 0 is \[5.0, 5.0, 2.0, 9.0\], which is not a box x1 y1 x2 y2 of finite numbers with x1 < x2",
        ),
        (np.zeros((2, 5)), ValueError, r"expected shape \(P, 4\), got \(2, 5\)"),
        ([["a"] * 4], TypeError, "expected an integer or floating-point dtype"),
    ],
    ids=["nan", "inverted", "shape", "text"],
)
def test_what_are_no_proposals_is_said(
    detector: Detector, image: np.ndarray, bad: object, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"proposals: {said}"):
        detector.detect(image, bad)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"proposals: expected one array per image \(number of images: 2\), got 1"):
        detector.detect([image, image], [np.zeros((0, 4))])


def test_a_detector_prints_what_it_is(detector: Detector) -> None:
    assert repr(detector) == "Detector(2 classes: cat, dog; TorchNetwork on cpu)"


READ_ONLY = """
import sys, warnings
import numpy as np, torch
from fastrcnn.data.loader import collate
from fastrcnn.data.dataset import Example
from fastrcnn.structures import Sample, View
from pathlib import Path
warnings.simplefilter("error")
image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
np.save(sys.argv[1], image)
frozen = image.copy()
frozen.flags.writeable = False
forms = [
    frozen, np.load(sys.argv[1], mmap_mode="r"), np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    image[:, ::-1].copy()[:, ::-1], np.asfortranarray(image),
]
none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
for form in forms:
    sample = Sample("", Path(), 4, 3, *none)
    batch = collate([Example(form, none[0], none[0], none[1], 1.0, sample, View(3, 4))])
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), image)
"""


def test_an_array_that_cannot_be_written_gives_no_warning(tmp_path: Path) -> None:
    """In a process of its own: torch warns once in a process."""
    command = [sys.executable, "-c", READ_ONLY, str(tmp_path / "image.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""Our selective search: equal to a plain reference, to OpenCV's, and to itself on every instruction set."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import plain_search
import pytest

from fastrcnn.data.images import read_image
from fastrcnn.errors import UserError
from fastrcnn.proposals import kernel, selective_search
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import SelectiveSearchSettings

pytestmark = pytest.mark.skipif(kernel.library() is None, reason="the kernel was not built: no C++ compiler")

ALL = kernel.COLOUR + kernel.TEXTURE + kernel.SIZE + kernel.FILL
BLUR = plain_search.gaussian(0.8)
SIMILARITIES = (ALL, ALL - kernel.COLOUR, kernel.COLOUR, kernel.TEXTURE, kernel.SIZE + kernel.FILL)


def levels() -> list[str]:
    library = kernel.library()
    return list(kernel.LEVELS[: library.roi_pool_best_level() + 1]) if library else []


def patches(seed: int, height: int, width: int, count: int = 3, noise: int = 6) -> np.ndarray:
    """Planes (count, height, width) uint8: patches of plain colours and some noise."""
    rng = np.random.default_rng(seed)
    planes = np.full((count, height, width), rng.integers(0, 256, (count, 1, 1)))
    for _ in range(8):
        y, x = rng.integers(0, [height, width])
        planes[:, y : y + height // 2, x : x + width // 3] = rng.integers(0, 256, (count, 1, 1))
    return (planes + rng.integers(-noise, noise + 1, planes.shape)).clip(0, 255).astype(np.uint8)


def searched(
    planes: np.ndarray, k: Sequence[float], min_size: int, similarities: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles and first segments of one colour image with all planes."""
    labels = np.empty((1, len(k), *planes.shape[1:]), np.int32)
    found, _, _ = kernel.search(planes, [range(len(planes))], k, BLUR, [min_size] * len(k), similarities, labels)
    return found, labels[0]


@pytest.mark.parametrize(
    ("planes", "min_size"),
    [
        (patches(0, 31, 42), 10),
        (patches(1, 24, 53, count=1), 20),
        (patches(2, 30, 30, noise=0), 5),  # many edges of the same weight
        (patches(3, 30, 30, count=2, noise=90), 9),
        (np.zeros((3, 12, 9), np.uint8), 4),
        (patches(4, 1, 60, count=3), 3),
        (patches(5, 60, 1, count=3), 3),
        (patches(6, 2, 2), 1),
        (patches(7, 1, 1), 1),
    ],
)
@pytest.mark.parametrize("level", levels())
def test_the_same_as_a_plain_reference(
    planes: np.ndarray, min_size: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments for several k, and all boxes of each similarity, to the last one."""
    monkeypatch.setenv("FASTRCNN_SEARCH_LEVEL", level)
    blurred = [plain_search.blur(plane, BLUR) for plane in planes]
    k = (150.0, 20.0, 60.0)
    expected = [plain_search.segment(blurred, of_k, min_size) for of_k in k]
    _, labels = searched(planes, k, min_size, [ALL])
    np.testing.assert_array_equal(labels, expected)
    for similarity in SIMILARITIES:
        found, _ = searched(planes, k, min_size, [similarity])
        boxes = set().union(*(plain_search.group(planes, of_k, similarity) for of_k in expected))
        assert [tuple(r) for r in found.tolist()] == sorted(boxes)
    both, _ = searched(planes, k, min_size, SIMILARITIES)
    alone = [searched(planes, [of_k], min_size, [s])[0] for of_k in k for s in SIMILARITIES]
    np.testing.assert_array_equal(both, np.unique(np.concatenate(alone), axis=0))


@pytest.mark.parametrize("taken", [[[0, 1, 2]], [[2, 0]], [[1], [1], [0, 2]], [[0] * 20]])
def test_colour_images_share_planes(taken: list[list[int]]) -> None:
    planes = patches(9, 25, 33)
    found, _, _ = kernel.search(planes, taken, [50.0], BLUR, [10], [ALL])
    alone = [searched(planes[image], [50.0], 10, [ALL])[0] for image in taken]
    np.testing.assert_array_equal(found, np.unique(np.concatenate(alone), axis=0))


def photographs(test_data: Path) -> list[np.ndarray]:
    return [read_image(p) for p in sorted((test_data / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:3]]


def rectangles(image: np.ndarray, mode: str) -> set[tuple[int, ...]]:
    small = selective_search.resized(image, 320)
    return {tuple(r) for r in selective_search._search(small, SelectiveSearchSettings(mode, k=[50, 100]))[0].tolist()}


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_the_boxes_are_opencvs(test_data: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but where floats in another order, or edges of the same weight, decide another way."""
    selective_search.segmentation()
    for image in photographs(test_data):
        ours = rectangles(image, mode)
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "library", lambda: None)
            theirs = rectangles(image, mode)
        assert len(ours & theirs) > 0.95 * len(ours | theirs)


def test_the_same_boxes_on_every_instruction_set(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photographs(test_data)[0]
    found = []
    for level in levels():
        monkeypatch.setenv("FASTRCNN_SEARCH_LEVEL", level)
        found.append(propose(image))
    assert len(found[0]) > 100
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRCNN_SEARCH_LEVEL", "sse9")
    with pytest.raises(UserError, match=r"FASTRCNN_SEARCH_LEVEL=sse9: .*not supported.*Use one of: plain"):
        propose(patches(0, 20, 20).transpose(1, 2, 0))


def test_a_library_built_from_other_sources_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the sources without a new installation: its functions may take other arguments."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    source = tmp_path / "old.c"
    names = ("selective_search", "selective_search_take", "selective_search_thin")
    for interface, found in ((kernel.INTERFACE, True), (kernel.INTERFACE - 1, False)):
        functions = "".join(f"void {name}(void) {{}}\n" for name in names)
        source.write_text(f"{functions}int selective_search_interface(void) {{ return {interface}; }}\n")
        library = tmp_path / f"{interface}.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        monkeypatch.setenv("FASTRCNN_SEARCH_LIBRARY", str(library))
        kernel.library.cache_clear()
        try:
            assert (kernel.library() is not None) == found
        finally:
            kernel.library.cache_clear()


def test_threads_of_one_process_do_not_disturb_each_other() -> None:
    images = [patches(n, 40 + 7 * n, 90 - 5 * n).transpose(1, 2, 0) for n in range(8)]
    settings = SelectiveSearchSettings(side=120, k=[50], min_size=10)
    alone = [propose(image, settings) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for boxes, expected in zip(pool.map(lambda i: propose(i, settings), images), alone, strict=True):
                np.testing.assert_array_equal(boxes, expected)


def test_other_threads_run_meanwhile() -> None:
    assert type(kernel.library()) is ctypes.CDLL  # lets go of the interpreter while it is called; PyDLL does not


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
def test_memory_does_not_grow_with_the_images() -> None:
    code = """
import numpy as np
from pathlib import Path
from fastrcnn.proposals.selective_search import propose
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((240, 320), (320, 200), (90, 320))]
for image in images: propose(image)
before = resident()
for n in range(30): propose(images[n % 3])
print(resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 8 << 20, "an image takes about 50 MB while it is searched"


def test_without_a_compiler_opencv_searches_and_says_so(tmp_path: Path, test_data: Path) -> None:
    """The log has the choice once, and the store which one made it."""
    folder = test_data / "VOCdevkit/VOC2007/JPEGImages"
    source = sorted(folder.glob("*.jpg"))[0]
    settings = ["data.selective_search.side=64", "workers=1"]
    said, made = {}, {}
    for name, library in (("kernel", {}), ("OpenCV", {"FASTRCNN_SEARCH_LIBRARY": str(tmp_path / "none.so")})):
        store = tmp_path / f"{name}.proposals"
        run = subprocess.run(
            [sys.executable, "-m", "fastrcnn", "propose", f"source={source}", f"output={store}", *settings],
            env=os.environ | library,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        said[name], made[name] = run.stdout + run.stderr, (store / "meta.json").read_text()
    assert said["kernel"].count("Selective search uses the compiled kernel") == 1
    assert said["OpenCV"].count("Selective search uses OpenCV") == 1
    assert "install a C++ compiler" in said["OpenCV"]
    assert '"search": "fastrcnn' in made["kernel"]
    assert '"search": "OpenCV' in made["OpenCV"]


@pytest.mark.parametrize("by", ["kernel", "OpenCV"])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.arange(9000, dtype=np.uint32).astype(np.uint8).reshape(1, 3000, 3),
        np.arange(9000, dtype=np.uint32).astype(np.uint8).reshape(3000, 1, 3),
        np.full((200, 300, 3), 255, np.uint8),
        np.repeat(patches(0, 120, 160, count=1), 3, axis=0).transpose(1, 2, 0),  # grey
        np.repeat(patches(1, 3, 20_000), 1, axis=0).transpose(1, 2, 0),
        np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8),
        (np.indices((90, 90)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2),  # a chessboard
    ],
    ids=["1x1", "1x3000", "3000x1", "constant", "grey", "3x20000", "noise", "chessboard"],
)
def test_hostile_images(image: np.ndarray, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes in the image, the same ones twice; one is the image itself, or near enough to have thinned that away."""
    if by == "OpenCV":
        monkeypatch.setattr(kernel, "library", lambda: None)
    image = np.ascontiguousarray(image)
    before = image.copy()
    boxes = propose(image)
    height, width = image.shape[:2]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    if by == "kernel":  # OpenCV takes the pixels of a single row for strangers
        assert (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).max() >= 0.9 * width * height
    np.testing.assert_array_equal(boxes, propose(image))
    np.testing.assert_array_equal(image, before)

"""Selective search: the same boxes everywhere, nothing done twice, nothing stale, nothing lost."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from limits import PATIENCE

from fastrcnn.config.schema import DataConfig
from fastrcnn.config.values import fill
from fastrcnn.data.frames import without_objects
from fastrcnn.errors import UserError
from fastrcnn.proposals import generate, kernel, selective_search
from fastrcnn.proposals.generate import propose_all
from fastrcnn.proposals.selective_search import propose, propose_scored, score, spread
from fastrcnn.proposals.store import ProposalStore
from fastrcnn.settings import SelectiveSearchSettings
from fastrcnn.structures import Sample

QUICK = SelectiveSearchSettings(side=96, k=[50, 150], min_size=20)
BUILT = (kernel.thin,) if kernel.library() is not None else ()
needs_kernel = pytest.mark.skipif(not BUILT, reason="the kernel was not built")


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A noisy picture (H, W, 3) uint8 RGB with three rectangles in it."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(60, 120, 3), np.int64)
    for _ in range(3):
        x, y = rng.integers(0, [width - 25, height - 25])
        image[y : y + 20, x : x + 22] = rng.integers(0, 255, 3)
    return (image + rng.integers(-6, 7, image.shape)).clip(0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image[:, :, ::-1])[1].tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Sample]:
    folder = tmp_path / "photos ü"
    folder.mkdir()
    return [without_objects(f"id{n}", write(folder / f"{n}.png", picture(n)), (80, 60)) for n in range(5)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every image that is really searched (in this process)."""
    made: list[int] = []
    monkeypatch.setattr(generate, "propose_scored", lambda *args: (made.append(1), propose_scored(*args))[1])
    return made


def overlap(boxes: np.ndarray, box: list[int]) -> float:
    sides = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(min=0)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2] - box[0]) * (box[3] - box[1]) - sides.prod(1)
    return float((sides.prod(1) / union).max())


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("enlarged", [1, 3])
def test_rectangles_are_found_where_they_are(mode: str, enlarged: int) -> None:
    """Also checks x against y, corners against sizes, RGB, and the way back from the searched size."""
    image = np.full((90, 160, 3), 128, np.uint8)
    image[10:40, 20:100] = 220, 40, 40
    image[60:80, 120:150] = 40, 40, 220
    image = image.repeat(enlarged, 0).repeat(enlarged, 1)
    boxes = propose(image, SelectiveSearchSettings(mode))
    assert boxes.dtype == np.float32
    assert overlap(boxes, [20 * enlarged, 10 * enlarged, 100 * enlarged, 40 * enlarged]) > 0.9
    assert overlap(boxes, [120 * enlarged, 60 * enlarged, 150 * enlarged, 80 * enlarged]) > 0.9
    assert overlap(boxes, [0, 0, 160 * enlarged, 90 * enlarged]) == 1


@pytest.mark.parametrize("near", [0.25, 0.5, 0.75, 1.0])
def test_thinning_keeps_what_one_box_after_another_would(near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole coordinates, so that both are exact; many copies, and several blocks."""
    monkeypatch.setattr(selective_search, "BLOCK", 16)
    rng = np.random.default_rng(0)
    for most in (1, 7, 16, 50, 1000):
        boxes = np.sort(rng.integers(0, 12, (rng.integers(0, 200), 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        kept: list[list[int]] = []
        for box in boxes.astype(int).tolist():
            if len(kept) < most and not any(twins(box, other, near) for other in kept):
                kept.append(box)
        for thin in (selective_search._thin, *BUILT):
            assert boxes[thin(boxes, near, most)].tolist() == kept


def twins(a: list[int], b: list[int], near: float) -> bool:
    """Whether the boxes overlap by an IoU of `near` or more; nothing overlaps nothing wholly."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection >= near * union


def test_boxes_lie_in_the_image_and_no_two_are_nearly_the_same() -> None:
    boxes = propose(picture(3, 61, 83), SelectiveSearchSettings(near=0.8, min_side=6))
    assert len(boxes) > 20
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 83
    assert boxes[:, 3].max() <= 61
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 6
    for n, box in enumerate(boxes[:-1]):
        assert overlap(boxes[n + 1 :], box.tolist()) < 0.8


def test_fewer_boxes_are_the_first_of_more() -> None:
    many = propose(picture(1), QUICK)
    few = propose(picture(1), SelectiveSearchSettings(side=96, k=[50, 150], min_size=20, max_boxes=7))
    assert len(many) > 7
    np.testing.assert_array_equal(few, many[:7])


@needs_kernel
def test_ranks_and_fills_by_hand() -> None:
    """Three segments: an L, the square inside it, and a bar on the right. By size the square and the bar are merged
    first, by fill the L and the square."""
    plane = np.full((1, 40, 60), 20, np.uint8)
    plane[:, 20:, 20:40] = 80
    plane[:, :, 40:] = 250
    rectangles, ranks, fills = kernel.search(plane, [[0]], [1.0], np.ones(1), [1], [kernel.SIZE, kernel.FILL])
    found = dict(zip(map(tuple, rectangles.tolist()), zip(ranks, fills, strict=True), strict=True))
    assert found == {  # of five, the L has rank 5, the bar 4, the square 3; log2(5) is 2.25 and log2(3) 1.5 on lines
        (0, 0, 40, 40): (pytest.approx((2.25 + 2.25 + 1) / 3), pytest.approx((0.75 + 0.75 + 1) / 3)),
        (40, 0, 20, 40): (2, 1),
        (20, 20, 20, 20): (1.5, 1),
        (20, 0, 40, 40): (1, 0.75),
        (0, 0, 60, 40): (0, 1),
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_a_plain_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = 23, 31
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    corners = np.sort(np.stack([rng.integers(0, n + 1, (40, 2)) for n in (width, height)], axis=2), axis=1)
    boxes = np.concatenate([corners.reshape(-1, 4), [[0, 0, width, height]]])
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    ranks, fills = rng.random(len(boxes)) * 9, rng.random(len(boxes))
    expected = [plain_score(image, *args) for args in zip(boxes.tolist(), ranks, fills, strict=True)]
    np.testing.assert_allclose(score(image, boxes, ranks, fills), expected, rtol=0, atol=1e-9)


def plain_score(image: np.ndarray, box: list[int], rank: float, fill: float) -> float:
    height, width = image.shape[:2]
    padded = np.pad(image.astype(int), ((1, 1), (1, 1), (0, 0)), "reflect")

    def edge(x: int, y: int) -> int:
        near = padded[y : y + 3, x : x + 3]
        across = near[0, 2] - near[0, 0] + 2 * (near[1, 2] - near[1, 0]) + near[2, 2] - near[2, 0]
        down = near[2, 0] - near[0, 0] + 2 * (near[2, 1] - near[0, 1]) + near[2, 2] - near[0, 2]
        return int(np.abs(across).sum() + np.abs(down).sum())

    def log2(value: float) -> float:
        power = math.floor(math.log2(value))
        return power + value / 2**power - 1

    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    dx, dy = min(max(w // 8, 2), w // 2), min(max(h // 8, 2), h // 2)
    inside, outside, every = [], [], []
    for y in range(height):
        for x in range(width):
            every.append(edge(x, y))
            if x1 <= x < x2 and y1 <= y < y2:
                if not (x1 + dx <= x < x2 - dx and y1 + dy <= y < y2 - dy):
                    inside.append(every[-1])
            elif x1 - dx <= x < x2 + dx and y1 - dy <= y < y2 + dy:
                outside.append(every[-1])
    mean = sum(every) / len(every)
    near_in, near_out = (log2(sum(e) / max(len(e), 1) / mean + 0.05) for e in (inside, outside))
    return -0.5 * rank + 1.2 * fill + 1.2 * near_in - 1.1 * near_out - 0.2 * log2(w / h) ** 2


def test_the_first_boxes_lie_farther_apart_and_scores_never_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_search, "SPREAD", (12, 1 / 3))
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 12, (300, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    scores = np.sort(rng.random(300))[::-1]
    first = [0]
    for n in range(1, 300):
        if len(first) < 12 and not any(twins(boxes[n].tolist(), boxes[i].tolist(), 0.25) for i in first):
            first.append(n)
    kept = list(first)
    for n in range(300):
        if n not in first and not any(twins(boxes[n].tolist(), boxes[i].tolist(), 0.75) for i in kept):
            kept.append(n)
    assert len(first) == 12 < len(kept)
    for most in (1, 7, 12, 13, 1000):
        found, of_found = spread(boxes, scores, 0.75, most)
        np.testing.assert_array_equal(found, boxes[kept[:most]])
        assert (np.diff(of_found) <= 0).all()
        np.testing.assert_array_equal(of_found[:12], scores[first[:most]].astype(np.float32))


def test_objects_come_first() -> None:
    image = picture(5, 120, 160)
    image[30:70, 40:90] = 250, 240, 20
    boxes, scores = propose_scored(image, SelectiveSearchSettings("quality"))
    assert len(boxes) > 30
    assert scores.dtype == np.float32
    assert scores.shape == (len(boxes),)
    assert (np.diff(scores) <= 0).all()
    assert overlap(boxes[:10], [40, 30, 90, 70]) > 0.85


@needs_kernel
def test_the_same_boxes_and_scores_with_all_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(4, 120, 160)
    expected = propose_scored(image)
    for name in kernel.LEVELS[: kernel.library().roi_pool_best_level() + 1]:
        monkeypatch.setenv("FASTRCNN_SEARCH_LEVEL", name)
        for found, of_best in zip(propose_scored(image), expected, strict=True):
            np.testing.assert_array_equal(found, of_best)


@needs_kernel
def test_without_the_kernel_the_boxes_are_the_same_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of similarities without ties; thinning would keep others of boxes that are in another order."""
    monkeypatch.setattr(selective_search, "SIMILARITIES", selective_search.SIMILARITIES[:2])
    settings = SelectiveSearchSettings(side=160, near=2, max_boxes=99999)
    ours = propose(picture(0, 120, 160), settings)
    monkeypatch.setattr(kernel, "library", lambda: None)
    other, scores = propose_scored(picture(0, 120, 160), settings)
    assert sorted(ours.tolist()) == sorted(other.tolist())
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (7, 500)])
def test_odd_shapes_do_no_harm(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    boxes = propose(image, QUICK)
    assert boxes.shape[1] == 4
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2:] <= [shape[1], shape[0]]).all()


def test_a_plain_image_gives_itself() -> None:
    assert propose(np.full((30, 40, 3), 9, np.uint8), QUICK).tolist() == [[0, 0, 40, 30]]


def test_the_same_boxes_with_any_number_of_threads_and_in_another_process(tmp_path: Path) -> None:
    image, threads = picture(0, 240, 320), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = propose(image)
        cv2.setNumThreads(4)
        four = propose(image)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(one, four)
    write(tmp_path / "i.png", image)
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from fastrcnn.data.images import read_image; from fastrcnn.proposals.selective_search import propose\n"
        "propose(np.zeros((9, 9, 3), np.uint8)); np.save(sys.argv[2], propose(read_image(Path(sys.argv[1]))))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "i.png", tmp_path / "o.npy"], check=True)
    np.testing.assert_array_equal(one, np.load(tmp_path / "o.npy"))


def test_the_same_store_with_one_process_and_with_two(images: list[Sample], tmp_path: Path) -> None:
    propose_all(images, tmp_path / "one.proposals", QUICK, workers=1)
    propose_all(images[::-1], tmp_path / "two.proposals", QUICK, workers=2)
    one, two = ProposalStore(tmp_path / "one.proposals"), ProposalStore(tmp_path / "two.proposals")
    assert one.ids == two.ids == [image.image_id for image in images]
    for n, image_id in enumerate(one.ids):
        np.testing.assert_array_equal(one.boxes(image_id), two.boxes(image_id))
        boxes, scores = propose_scored(picture(n), QUICK)
        np.testing.assert_array_equal(one.boxes(image_id), boxes)
        np.testing.assert_array_equal(one.scores(image_id), scores)
        np.testing.assert_array_equal(two.scores(image_id), scores)
        assert one.size(image_id) == (60, 80)
    assert one.meta["settings"]["side"] == 96
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"one.proposals", "photos ü", "two.proposals"}  # no work folder


def test_a_run_goes_on_where_it_stopped(
    images: list[Sample], tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = generate.propose_scored

    def interrupt(image: np.ndarray, settings: SelectiveSearchSettings) -> tuple[np.ndarray, np.ndarray]:
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counted(image, settings)

    monkeypatch.setattr(generate, "propose_scored", interrupt)
    with pytest.raises(KeyboardInterrupt):
        propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)
    assert not (tmp_path / "s.proposals").exists()
    monkeypatch.setattr(generate, "propose_scored", counted)
    propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)
    assert len(calls) == 5
    store = ProposalStore(tmp_path / "s.proposals")
    for n in range(5):
        np.testing.assert_array_equal(store.boxes(f"id{n}"), propose(picture(n), QUICK))


def stop_early(images: list[Sample], store: Path) -> None:
    """Leaves the results of all images in the work folder, as a run with one bad image does."""
    with pytest.raises(UserError, match="not there"):
        propose_all([*images, without_objects("bad", Path("not there.png"))], store, QUICK, workers=1)


def test_nothing_stale_is_used(images: list[Sample], tmp_path: Path, calls: list[int]) -> None:
    store = tmp_path / "s.proposals"
    stop_early(images, store)
    changed = images[2].path
    times = changed.stat()
    write(changed, picture(77))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # the date does not tell
    calls.clear()
    propose_all(images, store, QUICK, workers=1)
    assert len(calls) == 1
    np.testing.assert_array_equal(ProposalStore(store).boxes("id2"), propose(picture(77), QUICK))


def test_other_settings_find_no_results(images: list[Sample], tmp_path: Path, calls: list[int]) -> None:
    stop_early(images, tmp_path / "s.proposals")
    calls.clear()
    other = SelectiveSearchSettings(side=96, k=[50, 150], min_size=21)
    propose_all(images, tmp_path / "s.proposals", other, workers=1)
    assert len(calls) == 5


def test_a_damaged_result_is_made_again(images: list[Sample], tmp_path: Path, calls: list[int]) -> None:
    stop_early(images, tmp_path / "s.proposals")
    results = sorted((tmp_path / ".s.proposals.work").glob("*/*.npz"))
    results[0].write_bytes(b"")
    results[1].write_bytes(results[1].read_bytes()[:-30])
    calls.clear()
    propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)
    assert len(calls) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_are_named_and_the_others_are_not_lost(
    images: list[Sample], tmp_path: Path, calls: list[int], workers: int
) -> None:
    whole = cv2.imencode(".jpg", picture(0))[1].tobytes()
    for name, data in (("empty.png", b""), ("text.png", b"hello"), ("half.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(data)
    bad = [without_objects(name, tmp_path / name) for name in ("empty.png", "text.png", "half.jpg", "missing.png")]
    with pytest.raises(UserError) as error:
        propose_all([*bad, *images], tmp_path / "s.proposals", QUICK, workers)
    assert "4 of 9 images" in str(error.value)
    for image in bad:
        assert f"{image.path}: " in str(error.value)
    assert not (tmp_path / "s.proposals").exists()
    calls.clear()
    propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)
    assert calls == []


def test_an_id_that_comes_twice_is_named_before_any_work(
    images: list[Sample], tmp_path: Path, calls: list[int]
) -> None:
    with pytest.raises(UserError, match="more than once, for example 'id0'"):
        propose_all([*images, images[0]], tmp_path / "s.proposals", QUICK, workers=1)
    assert calls == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no file locks of this kind")
def test_a_second_run_on_the_same_store_is_refused(images: list[Sample], tmp_path: Path) -> None:
    with (
        generate._work_folder(tmp_path / "s.proposals"),
        pytest.raises(UserError, match="another process is generating these proposals"),
    ):
        propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_however_a_run_ends_no_process_stays_and_its_results_do(
    tmp_path: Path, calls: list[int], how: signal.Signals
) -> None:
    images = [
        without_objects(f"id{n}", write(tmp_path / f"{n}.png", picture(n, 160, 240)), (240, 160)) for n in range(32)
    ]
    settings = SelectiveSearchSettings(side=240, k=[25])
    code = (
        "import signal, sys, time; from pathlib import Path; from fastrcnn.proposals.generate import *\n"
        "from fastrcnn.data.frames import without_objects\n"
        "from fastrcnn.proposals import generate\n"
        "def halting(results, **_):\n"  # so that it cannot be done before it is stopped, however late that is
        "    for n, result in enumerate(results):\n"
        "        while n == 16: time.sleep(0.01)\n"  # not signal.pause(), which a signal just before it does not end
        "        yield result\n"
        "generate.progress = halting\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background begin by ignoring it
        "folder = Path(sys.argv[1]); \n"
        "images = [without_objects(f'id{n}', folder / f'{n}.png', (240, 160)) for n in range(32)]\n"
        "propose_all(images, folder / 's.proposals', SelectiveSearchSettings(side=240, k=[25]), workers=2)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    work = tmp_path / ".s.proposals.work"
    until(lambda: len(list(work.glob("*/*.npz"))) >= 3)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) >= 2
    if how == signal.SIGINT:
        os.killpg(run.pid, how)  # as Ctrl-C on a terminal does
    else:
        run.send_signal(how)
    said = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode != 0
    assert said.count("Traceback (most") <= 1, said  # none of a worker
    until(lambda: not any(alive(pid) for pid in children))
    done = len(list(work.glob("*/*.npz")))
    assert 3 <= done < 32
    propose_all(images, tmp_path / "s.proposals", settings, workers=1)
    assert len(calls) == 32 - done


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: object) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.02)


def test_without_the_contrib_build_the_package_to_remove_is_named(
    images: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        metadata = {"Name": "opencv-python"}  # noqa: RUF012

    monkeypatch.setattr(selective_search.importlib.metadata, "distributions", lambda: [Installed])
    monkeypatch.delattr(cv2, "ximgproc")
    monkeypatch.setattr(kernel, "library", lambda: None)
    with pytest.raises(UserError, match=r"pip uninstall -y opencv-python`.*opencv-contrib-python-headless"):
        propose_all(images, tmp_path / "s.proposals", QUICK, workers=1)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"mode": "fats"}, "mode=fats: must be one of fast, quality, iccv2011. Did you mean 'fast'"),
        ({"k": []}, "k is empty"),
        ({"k": [50, -1]}, "k=.*: each element must be greater than 0"),
        ({"side": -1}, "side=-1: must be at least 0"),
        ({"sigma": float("nan")}, "sigma=nan: must be a finite number"),
        ({"max_boxes": -5}, "max_boxes=-5: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=f"data.selective_search.{match}"):
        fill(DataConfig, {"selective_search": setting}, "data.")

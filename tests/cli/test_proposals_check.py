"""fastrcnn proposals-check: the file's convention is named, with the command that converts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from voc_folder import VocFolder, fingerprint, voc_xml

Call = Callable[..., tuple[int, str, str]]
SIZES = [(120 + 7 * n % 60, 90 + 11 * n % 50) for n in range(24)]


@pytest.fixture
def zero_based(voc: VocFolder) -> tuple[VocFolder, list[np.ndarray]]:
    """A data set without pictures, one object an image, and proposals zero-based and inclusive x1 y1 x2 y2."""
    rng = np.random.default_rng(3)
    proposals = []
    for n, (width, height) in enumerate(SIZES):
        x, y = 10 + n, 8 + n % 9
        w, h = 30 + n, 20 + 3 * (n % 5)
        voc.annotation(f"{n:04d}", voc_xml([("cat", (x + 1, y + 1, x + w, y + h), False)], width, height))
        near = np.array([x, y, x + w - 1, y + h - 1]) + rng.integers(-2, 3, (4, 4))
        corners = np.sort(rng.integers(0, [width, height], (30, 2, 2)), axis=1).reshape(-1, 4)
        proposals.append(np.vstack([near, corners[(corners[:, 2:] > corners[:, :2] + 5).all(1)],
                                    [[0, 0, width - 1, height - 1]]]))  # fmt: skip
    voc.split("trainval", *(f"{n:04d}" for n in range(0, 16)))
    voc.split("test", *(f"{n:04d}" for n in range(16, 24)))
    return voc, proposals


def author_file(path: Path, boxes: list[np.ndarray], ids: list[str] | None = None) -> Path:
    """The layout of the author's files: cells of (P, 4) and of ids; boxes as they are given."""
    cell, names = np.empty((1, len(boxes)), object), np.empty((len(boxes), 1), object)
    for n, rows in enumerate(boxes):
        cell[0, n], names[n, 0] = rows.astype(np.float64), (ids or [f"{n:04d}" for n in range(len(boxes))])[n]
    savemat(path, {"boxes": cell, "images": names})
    return path


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("->", " ="))]


def test_a_file_that_is_as_its_format_says_fits(
    call: Call, zero_based: tuple[VocFolder, list[np.ndarray]], tmp_path: Path
) -> None:
    voc, boxes = zero_based
    path = author_file(tmp_path / "a file.mat", [b[:, [1, 0, 3, 2]] + 1 for b in boxes])
    before = fingerprint(tmp_path)
    status, out, err = call("proposals-check", f"proposals={path}", "data=custom", f"data.root={voc.root}")
    assert (status, err) == (0, "")
    assert "The proposals fit in the convention that is used by default: yxyx-1-inclusive, in pixels." in out
    assert lines(out)[0].split()[1:3] == ["yxyx-1-inclusive", "pixels"]
    assert "with 24 objects, in 24 images" in out
    assert "Convert" not in out
    assert max(map(len, out.splitlines()[1:])) <= 100 or str(path) in out
    assert fingerprint(tmp_path) == before


def test_another_convention_is_named_with_the_command(
    call: Call, zero_based: tuple[VocFolder, list[np.ndarray]], tmp_path: Path
) -> None:
    """The command runs as it is printed, and what it makes fits."""
    import shlex

    voc, boxes = zero_based
    path = author_file(tmp_path / "a file.mat", boxes)
    arguments = [f"proposals={path}", "data=custom", f"data.root={voc.root}"]
    status, out, _ = call("proposals-check", *arguments)
    assert status == 1
    assert "The convention of the boxes is xyxy-0-inclusive, in pixels. The default, yxyx-1-inclusive" in " ".join(
        out.split()
    )
    command = next(line for line in out.splitlines() if line.startswith("  fastrcnn propose "))
    status, converted, _ = call(*shlex.split(command)[1:])
    assert status == 0
    store = converted.rpartition("data.proposals=")[2].strip()
    status, out, _ = call("proposals-check", f"proposals={store}", "data=custom", f"data.root={voc.root}")
    assert status == 0
    assert "the convention that is used by default: xyxy-0-halfopen" in " ".join(out.split())


def test_wrong_ids_and_scale_are_said_to_need_another_file(
    call: Call, zero_based: tuple[VocFolder, list[np.ndarray]], tmp_path: Path
) -> None:
    voc, boxes = zero_based
    right = [b[:, [1, 0, 3, 2]] + 1 for b in boxes]
    root = f"data.root={voc.root}"
    path = author_file(tmp_path / "ids.mat", [*right[12:], *right[:12]])
    status, out, _ = call("proposals-check", f"proposals={path}", "data=custom", root)
    assert status == 1
    assert "the order of its boxes differs from the order of its ids" in " ".join(out.split())
    assert "fastrcnn propose" not in out
    shares = [b[:, [1, 0, 3, 2]] / np.tile(size[::-1], 2) for b, size in zip(boxes, SIZES, strict=True)]
    path = author_file(tmp_path / "scale.mat", shares)
    status, out, _ = call("proposals-check", f"proposals={path}", "data=custom", root)
    assert status == 1
    assert "yxyx-0-inclusive, as fractions of the image width and height" in " ".join(out.split())


def test_boxes_that_fit_nothing_are_said_to(
    call: Call, zero_based: tuple[VocFolder, list[np.ndarray]], tmp_path: Path
) -> None:
    voc, boxes = zero_based
    path = author_file(tmp_path / "none.mat", [np.array([[1, 1, 3, 3], [2, 2, 6, 9]]) for _ in boxes])
    status, out, _ = call("proposals-check", f"proposals={path}", "data=custom", f"data.root={voc.root}")
    assert status == 1
    assert "No convention fits" in out
    assert not lines(out)


def test_mistakes_are_one_message(call: Call, zero_based: tuple[VocFolder, list[np.ndarray]], tmp_path: Path) -> None:
    voc, boxes = zero_based
    root = f"data.root={voc.root}"
    path = author_file(tmp_path / "x.mat", boxes[:2], ids=["dog", "cow"])
    for arguments, said in (
        ([], "Specify the proposals: fastrcnn proposals-check proposals=FILE"),
        ([f"proposals={path}"], "data.root is missing"),
        ([f"proposals={tmp_path / 'none.mat'}", root], "none.mat"),
        ([f"proposals={path}", root], "such as '0000'; the proposals are for 2 image(s), such as 'dog'"),
        ([f"proposals={path}", root, "split=val"], "no image list for the split 'val'"),
    ):
        status, out, err = call("proposals-check", *arguments)
        assert (status, out) == (1, "")
        assert said in err
        assert err.startswith("fastrcnn: ")
    for n in range(24):
        voc.annotation(f"{n:04d}", voc_xml([]))
    path = author_file(tmp_path / "y.mat", boxes)
    status, _, err = call("proposals-check", f"proposals={path}", root)
    assert status == 1
    assert "none of the 24 images that were read has a usable object" in err


def test_the_demo_with_selective_search(call: Call, tmp_path: Path) -> None:
    from fastrcnn.data.demo import write_demo
    from fastrcnn.proposals.store import ProposalStore

    root = write_demo(tmp_path / "demo", train=20, val=0, test=4, size=(160, 120))
    data = ["data=demo", f"data.root={root}"]
    assert call("propose", *data, "output=made.proposals", "workers=1")[0] == 0
    status, out, _ = call("proposals-check", "proposals=made.proposals", *data)
    assert (status, len(lines(out))) == (0, 1)
    store = ProposalStore("made.proposals")
    boxes = [np.rint(store.boxes(i)) + np.array([1, 1, 0, 0]) for i in store.ids]
    author_file(tmp_path / "again.mat", boxes, store.ids)
    status, out, _ = call("proposals-check", f"proposals={tmp_path / 'again.mat'}", *data)
    assert status == 1
    assert lines(out)[0].split()[1] == "xyxy-1-inclusive"


def test_two_real_files_of_selective_search(call: Call, test_data: Path) -> None:
    """Published as zero-based and inclusive."""
    arguments = [f"proposals={test_data / 'selective_search'}", "data=voc07", f"data.root={test_data / 'VOCdevkit'}"]
    status, out, _ = call("proposals-check", *arguments)
    assert status == 0
    assert [line.split()[1] for line in lines(out)] == ["xyxy-0-inclusive"]
    assert "4,945 boxes with 10 objects, in 2 images" in out

"""Every proposal format, written by the library that owns it and read back; and the same bytes damaged."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import in_bounds

from fastrcnn.errors import UserError
from fastrcnn.proposals.files import open_proposals
from fastrcnn.proposals.formats.content import Content
from fastrcnn.proposals.store import ImageProposals, write_store

io = pytest.importorskip("scipy.io", reason="needs the extra [mat]")
h5py = pytest.importorskip("h5py", reason="needs the extra [mat]")

IDS = ["000012", "000005", "a-b"]  # not in the order of the alphabet
BOXES = [np.array([[1.0, 2, 30, 40], [5, 6, 7, 65535]]), np.zeros((0, 4)), np.array([[9.0, 8, 70, 60]])]
SCORES = [np.array([0.5, 0.25]), np.zeros(0), np.array([-1.5])]


def cells(values: list, column: bool = True) -> np.ndarray:
    made = np.empty((len(values), 1) if column else (1, len(values)), object)
    for n, value in enumerate(values):
        made[(n, 0) if column else (0, n)] = value
    return made


def hdf5(path: Path, **variables: object) -> Path:
    """As `save -v7.3`: a MATLAB header of 512 bytes, arrays transposed, cells as references into #refs#."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")

        def put(group: h5py.Group, name: str, value: object) -> h5py.Dataset:
            if isinstance(value, str):
                codes = np.array([[ord(c)] for c in value], np.uint16)
                made = group.create_dataset(name, data=codes)
                made.attrs["MATLAB_class"] = np.bytes_("char")
                return made
            assert isinstance(value, np.ndarray)
            if value.dtype == object:
                inner = [put(refs, f"{name}{n}", v) for n, v in enumerate(value.ravel(order="F"))]
                made = group.create_dataset(name, value.T.shape, h5py.ref_dtype)
                for n, target in zip(np.ndindex(*value.T.shape), inner, strict=True):
                    made[n] = target.ref
                made.attrs["MATLAB_class"] = np.bytes_("cell")
            elif value.size == 0:
                made = group.create_dataset(name, data=np.array(value.shape, np.uint64))
                made.attrs["MATLAB_empty"] = np.uint8(1)
                made.attrs["MATLAB_class"] = np.bytes_("double")
            else:
                made = group.create_dataset(name, data=value.T, compression="gzip", compression_opts=3)
                made.attrs["MATLAB_class"] = np.bytes_("double")
            return made

        for name, value in variables.items():
            put(file, name, value)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM")
    return path


def savemat(path: Path, compress: bool = True, **variables: object) -> Path:
    io.savemat(path, variables, do_compression=compress)
    return path


def pickled(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def as_csv(path: Path, columns: str, scores: bool = True) -> Path:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image_id", *columns.split(), *(["score"] if scores else [])])
        for image_id, boxes, values in zip(IDS, BOXES, SCORES, strict=True):
            for box, score in zip(boxes.tolist(), values.tolist(), strict=True):
                out.writerow([image_id, *box, *([score] if scores else [])])
    return path


def as_json(path: Path, scores: bool = True) -> Path:
    entries = [
        {"image_id": i, "category_id": 1, "bbox": b, **({"score": s} if scores else {})}
        for i, boxes, values in zip(IDS, BOXES, SCORES, strict=True)
        for b, s in zip(boxes.tolist(), values.tolist(), strict=True)
    ]
    path.write_text(json.dumps(entries, indent=1))
    return path


def store(path: Path) -> Path:
    items = [
        ImageProposals(i, 70000, 70000, b, s.astype(np.float32)) for i, b, s in zip(IDS, BOXES, SCORES, strict=True)
    ]
    write_store(path, items, "test", {})
    return path


def edge(boxes: list[np.ndarray]) -> list[np.ndarray]:
    return [np.hstack([b, s[:, None]]) for b, s in zip(boxes, SCORES, strict=True)]


U16 = [b.astype(np.uint16) for b in BOXES]
DETECTRON2 = {"ids": IDS, "boxes": BOXES, "objectness_logits": SCORES, "bbox_mode": 0}
OLDER = {"indexes": [12, 5, 7], "boxes": U16, "scores": [s.reshape(-1, 1) for s in SCORES]}
AUTHOR = {"boxes": cells(U16), "images": cells(IDS)}
EDGE = {"bbs": cells(edge(BOXES))}

# name -> how it is written, beginning of the format's name, convention, ids (None: must be given), scores or not
Made = tuple[Callable[[Path], Path], str, str, list[str] | None, bool]
FORMATS: dict[str, Made] = {
    "x.proposals": (store, "proposal store", "xyxy-0-halfopen", sorted(IDS), True),
    "author.mat": (lambda p: savemat(p, **AUTHOR), "Fast R-CNN author's", "yxyx-1-inclusive", IDS, False),
    "row.mat": (
        lambda p: savemat(p, False, boxes=cells(BOXES, False), images=cells(IDS, False), scores=cells(SCORES)),
        "Fast R-CNN author's",
        "yxyx-1-inclusive",
        IDS,
        True,
    ),
    "author73.mat": (lambda p: hdf5(p, **AUTHOR), "Fast R-CNN author's", "yxyx-1-inclusive", IDS, False),
    "noids.mat": (lambda p: savemat(p, boxes=cells(BOXES)), "Fast R-CNN author's", "yxyx-1-inclusive", None, False),
    "edges.mat": (lambda p: savemat(p, **EDGE), "EdgeBoxes", "xywh-1", None, True),
    "edges73.mat": (lambda p: hdf5(p, **EDGE), "EdgeBoxes", "xywh-1", None, True),
    "d2.pkl": (lambda p: pickled(p, DETECTRON2), "detectron2", "xyxy-0-halfopen", IDS, True),
    "d2wh.pkl": (lambda p: pickled(p, {**DETECTRON2, "bbox_mode": 1}), "detectron2", "xywh-0", IDS, True),
    "d1.pkl": (lambda p: pickled(p, OLDER, 2), "Detectron ", "xyxy-0-inclusive", ["12", "5", "7"], True),
    "list.pkl": (lambda p: pickled(p, edge(BOXES)), "mmdet", "xyxy-0-halfopen", None, True),
    "list4.pkl": (lambda p: pickled(p, BOXES, 0), "mmdet", "xyxy-0-halfopen", None, False),
    "dict.pkl": (
        lambda p: pickled(p, {f"train/{i}.jpg": b for i, b in zip(IDS, edge(BOXES), strict=True)}),
        "mmdet",
        "xyxy-0-halfopen",
        IDS,
        True,
    ),
    "fields.pkl": (
        lambda p: pickled(
            p, {f"t/{i}.png": {"bboxes": b, "scores": s} for i, b, s in zip(IDS, BOXES, SCORES, strict=True)}
        ),
        "mmdet",
        "xyxy-0-halfopen",
        IDS,
        True,
    ),
    # Text formats have one box per line, so they contain no images without boxes.
    "xyxy.csv": (lambda p: as_csv(p, "x1 y1 x2 y2"), "CSV", "xyxy-0-halfopen", ["000012", "a-b"], True),
    "xywh.csv": (lambda p: as_csv(p, "x y w h", False), "CSV", "xywh-0", ["000012", "a-b"], False),
    "coco.json": (as_json, "JSON in COCO", "xywh-0", ["000012", "a-b"], True),
    "bare.json": (lambda p: as_json(p, False), "JSON in COCO", "xywh-0", ["000012", "a-b"], False),
}


@pytest.mark.parametrize("renamed", ["", ".dat"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_numbers_in_it(tmp_path: Path, name: str, renamed: str) -> None:
    write, format, convention, ids, scored = FORMATS[name]
    path = write(tmp_path / name).rename(tmp_path / f"{name}{renamed}")  # the suffix does not matter
    found = open_proposals(path, IDS if ids is None else None)
    assert found.format.startswith(format)
    assert str(found.convention) == convention
    assert found.ids == (ids or IDS)
    for n, image_id in enumerate(found.ids):
        k = IDS.index(image_id) if image_id in IDS else n
        boxes, scores = found.boxes(n)
        assert boxes.dtype == np.float64
        np.testing.assert_array_equal(boxes, BOXES[k])
        if scored:
            assert scores is not None
            np.testing.assert_array_equal(scores, SCORES[k])
        else:
            assert scores is None


@pytest.mark.parametrize("name", [n for n, made in FORMATS.items() if made[3] is None])
def test_formats_without_ids_ask_for_them(tmp_path: Path, name: str) -> None:
    path = FORMATS[name][0](tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: .*contains no image ids.* its 3 image\(s\) .*ids=LIST"):
        open_proposals(path)
    with pytest.raises(UserError, match=rf"{name}: .*has 3 image\(s\), but ids= lists 2 "):
        open_proposals(path, IDS[:2])
    with pytest.raises(UserError, match="more than once, for example 'a'"):
        open_proposals(path, ["a", "b", "a"])


def test_formats_with_ids_refuse_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Remove ids="):
        open_proposals(pickled(tmp_path / "x.pkl", DETECTRON2), IDS)


PER_IMAGE: dict[str, tuple[dict[str, np.ndarray], str, np.ndarray | None]] = {
    "plain": ({"boxes": U16[0]}, "xyxy-0-inclusive", None),
    "mcg": ({"bboxes": BOXES[0], "scores": SCORES[0][:, None]}, "yxyx-1-inclusive", SCORES[0]),
    "mcg as Detectron reads it": ({"boxes": BOXES[0], "scores": SCORES[0][:, None]}, "yxyx-1-inclusive", SCORES[0]),
    "mcg of Flickr30k": ({"bboxes": U16[0], "bboxes_scores": SCORES[0][:, None]}, "yxyx-1-inclusive", SCORES[0]),
    "edges": ({"bbs": edge(BOXES)[0]}, "xywh-1", SCORES[0]),
}


@pytest.mark.parametrize("write", [savemat, hdf5])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_files_of_one_image_alone_and_in_a_folder(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    variables, convention, scores = PER_IMAGE[name]
    for file in ("000012.mat", "000005_boxes.mat"):
        write(tmp_path / file, **variables)
    (tmp_path / "README.txt").write_text("not a proposal")
    single, folder = open_proposals(tmp_path / "000005_boxes.mat"), open_proposals(tmp_path)
    assert single.ids == ["000005"]
    assert folder.ids == ["000005", "000012"]
    assert open_proposals(tmp_path / "000012.mat", ["another"]).ids == ["another"]
    for found, n in ((single, 0), (folder, 0), (folder, 1)):
        assert str(found.convention) == convention
        boxes, values = found.boxes(n)
        np.testing.assert_array_equal(boxes, BOXES[0])
        np.testing.assert_array_equal(values, scores)


def test_a_variable_of_another_kind_that_is_not_used_does_no_harm(tmp_path: Path) -> None:
    savemat(tmp_path / "i.mat", boxes=U16[0], images={"a": 1})
    np.testing.assert_array_equal(open_proposals(tmp_path / "i.mat").boxes(0)[0], BOXES[0])


def test_the_last_pixel_of_uint16_does_not_wrap_around(tmp_path: Path) -> None:
    savemat(tmp_path / "i.mat", boxes=np.array([[0, 0, 24, 15], [65535, 3, 65535, 9]], np.uint16))
    found = open_proposals(tmp_path / "i.mat")
    assert found.convention.read(found.boxes(0)[0]).tolist() == [[0, 0, 25, 16], [65535, 3, 65536, 10]]


def test_the_authors_file_is_read_as_fast_rcnn_reads_it(tmp_path: Path) -> None:
    path = savemat(tmp_path / "voc_2007_trainval.mat", boxes=cells([b + 1 for b in BOXES]), images=cells(IDS))
    raw = io.loadmat(path)["boxes"].ravel()
    found = open_proposals(path)
    for n in range(3):
        theirs = (raw[n][:, (1, 0, 3, 2)] - 1).reshape(-1, 4)  # the far corner inclusive
        np.testing.assert_array_equal(found.convention.read(found.boxes(n)[0]), theirs + np.array([0, 0, 1, 1]))


def test_a_detectron_pickle_is_what_its_converter_makes_of_matlab_boxes(tmp_path: Path) -> None:
    """MATLAB's (y1, x1, y2, x2) = (1, 1, 10, 20) is all of an image 20 wide and 10 high. The converter reorders the
    columns and subtracts 1."""
    matlab = np.array([[1.0, 1, 10, 20], [3, 5, 3, 5]])  # and a single pixel
    theirs = matlab[:, (1, 0, 3, 2)] - 1
    value = {"boxes": [theirs.astype(np.float32)], "scores": [np.zeros(2, np.float32)], "indexes": [5]}
    found = open_proposals(pickled(tmp_path / "voc_2007_trainval.pkl", value))
    assert found.convention.read(found.boxes(0)[0]).tolist() == [[0, 0, 20, 10], [4, 2, 5, 3]]


KEYS = {  # which keys there are -> whose file it is, and what its boxes mean
    "indexes scores": "Detectron xyxy-0-inclusive",
    "indexes": "Detectron xyxy-0-inclusive",
    "ids scores cfg": "Detectron xyxy-0-inclusive",
    "ids": "detectron2 xyxy-0-halfopen",
    "ids objectness_logits": "detectron2 xyxy-0-halfopen",
    "ids scores bbox_mode": "detectron2 xyxy-0-halfopen",
    "indexes scores bbox_mode": "detectron2 xyxy-0-halfopen",
}


@pytest.mark.parametrize("keys", KEYS)
def test_the_keys_of_a_pickle_say_whose_it_is(tmp_path: Path, keys: str) -> None:
    values = {"bbox_mode": 0, "cfg": "MODEL: {}", "ids": [1], "indexes": [1]}
    value = {k: values.get(k, [np.zeros(1)]) for k in keys.split()} | {"boxes": [np.array([[0.0, 0, 3, 3]])]}
    found = open_proposals(pickled(tmp_path / "p.pkl", value))
    assert f"{found.format.split()[0]} {found.convention}" == KEYS[keys]


@pytest.mark.parametrize(("image_id", "count"), [("000004", 2888), ("001551", 2057)])
def test_real_files_of_selective_search(test_data: Path, image_id: str, count: int) -> None:
    found = open_proposals(test_data / "selective_search")
    raw = found.boxes(found.ids.index(image_id))[0]
    theirs = io.loadmat(test_data / "selective_search" / f"{image_id}_boxes.mat")["boxes"]
    np.testing.assert_array_equal(raw, theirs)
    boxes = found.convention.read(raw)
    assert boxes.shape == (count, 4)
    xml = (test_data / "VOCdevkit/VOC2007/Annotations" / f"{image_id}.xml").read_text()
    width, height = (int(xml.split(f"<{tag}>")[1].split("<")[0]) for tag in ("width", "height"))
    assert [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)] == [0, 0, width, height]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "other.mat": (lambda p: savemat(p, rects=np.zeros((2, 4))), "has no variable `boxes`"),
    "shape.mat": (lambda p: savemat(p, boxes=np.zeros((2, 5))), r"`boxes`: .*float64 array with shape \(2, 5\)"),
    "text.mat": (lambda p: savemat(p, boxes="four"), "expected numbers, but found text"),
    "struct.mat": (lambda p: savemat(p, boxes={"a": 1}), "expected numbers, but found a struct"),
    "complex.mat": (lambda p: savemat(p, boxes=np.zeros((2, 4), complex) + 1j), "found complex numbers"),
    "shape73.mat": (lambda p: hdf5(p, boxes=np.ones((2, 5))), r"`boxes`: .*float64 array with shape \(2, 5\)"),
    "score.mat": (lambda p: savemat(p, bboxes=np.ones((2, 4)), scores=np.ones((3, 1))), r"one number per box \(2 in"),
    "count.mat": (lambda p: savemat(p, boxes=cells(BOXES), images=cells(IDS[:2])), "`boxes` has 3 .*`images` has 2"),
    "flat.mat": (lambda p: savemat(p, boxes=cells(BOXES), scores=np.ones(3)), "`boxes` is a cell.*`scores` is not"),
    "twice.mat": (lambda p: savemat(p, boxes=cells(BOXES), images=cells(["a", "b", "a"])), "more than once.* 'a'"),
    "empty.mat": (lambda p: p.write_bytes(b""), "the file is empty"),
    "junk.mat": (lambda p: p.write_bytes(b"\x00\x01MATLAB?" * 40), "a supported proposal format.*\n.*\n.*MATLAB"),
    "missing.mat": (lambda p: None, "does not exist"),
    "empty folder": (lambda p: p.mkdir(), "contains no .mat files"),
    "keys.pkl": (lambda p: pickled(p, {1: 2}), "with the keys 1. Supported are"),
    "number.pkl": (lambda p: pickled(p, 5), "object of type int"),
    "mode.pkl": (lambda p: pickled(p, {**DETECTRON2, "bbox_mode": 4}), "`bbox_mode` is 4"),
    "indexes.pkl": (lambda p: pickled(p, {**OLDER, "indexes": [0.5] * 3}), "`indexes` must be a list of strings"),
    "scores.pkl": (lambda p: pickled(p, {**OLDER, "scores": [1]}), "`scores` must be a list of 3 array.* length is 1"),
    "length.pkl": (lambda p: pickled(p, {**DETECTRON2, "ids": ["a"]}), "`boxes` must be a list of 1 .* length is 3"),
    "items.pkl": (lambda p: pickled(p, {"a.jpg": "boxes"}), "expected rows.* of type str"),
    "json.json": (lambda p: text(p, '[{"image_id": 1,\n "bbox": [1, 2, 3'), "line 2: .*not valid JSON"),
    "comma.json": (lambda p: text(p, '[{"image_id": 1, "bbox": [1, 2, 3, 4]}\n{}]'), "line 2: .*not valid JSON"),
    "list.json": (
        lambda p: text(p, '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"bbox": []}, 7, {"image_id": 1, "bbox": [1]}]'),
        "3 error.*\n.*object 2: `image_id`.*\n.*object 3: `image_id`.*\n.*object 4: `bbox`",
    ),
    "null.json": (lambda p: text(p, '[null, "x"]'), "2 error.*\n.*object 1: `image_id`.*\n.*object 2: `image_id`"),
    "nested.json": (
        lambda p: text(p, '[{"image_id": 1, "bbox": [1, 2, 3, 4], "x": {"image_id": 1, "bbox": [1, 2, 3, 4]}}]'),
        "boxes inside other objects",
    ),
    "mixed.json": (
        lambda p: text(p, '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]'),
        "1 error.*\n.*object 2: the box has a score, unlike",
    ),
    "bad.csv": (
        lambda p: text(p, "\nimage,x1,y1,x2,y2\na,1,2,3,4\na,1,2,three,4\n\nb,1\n,1,2,3,4\n"),
        "3 error.*\n.*line 4: x2 must be a number, not 'three'\n.*line 6: .*2 field.*\n.*line 7: .*empty",
    ),
    "latin.csv": (lambda p: p.write_bytes(b"image_id,x1,y1,x2,y2\n\xe9,1,2,3,4\n"), "not valid CSV in UTF-8"),
    "other.csv": (lambda p: text(p, "name,left,top\na,1,2\n"), "not in a supported proposal format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    write, match = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}[:,] .*{match}"):
        read_all(tmp_path / name)


def test_files_of_a_folder_that_differ_are_named(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", boxes=BOXES[0])
    savemat(tmp_path / "b.mat", bbs=edge(BOXES)[0])
    (tmp_path / "c.mat").write_bytes(b"broken")
    found = open_proposals(tmp_path)
    found.boxes(0)
    with pytest.raises(UserError, match=r"b\.mat: the format is EdgeBoxes .mat, but that of a\.mat is per-image"):
        found.boxes(1)
    with pytest.raises(UserError, match=r"c\.mat: cannot read this MATLAB file"):
        found.boxes(2)


def test_csv_may_have_other_separators_and_columns(tmp_path: Path) -> None:
    text(tmp_path / "a.csv", "\ufeffx2;score;id;y2;x1;y1;note\r\n3;.5;7;4;1;2;yes\r\n")
    found = open_proposals(tmp_path / "a.csv")
    assert found.ids == ["7"]
    assert [a.tolist() for a in found.boxes(0) if a is not None] == [[[1, 2, 3, 4]], [0.5]]


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hdf5(tmp_path / "x.mat", boxes=BOXES[0])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"x\.mat: .*pip install 'fastrcnn\[mat\]'"):
        open_proposals(tmp_path / "x.mat")


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat5(shape: tuple[int, int], data: bytes, kind: int = 6, name: bytes = b"boxes") -> bytes:
    """A version 5 variable by hand, so that it can lie."""
    header = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", *shape)) + element(1, name)
    return element(14, header + data)


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def hdf5_bomb(path: Path, **arguments: object) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("boxes", **arguments)


def external_link(path: Path) -> None:
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["boxes"] = BOXES[0].T
    with h5py.File(path, "w") as file:
        file["boxes"] = h5py.ExternalLink("secret.h5", "boxes")


def virtual(path: Path) -> None:
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["boxes"] = BOXES[0].T
    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "boxes", (4, 2))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("boxes", layout)


def external_data(path: Path) -> None:
    path.with_name("secret").write_bytes(BOXES[0].tobytes())
    hdf5_bomb(path, shape=(4, 2), dtype="f8", external=[(str(path.with_name("secret")), 0, 64)])


def chunk_bomb(path: Path) -> None:
    """A chunk of 64 bytes whose compressed form unpacks to 100 MB."""
    hdf5_bomb(path, shape=(4, 2), dtype="f8", chunks=(4, 2), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["boxes"].id.write_direct_chunk((0, 0), zlib.compress(bytes(100_000_000)))


BOMBS: dict[str, Callable[[Path], object]] = {
    "declared": lambda p: p.write_bytes(HEADER + mat5((10**9, 4), element(9, b"\0" * 64))),
    "cells": lambda p: p.write_bytes(HEADER + mat5((10**9, 2), b"", kind=1)),
    "zip": lambda p: p.write_bytes(
        HEADER + element(15, zlib.compress(mat5((25_000_000, 4), element(2, bytes(100_000_000)))))
    ),
    "zip of names": lambda p: p.write_bytes(HEADER + element(15, zlib.compress(bytes(100_000_000)))),
    "declared hdf5": lambda p: hdf5_bomb(p, shape=(10**9, 4), dtype="f8", chunks=(1000, 4)),
    "filled hdf5": lambda p: hdf5_bomb(p, shape=(4, 10**7), dtype="f8", fillvalue=1.0),
    "zip in hdf5": lambda p: hdf5_bomb(p, data=np.zeros((4, 10**7)), chunks=(4, 10**7), compression="gzip"),
    "chunk": chunk_bomb,
    "large chunk": lambda p: hdf5_bomb(p, shape=(4, 2), maxshape=(None, None), chunks=(4, 10**7), dtype="f8"),
    "external link": external_link,
    "virtual": virtual,
    "external data": external_data,
    "gzip": lambda p: p.write_bytes(gzip.compress(bytes(10_000_000))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_and_places_that_the_file_does_not_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.mat"
    BOMBS[name](path)
    most = max(20_000_000, 70 * path.stat().st_size)  # numpy's arrays are counted too
    with in_bounds(most_bytes=most), pytest.raises(UserError, match=r"x\.mat: "):
        read_all(path)


def test_a_large_file_is_unpacked_image_by_image(tmp_path: Path) -> None:
    """300 images x 2,000 boxes are 19 MB of doubles; they are stored in 5 MB, and no more than that is held."""
    rng = np.random.default_rng(0)
    values = [rng.integers(1, 500, (2000, 4), dtype=np.uint16) for _ in range(300)]
    path = savemat(tmp_path / "x.mat", boxes=cells(values), images=cells([f"{n:06}" for n in range(300)]))
    with in_bounds(most_bytes=12_000_000):
        found = open_proposals(path)
        for n in (0, 150, 299):
            np.testing.assert_array_equal(found.boxes(n)[0], values[n])


def read_all(path: Path) -> Content:
    """Everything in a file, whether or not it names its images."""
    try:
        found = open_proposals(path)
    except UserError as error:
        if "contains no image ids" not in str(error):
            raise
        found = open_proposals(path, [str(n) for n in range(int(str(error).split("ids of its ")[1].split()[0]))])
    for n in range(len(found.ids)):
        boxes, scores = found.boxes(n)
        assert boxes.ndim == 2
        assert boxes.shape[1] == 4
        assert scores is None or scores.shape == (len(boxes),)
    return found


def answer(path: Path) -> str:
    """What is said of a file: where it can be read its name, else the UserError. Nothing else may be raised."""
    with in_bounds():
        try:
            return str(read_all(path).path)
        except UserError as error:
            return str(error)


FILES = [name for name in FORMATS if name != "x.proposals"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {name: FORMATS[name][0](folder / name).read_bytes() for name in FILES} | {
        f"plain {write.__name__}": write(folder / "one.mat", **PER_IMAGE["mcg"][0]).read_bytes()
        for write in (savemat, hdf5)
    }


EDIT = st.tuples(st.integers(0, 2**20), st.binary(min_size=0, max_size=8), st.integers(0, 8))


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", [*FILES, "plain savemat", "plain hdf5"])
def test_whatever_the_bytes_there_is_a_result_or_an_answer(
    tmp_path: Path, originals: dict[str, bytes], name: str
) -> None:
    path = tmp_path / f"f{Path(name).suffix}"

    @given(edits=st.lists(EDIT, min_size=1, max_size=4), cut=st.none() | st.integers(0, 2**20))
    def check(edits: list[tuple[int, bytes, int]], cut: int | None) -> None:
        data = bytearray(originals[name])
        for at, new, old in edits:
            at %= len(data) + 1
            data[at : at + old] = new
        path.write_bytes(bytes(data if cut is None else data[: cut % (len(data) + 1)]))
        assert str(path) in answer(path)

    check()


@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", HEADER, b"\x89HDF\r\n\x1a\n", b"\x80\x04", b"[", b"("])
)
def test_random_bytes_are_answered(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pkl"
    path.write_bytes(start + data)
    assert str(path) in answer(path)

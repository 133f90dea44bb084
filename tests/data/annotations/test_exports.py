"""The same data set in the files of every tool is read as the same truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import numpy as np
import pytest
from exports import EXPORTS, SPLIT_OF, TRUTH, WITHOUT_SPLITS
from voc_folder import fingerprint

from fastrcnn.data.annotations.overview import overview
from fastrcnn.data.annotations.splits import class_names, divide, find_split, load, read
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

Export = Callable[[Path], None]


def all_images(root: Path) -> dict[str, tuple[str, Sample]]:
    """The split and the sample of each image of a data set, by the first letter of its file."""
    found = {}
    for split in ("trainval", "val", "test"):
        try:
            source, ids, _ = find_split(root, split)
        except UserError:
            continue
        names, faults = class_names(source, ids, root)
        assert faults.found == [] or not any(p.error for p in faults.found)
        samples, problems = load(source, ids, ["cat", "dog"], root=root)
        assert problems.errors == []
        assert [s.image_id for s in samples] == ids
        assert set(names) <= {"cat", "dog"}
        for sample in samples:
            found[sample.path.name.removeprefix("8f2d1c3a-")[0]] = (split, sample)
    return found


@pytest.mark.parametrize("export", EXPORTS, ids=lambda e: e.__name__)
def test_every_export_is_read_as_the_same_truth_and_not_written_to(tmp_path: Path, export: Export) -> None:
    root = tmp_path / "set"
    export(root)
    before = fingerprint(root)
    found = all_images(root)
    assert sorted(found) == sorted(TRUTH)
    for name, (_, sample) in found.items():
        expected = TRUTH[name]
        assert sample.labels.tolist() == [["cat", "dog"].index(label) + 1 for label, _ in expected]
        np.testing.assert_allclose(sample.boxes, np.reshape([box for _, box in expected], (-1, 4)), atol=1e-4)
        assert (sample.width, sample.height) == (100, 80)
        assert not sample.difficult.any()
        assert sample.path.is_file()
    assert fingerprint(root) == before


@pytest.mark.parametrize("export", EXPORTS, ids=lambda e: e.__name__)
def test_splits_are_those_of_the_tool_or_divided(tmp_path: Path, export: Export) -> None:
    root = tmp_path / "set"
    export(root)
    found = all_images(root)
    if export in WITHOUT_SPLITS:
        ids = [sample.image_id for _, sample in found.values()]
        tests = {sample.image_id for split, sample in found.values() if split == "test"}
        assert tests == set(divide(ids, "test"))
        return
    names = {"train": "trainval", "valid": "val", "test": "test"}
    assert {name: split for name, (split, _) in found.items()} == {n: names[s] for n, s in SPLIT_OF.items()}


@pytest.mark.parametrize(("export", "line"), EXPORTS.items(), ids=[e.__name__ for e in EXPORTS])
def test_a_line_says_what_a_data_set_is(tmp_path: Path, export: Export, line: str) -> None:
    root = tmp_path / "set"
    export(root)
    assert overview(root, root) == line


@pytest.mark.parametrize("export", EXPORTS, ids=lambda e: e.__name__)
def test_a_missing_image_is_named(tmp_path: Path, export: Export) -> None:
    root = tmp_path / "set"
    export(root)
    source, ids, _ = find_split(root, "trainval")
    (image,) = read(source, ids[:1], root)
    image.path.unlink()
    ids_now = find_split(root, "trainval")[1] if source.is_file() else ids
    if ids[0] in ids_now:
        (image,) = read(source, ids[:1], root)
        assert [p.kind for p in image.problems] == ["missing_image"]
        assert image.objects is None


@pytest.mark.parametrize(
    ("export", "file"),
    [
        (exports.roboflow_yolo, "data.yaml"),
        (exports.one_csv, "boxes.csv"),
        (exports.cvat_images, "annotations.xml"),
        (exports.label_studio_min, "project-1.json"),
        (exports.labelimg_yolo, "classes.txt"),
    ],
    ids=lambda x: x.__name__ if callable(x) else None,
)
def test_data_root_may_be_the_file(tmp_path: Path, export: Export, file: str) -> None:
    root = tmp_path / "set"
    export(root)
    assert {i for _, s in all_images(root / file).values() for i in [s.image_id]} == {
        s.image_id for _, s in all_images(root).values()
    }
    assert overview(root / file, root / file) == overview(root, root)

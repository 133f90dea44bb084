"""Detections as label files: what is written is read again as the same boxes, by this program's own readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exports import picture

from fastrcnn.data.annotations.splits import class_names, find_split, load
from fastrcnn.inference.labels import FORMATS, Labelled, label_files, whole_pixels
from fastrcnn.structures import Detection

CLASSES = ["cat", "dog"]
CAT = Detection((10.25, 20.5, 50.75, 60.0), 0.875, 1, "cat")
DOG = Detection((40.0, 8.0, 90.0, 72.0), 0.5, 2, "dog")


def written(folder: Path, format: str) -> Path:
    """A data set: label files for three images of 100 x 80, and the images beside them."""
    images = [
        Labelled(name, Path("photos") / f"{name}.jpg", 100, 80, objects)
        for name, objects in (("a", [CAT]), ("b", [DOG, CAT]), ("c", []))
    ]
    for name, text in label_files(format, images, CLASSES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    root = folder / f"labels_{format}"
    for name in "abc":
        picture(root / "images" / f"{name}.jpg")
    return root


def accept(root: Path) -> None:
    """Does in Label Studio's file what its user does who accepts all predictions."""
    tasks = json.loads((root / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"], "was_cancelled": False}]
    (root / "tasks.json").write_text(json.dumps(tasks))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, format: str) -> None:
    root = written(tmp_path, format)
    if format == "labelstudio":
        accept(root)
    found = {}
    for split in ("trainval", "test"):
        source, ids, _ = find_split(root, split)
        assert set(class_names(source, ids, root)[0]) <= set(CLASSES)
        samples, problems = load(source, ids, CLASSES, root=root)
        assert problems.errors == []
        found |= {s.path.stem: s for s in samples}
    exact = format != "voc"
    expected = {"a": [CAT], "b": [DOG, CAT], "c": []}
    for name, objects in expected.items():
        assert found[name].labels.tolist() == [o.label for o in objects]
        boxes = np.reshape([o.box for o in objects], (-1, 4))
        np.testing.assert_allclose(found[name].boxes, boxes if exact else np.round(boxes), atol=0.006)
        assert (found[name].width, found[name].height) == (100, 80)


def test_scores_are_kept_where_the_format_has_a_place(tmp_path: Path) -> None:
    assert len((written(tmp_path, "yolo") / "labels/a.txt").read_text().split()) == 5  # tools refuse a sixth number
    coco = json.loads((written(tmp_path, "coco") / "annotations.json").read_text())
    assert [a["score"] for a in coco["annotations"]] == [0.875, 0.5, 0.875]
    tasks = json.loads((written(tmp_path, "labelstudio") / "tasks.json").read_text())
    assert [[r["score"] for r in t["predictions"][0]["result"]] for t in tasks] == [[0.875], [0.5, 0.875], []]
    assert '<Label value="dog" />' in (tmp_path / "labels_labelstudio/interface.txt").read_text()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 100.0, 80.0), (1, 1, 100, 80)),
        ((0.4, 0.6, 10.4, 10.6), (1, 2, 10, 11)),
        ((-3.0, -3.0, 200.0, 200.0), (1, 1, 100, 80)),
        ((99.8, 79.9, 100.0, 80.0), (100, 80, 100, 80)),
        ((5.1, 5.1, 5.3, 5.3), (6, 6, 6, 6)),
    ],
)
def test_a_box_in_whole_pixels_stays_in_the_image(box: tuple, expected: tuple) -> None:
    assert whole_pixels(box, Labelled("a", Path("a.jpg"), 100, 80, [])) == expected


def test_the_label_files_of_detect_are_those_of_what_is_drawn(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """From the command line, in all formats at once."""
    import slim_run
    from voc_folder import VocFolder

    voc = VocFolder(tmp_path / "set")
    voc.add("a", ("cat", (1, 1, 32, 24), False))
    voc.add("b", ("dog", (1, 1, 32, 24), False))
    voc.split("trainval", "a")
    voc.split("test", "b")
    run = slim_run.save(voc.root, tmp_path / "run")
    names = f"formats=[json,{','.join(FORMATS)}]"
    fast = ["data.selective_search.side=40", "data.selective_search.k=[50]", "data.test_short_sides=48"]
    status, out, err = call(
        "detect",
        f"checkpoint={run}",
        f"source={voc.root / 'JPEGImages'}",
        "output=found",
        "draw_threshold=0.02",
        "detection.score_threshold=0.01",
        "runtime.device=cpu",
        "runtime.precision=float32",
        names,
        *fast,
    )
    assert status == 0, err
    drawn = int(out.split()[0])
    lines = [line for n in "ab" for line in Path(f"found/labels_yolo/labels/{n}.txt").read_text().splitlines()]
    coco = json.loads(Path("found/labels_coco/annotations.json").read_text())["annotations"]
    objects = sum(f.read_text().count("<object>") for f in Path("found/labels_voc/Annotations").glob("*.xml"))
    assert drawn == len(lines) == len(coco) == objects > 0
    assert all(a["score"] >= 0.02 for a in coco)
    assert sorted(p.name for p in Path("found/labels_voc/Annotations").iterdir()) == ["a.xml", "b.xml"]
    status, _, err = call("detect", f"checkpoint={run}", f"source={voc.root / 'JPEGImages'}", "output=found", names)
    assert status == 1
    assert "found/labels_voc: the folder already exists and may contain labels that you corrected" in err


def test_images_of_one_name_in_several_folders_get_names_of_their_own() -> None:
    images = [Labelled(f"cam{n}_1.jpg", Path(f"cam{n}/1.jpg"), 100, 80, [CAT]) for n in (1, 2)]
    assert {n for n in label_files("yolo", images, CLASSES) if "cam" in n} == {
        "labels_yolo/labels/cam1_1.txt",
        "labels_yolo/labels/cam2_1.txt",
    }
    coco = json.loads(label_files("coco", images, CLASSES)["labels_coco/annotations.json"])
    assert [i["file_name"] for i in coco["images"]] == ["cam1_1.jpg", "cam2_1.jpg"]
    assert "<filename>cam2_1.jpg</filename>" in label_files("voc", images, CLASSES)["labels_voc/Annotations/cam2_1.xml"]

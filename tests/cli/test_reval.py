"""fastrcnn reval: saved detections against truth, also without pictures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from voc_folder import VocFolder

Call = Callable[..., tuple[int, str, str]]


def comp4(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"comp4_det_test_{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_files_by_hand(call: Call, tiny: VocFolder, tmp_path: Path) -> None:
    """The test picture `c` holds one cat at (11, 11, 30, 40), one-based; found by the second box: precision 1/2."""
    folder = comp4(tmp_path / "d", cat="c 0.9 1 1 9 9\nc 0.5 11 11 30 40\n", dog="")
    (tiny.root / "JPEGImages" / "c.jpg").unlink()  # not needed
    output = tmp_path / "out"
    arguments = [f"detections={folder}", "data=custom", f"data.root={tiny.root}", f"output={output}"]
    status, out, _ = call("reval", *arguments)
    assert status == 0
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["ap"] == {"cat": 0.5, "dog": None}
    assert (metrics["mAP"], metrics["metric"], metrics["images"]) == (0.5, "voc10", 1)
    assert "0.500" in out


def test_a_class_without_a_file_is_left_out_and_that_is_said(
    call: Call, tiny: VocFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = comp4(tmp_path / "d", cat="c 0.5 11 11 30 40\n")
    tiny.add("c", ("cat", (11, 11, 30, 40), False), ("dog", (1, 1, 9, 9), False))
    status, out, _ = call("reval", f"detections={folder}", "data=custom", f"data.root={tiny.root}")
    assert status == 0
    assert "no file, so left out: dog" in caplog.text
    assert "dog" not in out
    assert "1.000" in out.splitlines()[-1]


def test_coco_results_are_read_and_every_class_counts(call: Call, tiny: VocFolder, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps([{"image_id": "c", "category_id": 1, "bbox": [10, 10, 20, 30], "score": 0.5}]))
    tiny.add("c", ("cat", (11, 11, 30, 40), False), ("dog", (1, 1, 9, 9), False))
    status, out, _ = call("reval", f"detections={path}", "data=custom", f"data.root={tiny.root}")
    assert status == 0
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["cat", "1", "1.000"], ["dog", "1", "0.000"]]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no file comp4_det_test_<class>.txt"),
        ({"cta": ""}, "is of class 'cta', which the data set lacks. Did you mean 'cat'?"),
        ({"cat": "z 0.5 1 1 9 9\n"}, "line 1: image 'z' is not among the 1 images of the split"),
        ({"cat": "c 0.5 1 1 9 9\nc 0.5 1 1 9\n"}, "comp4_det_test_cat.txt, line 2: wanted"),
    ],
)
def test_files_that_do_not_fit_are_one_clear_message(
    call: Call, tiny: VocFolder, tmp_path: Path, files: dict[str, str], said: str
) -> None:
    folder = comp4(tmp_path / "d", **files)
    status, out, err = call("reval", f"detections={folder}", "data=custom", f"data.root={tiny.root}")
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_a_folder_that_is_missing_is_one_clear_message(call: Call, tiny: VocFolder) -> None:
    status, _, err = call("reval", "detections=no/such", "data=custom", f"data.root={tiny.root}")
    assert status == 1
    assert "no/such" in err


def test_real_detections_on_voc2007_give_the_independent_evaluators_ap(
    call: Call, test_data: Path, tmp_path: Path
) -> None:
    """All 4,952 annotations of VOC2007 test, without a picture; files named as the devkit names them."""
    folder = test_data / "voc_eval"
    root = tmp_path / "VOCdevkit" / "VOC2007"
    root.mkdir(parents=True)
    with zipfile.ZipFile(folder / "VOC2007_test_annotations.zip") as archive:
        archive.extractall(root)
    ids = sorted(p.stem for p in (root / "Annotations").glob("*.xml"))
    assert len(ids) == 4952
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids), encoding="utf-8")
    independent = json.loads((folder / "expected_ap.json").read_text(encoding="utf-8"))
    output = tmp_path / "out"
    arguments = [f"detections={folder}", "data=voc07", f"data.root={root.parent}", f"output={output}"]
    for metric, key in (("voc07", "voc07_11point"), ("voc10", "all_point")):
        status, out, _ = call("reval", *arguments, f"data.metric={metric}")
        assert status == 0
        assert "person" not in out  # no file of it
        expected = {name: values[key] for name, values in independent.items()}
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["ap"] == pytest.approx(expected, abs=1e-9)
        assert metrics["mAP"] == pytest.approx(sum(expected.values()) / 4, abs=1e-9)
        assert metrics["images"] == 4952

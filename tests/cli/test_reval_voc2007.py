"""fastrcnn reval on real detections of four classes, and the truth of all images of VOC2007 test."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def voc2007(test_data: Path, tmp_path: Path) -> Path:
    """VOCdevkit with all 4,952 annotations of VOC2007 test, without a picture."""
    folder = test_data / "voc_eval"
    root = tmp_path / "VOCdevkit" / "VOC2007"
    root.mkdir(parents=True)
    with zipfile.ZipFile(folder / "VOC2007_test_annotations.zip") as archive:
        archive.extractall(root)
    ids = sorted(p.stem for p in (root / "Annotations").glob("*.xml"))
    assert len(ids) == 4952
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids), encoding="utf-8")
    return root.parent


def test_real_detections_on_voc2007_give_the_independent_evaluators_ap(
    call: Call, test_data: Path, voc2007: Path, tmp_path: Path
) -> None:
    """By the command as it is documented; the files are named as the devkit names them."""
    folder = test_data / "voc_eval"
    independent = json.loads((folder / "expected_ap.json").read_text(encoding="utf-8"))
    output = tmp_path / "out"
    arguments = [f"detections={folder}", "data=voc07", f"data.root={voc2007}", "split=test", f"output={output}"]
    for metric, key in (("voc07", "voc07_11point"), ("voc10", "all_point")):
        status, out, _ = call("reval", *arguments, f"metric={metric}")
        assert status == 0
        assert "person" not in out  # no file of it
        expected = {name: values[key] for name, values in independent.items()}
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["ap"] == pytest.approx(expected, abs=1e-9)
        assert metrics["mAP"] == pytest.approx(sum(expected.values()) / 4, abs=1e-9)
        assert metrics["images"] == 4952


def test_real_detections_by_cocos_metric_give_what_pycocotools_gives_for_json_files(
    call: Call, test_data: Path, voc2007: Path, tmp_path: Path
) -> None:
    """The files of both sides are written here from the XML and the text, and pycocotools is called the usual way."""
    folder = test_data / "voc_eval"
    names = ["aeroplane", "bottle", "cow", "tvmonitor"]

    def entry(image: str, name: str, sides: list[float]) -> dict:
        x, y, width, height = sides[0] - 1, sides[1] - 1, sides[2] - sides[0] + 1, sides[3] - sides[1] + 1
        box = {"bbox": [x, y, width, height], "area": width * height}
        return {"image_id": int(image), "category_id": names.index(name) + 1} | box

    objects, results = [], []
    for path in sorted((voc2007 / "VOC2007" / "Annotations").glob("*.xml")):
        for item in defusedxml.ElementTree.parse(path).iter("object"):
            if (name := item.findtext("name")) in names:
                sides = [float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
                hard = {"iscrowd": int(item.findtext("difficult")), "id": len(objects) + 1}
                objects.append(entry(path.stem, name, sides) | hard)
    for name in names:
        for line in (folder / f"comp4_det_test_{name}.txt").read_text().splitlines():
            image, score, *sides = line.split()
            results.append(entry(image, name, [float(v) for v in sides]) | {"score": float(score)})
    images = [{"id": i} for i in sorted({o["image_id"] for o in objects + results})]
    categories = [{"id": i} for i in range(1, 5)]
    content = {"images": images, "categories": categories, "annotations": objects, "info": {}}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    of_class = np.where(
        evaluation.eval["precision"][:, :, :, 0, 2] < 0, np.nan, evaluation.eval["precision"][..., 0, 2]
    )
    output = tmp_path / "out"
    arguments = [f"detections={folder}", "data=voc07", f"data.root={voc2007}", "split=test", f"output={output}"]
    status, _, err = call("reval", *arguments, "metric=coco")
    assert status == 0, err
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    figures = [metrics[key] for key in ("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")]
    assert figures == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)
    assert 0.1 < figures[0] < figures[1] < 0.9
    assert metrics["ap"] == pytest.approx(dict(zip(names, of_class.mean(axis=(0, 1)).tolist(), strict=True)), abs=1e-9)

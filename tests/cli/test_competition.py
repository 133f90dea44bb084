"""`eval competition=true`: what evaluation servers take, from test sets whose truth is kept back."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import caffemodel
import numpy as np
import pytest
from PIL import Image
from voc_folder import VocFolder, fingerprint

Call = Callable[..., tuple[int, str, str]]
FAST = [
    "runtime.device=cpu",
    "runtime.workers=0",
    "data.selective_search.side=40",
    "data.test_short_sides=[48]",
    "data.classes=[cat,dog]",
]


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Calls every box a dog."""
    weights = caffemodel.vgg16(1 / 64, classes=2)
    for name in ("cls_score", "bbox_pred"):
        weights[f"{name}.weight"][:] = 0
        weights[f"{name}.bias"][:] = 0
    weights["cls_score.bias"][2] = 9
    return caffemodel.write(tmp_path / "d.caffemodel", weights)


@pytest.fixture
def year(tmp_path: Path) -> VocFolder:
    """VOCdevkit/VOC2012: a list of two test pictures, one larger than the other, and no annotation."""
    year = VocFolder(tmp_path / "VOCdevkit" / "VOC2012")
    year.picture("2008_000001")
    year.picture("2008_000002", (80, 60), ".png")
    year.split("test", "2008_000001", "2008_000002")
    year.split("other", "2008_000001")
    shutil.rmtree(year.root / "Annotations")
    return year


def voc_arguments(detector: Path, year: VocFolder, *more: str) -> list[str]:
    return ["eval", f"checkpoint={detector}", "data=voc12", f"data.root={year.root.parent}", *FAST, *more]


def test_voc_files_are_those_of_the_server_and_the_archive_repeats(call: Call, detector: Path, year: VocFolder) -> None:
    before = fingerprint(year.root.parent)
    wanted = ["split=VOC2012/test", "competition=true"]
    status, out, err = call(*voc_arguments(detector, year, *wanted))
    assert (status, "Traceback" in err) == (0, False), err
    folder = Path("outputs/d/eval/VOC2012-test")
    names = [f"results/VOC2012/Main/comp4_det_test_{name}.txt" for name in ("cat", "dog")]
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["results.tgz", *names]
    assert (folder / names[0]).read_bytes() == b""
    rows = [line.split() for line in (folder / names[1]).read_text().splitlines()]
    assert {row[0] for row in rows} == {"2008_000001", "2008_000002"}
    largest = {i: [max(float(r[k]) for r in rows if r[0] == i) for k in (4, 5)] for i in ("2008_000001", "2008_000002")}
    assert largest == {"2008_000001": [64, 48], "2008_000002": [80, 60]}  # inclusive: the last pixel of each picture
    assert all(float(row[k]) >= 1 for row in rows for k in (2, 3))
    with tarfile.open(folder / "results.tgz") as archive:
        assert archive.getnames() == names
        for name in names:
            assert archive.extractfile(name).read() == (folder / name).read_bytes()  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}
    assert f"{len(rows)} detections of 2 classes in 2 images; no AP" in out
    assert f"Wrote {folder}/results.tgz" in out
    assert f"fastrcnn reval detections={folder}/results/VOC2012/Main split=VOC2012/test" in out
    assert "mAP" not in out
    assert call(*voc_arguments(detector, year, *wanted, "output=again"))[0] == 0
    assert Path("again/results.tgz").read_bytes() == (folder / "results.tgz").read_bytes()
    assert (folder / "results.tgz").read_bytes()[4:8] == bytes(4)  # the time in gzip's own header
    below = [f"data.root={year.root}", "data.test=[test]", "competition=true", "output=below"]
    assert call(*voc_arguments(detector, year, *below))[0] == 0
    assert Path("below/results.tgz").read_bytes() == (folder / "results.tgz").read_bytes()
    assert fingerprint(year.root.parent) == before


@pytest.mark.parametrize("metric", ["voc07", "voc10", "coco"])
def test_where_the_truth_comes_later_reval_gives_what_eval_gives(
    call: Call, detector: Path, year: VocFolder, metric: str
) -> None:
    """Truth is not looked at, even a broken one; scores and boxes lose no digit on their way through the files."""
    year.annotation("2008_000001", "<broken")
    wanted = ["split=VOC2012/test", "competition=true", "output=made"]
    assert call(*voc_arguments(detector, year, *wanted))[0] == 0
    year.add("2008_000001", ("dog", (1, 1, 64, 48), False), ("cat", (5, 5, 20, 20), False))
    (year.root / "JPEGImages" / "2008_000002.png").unlink()
    year.add("2008_000002", ("dog", (21, 11, 60, 40), False))
    truth = [
        "data=voc12",
        f"data.root={year.root.parent}",
        "data.classes=[cat,dog]",
        "split=VOC2012/test",
        f"metric={metric}",
    ]
    found = []
    for place in ("made/results/VOC2012/Main", "made"):
        status, _, err = call("reval", f"detections={place}", *truth, f"output={place}-ap")
        assert status == 0, err
        found.append(json.loads(Path(f"{place}-ap/metrics.json").read_text()))
    assert found[0] == found[1]
    assert found[0]["ap"]["cat"] == 0
    assert 0 < found[0]["ap"]["dog"] < 1
    # The same detections evaluated at once, but for the second picture, which had another size: the first alone.
    assert call(*voc_arguments(detector, year, "split=other", "competition=true", "output=one"))[0] == 0
    assert call(*voc_arguments(detector, year, "split=other", f"metric={metric}", "output=direct"))[0] == 0
    again = ["reval", "detections=one", *truth[:3], "split=other", f"metric={metric}", "output=files"]
    assert call(*again)[0] == 0
    direct, files = (json.loads(Path(f"{p}/metrics.json").read_text()) for p in ("direct", "files"))
    assert {k: v for k, v in direct.items() if k != "proposals"} == files
    assert files["metric"] == metric
    name = "comp4_det_{}_dog.txt"
    assert (Path("one/results/VOC2012/Main") / name.format("other")).read_text() == (
        Path("direct") / name.format("VOC2012-other")
    ).read_text()


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures and three categories with numbers of their own; one image's id is a number, the other's a text."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for seed, name in enumerate(("seven.png", "x.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    content = {
        "images": [
            {"id": 7, "file_name": "seven.png", "width": 64, "height": 48},
            {"id": "0012", "file_name": "x.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 5, "name": "ship"}],
    }
    (folder / "annotations" / "image_info_test-dev2020.json").write_text(json.dumps(content))
    content["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 0, 64, 48], "iscrowd": 0, "area": 3072},
        {"id": 2, "image_id": "0012", "category_id": 17, "bbox": [4, 4, 20, 20], "iscrowd": 0, "area": 400},
    ]
    (folder / "annotations" / "instances_test.json").write_text(json.dumps(content))
    return folder


def test_coco_results_have_the_data_sets_own_numbers(call: Call, detector: Path, coco: Path) -> None:
    base = [f"data.root={coco}", *FAST]
    split = "split=annotations/image_info_test-dev2020.json"
    status, out, err = call("eval", f"checkpoint={detector}", *base, split, "competition=true", "output=made")
    assert (status, "Traceback" in err) == (0, False), err
    path = Path("made/detections_test-dev2020_results.json")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    entries = json.loads(path.read_text())
    assert {e["category_id"] for e in entries} == {18}
    assert {e["image_id"] for e in entries} == {7, "0012"}
    assert all(type(v) in (int, float) for e in entries for v in (e["score"], *e["bbox"]))
    assert f"Wrote {path}" in out
    file = coco / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = next(e["bbox"] for e in entries if e["image_id"] == 7)
    file.write_text(json.dumps(content))
    truth = ["data=custom", *base[:1], FAST[-1], "split=annotations/instances_test.json", "metric=coco", "output=ap"]
    status, out, err = call("reval", f"detections={path}", *truth)
    assert status == 0, err
    metrics = json.loads(Path("ap/metrics.json").read_text())
    assert metrics["ap"]["cat"] == 0
    assert metrics["ap"]["dog"] > 0
    assert metrics["mAP"] == pytest.approx(metrics["ap"]["dog"] / 2)


def refused(call: Call, *arguments: str) -> str:
    status, out, err = call(*arguments)
    assert (status, out, "Traceback" in err) == (1, "", False)
    return err


def test_without_truth_the_message_names_competition(call: Call, detector: Path, year: VocFolder, coco: Path) -> None:
    said = "2 of the 2 images of 'VOC2012/test' have no annotation"
    for more in ([], ["data.skip_bad=true"]):
        err = refused(call, *voc_arguments(detector, year, "split=VOC2012/test", *more))
        assert said in err
        assert "competition=true" in err
    Path("d").mkdir()
    Path("d/comp4_det_test_dog.txt").write_text("")
    err = refused(call, "reval", "detections=d", "data=voc12", f"data.root={year.root.parent}", "split=VOC2012/test")
    assert said in err
    err = refused(
        call, "eval", f"checkpoint={detector}", f"data.root={coco}", *FAST,
        "split=annotations/image_info_test-dev2020.json",
    )  # fmt: skip
    assert "2 of the 2 images of 'annotations/image_info_test-dev2020.json' have no annotation" in err


def test_ids_that_a_server_does_not_read_are_refused_before_detection(
    call: Call, detector: Path, year: VocFolder
) -> None:
    year.picture("50%")
    year.split("test", "2008_000001", "50%")
    err = refused(call, *voc_arguments(detector, year, "split=VOC2012/test", "competition=true"))
    assert "Image id '50%' contains whitespace, %" in err
    assert not Path("outputs").exists()
    assert not Path("data").exists(), "no proposals were made"


def test_some_annotations_of_another_competition_are_no_truth(call: Call, detector: Path, year: VocFolder) -> None:
    year.add("2008_000003", ("dog", (1, 1, 9, 9), False))
    year.split("test", "2008_000001", "2008_000002", "2008_000003")
    err = refused(call, *voc_arguments(detector, year, "split=VOC2012/test"))
    assert "2 of the 3 images of 'VOC2012/test' have no annotation" in err


def test_pictures_that_are_missing_or_broken_are_all_named(
    call: Call, detector: Path, year: VocFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = year.root / "JPEGImages"
    whole = (pictures / "2008_000001.jpg").read_bytes()
    (pictures / "2008_000001.jpg").write_bytes(whole[: len(whole) // 2])
    outside = tmp_path / "outside.png"
    shutil.move(pictures / "2008_000002.png", outside)
    (pictures / "2008_000002.png").symlink_to(outside)
    (year.root / "ImageSets" / "Main" / "test.txt").write_text("2008_000001\n2008_000002\n2008_000009\n")
    wanted = voc_arguments(detector, year, "split=VOC2012/test", "competition=true")
    err = refused(call, *wanted)
    assert "3 of 3 images cannot be used" in err
    for said in ("2008_000001.jpg: ", "2008_000002.png: the link points outside", "2008_000009: no such image"):
        assert said in err
    assert not Path("outputs").exists()
    (pictures / "2008_000001.jpg").write_bytes(whole)
    caplog.set_level(logging.WARNING, "fastrcnn")
    status, out, _ = call(*wanted, "data.skip_bad=true")
    assert status == 0
    assert "Skipped 2 image(s)" in caplog.text
    assert "in 1 images" in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["metric=voc10", "split=VOC2012/test"], "metric=voc10: this key cannot be combined with competition=true"),
        (
            ["data.test=[VOC2012/test,VOC2012/other]"],
            "needs exactly one split. Given: VOC2012/test, VOC2012/other",
        ),
        (["split=VOC2012/tset"], "Did you mean 'test'?"),
    ],
)
def test_what_makes_no_sense_is_one_message(
    call: Call, detector: Path, year: VocFolder, more: list[str], said: str
) -> None:
    assert said in refused(call, *voc_arguments(detector, year, "competition=true", *more))


def test_a_category_that_the_file_lacks_and_a_part_chosen_here(call: Call, detector: Path, coco: Path) -> None:
    base = ["eval", f"checkpoint={detector}", *FAST[:-1], "data.classes=[cat,wolf]", "competition=true"]
    err = refused(call, *base, f"data.root={coco}", "split=annotations/instances_test.json")
    assert "no category for these classes of the model: wolf. Available: dog, cat, ship." in err
    err = refused(call, *base, f"data.root={coco / 'annotations' / 'instances_test.json'}")
    assert "'test' is not a predefined split of this data set" in err

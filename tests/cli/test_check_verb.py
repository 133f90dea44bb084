"""`fastrcnn check` as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exports import EXPORTS, WITHOUT_SPLITS, picture, write
from voc_folder import VocFolder, fingerprint

from fastrcnn.proposals.store import ImageProposals, write_store

Call = Callable[..., tuple[int, str, str]]


def folder(name: str = "custom") -> Path:
    """Where the report of the only data set of this name is."""
    (found,) = Path("outputs/check").glob(f"{name}-*")
    return found


def report(where: Path | str | None = None) -> dict:
    return json.loads(Path(where or folder(), "report.json").read_text(encoding="utf-8"))


def test_a_sound_set_and_what_comes_next(
    tiny: VocFolder, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = fingerprint(tiny.root)
    given = ["data=custom", f"data.root={tiny.root}"]
    status, out, _ = call("check", *given, "workers=1")
    assert status == 0
    assert out.splitlines()[-4].startswith("READY: no errors")
    assert re.fullmatch(r"report: outputs/check/custom-set-[0-9a-f]{8}/report\.html", out.splitlines()[-3])
    assert "recipe=scratch needs none" in out.splitlines()[-2]
    assert out.splitlines()[-1] == f"next step: fastrcnn train data=custom data.root={tiny.root} recipe=transfer"
    found = report()
    assert found["ok"] is True
    assert [(s["name"], s["images"], s["objects"]) for s in found["splits"]] == [("trainval", 2, 3), ("test", 1, 1)]
    assert found["proposals"] is None
    assert (folder() / "report.html").read_text().count("data:image/jpeg;base64,") == 3

    store = tmp_path / "my store.proposals"
    boxes = np.array([[0, 0, 32, 24], [0, 0, 64, 48]], np.float32)
    write_store(store, [ImageProposals(i, 48, 64, boxes) for i in "abc"], "by hand", {})
    status, out, _ = call("check", *given, f"proposals={store}", "output=here", "solver.rois_per_image=8")
    assert status == 0
    train = f"next step: fastrcnn train data=custom data.root={tiny.root} 'data.proposals={store}'"
    assert out.splitlines()[-1] == f"{train} recipe=transfer"
    recall = report("here")["proposals"]["all"]
    assert (recall["objects"], recall["at_50"], recall["at_70"]) == (3, 1 / 3, 1 / 3)  # b's is difficult
    assert report("here")["sampling"]["rois_per_image"] == 8
    assert fingerprint(tiny.root) == before


def test_a_table_named_from_its_own_folder_has_images_in_the_folder_above(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{name}.jpg,cat,10,20,50,60\n" for name in "ab")
    write(tmp_path / "data/boxes.csv", f"filename,class,xmin,ymin,xmax,ymax\n{rows}")
    for name in "ab":
        picture(tmp_path / f"images/{name}.jpg")
    monkeypatch.chdir(tmp_path / "data")
    status, out, _ = call("check", "data=custom", "data.root=boxes.csv", "workers=1")
    assert (status, "READY: no errors" in out) == (0, True)


@pytest.mark.parametrize("export", EXPORTS, ids=lambda e: e.__name__)
def test_the_files_of_every_tool_are_checked_with_one_command(
    tmp_path: Path, call: Call, export: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    root = tmp_path / "set"
    export(root)
    status, out, _ = call("check", "data=custom", f"data.root={root}", "workers=1")
    assert (status, "READY: no errors" in out) == (0, True)
    said = next(line for line in caplog.messages if line.startswith(f"{root}: "))
    assert re.sub(r", divided by their ids into trainval \d and test \d", "", said) == f"{root}: {EXPORTS[export]}"
    splits = report()["splits"]
    assert sum(s["objects"] for s in splits) == 6
    assert len(splits) == (2 if export in WITHOUT_SPLITS else 3)
    assert report()["classes"] == ["cat", "dog"]


def test_pictures_without_annotation_are_noted_where_there_are_no_lists(voc: VocFolder, call: Call) -> None:
    for image_id in "abcdef":
        voc.add(image_id, ("cat", (1, 1, 32, 24), False))
    (voc.root / "Annotations" / "c.xml").unlink()
    (voc.root / "ImageSets" / "Main").rmdir()
    status, out, _ = call("check", f"data.root={voc.root}")
    assert status == 0
    assert out.count("1 image(s) without an annotation are not used") == 1
    assert sum(s["images"] for s in report()["splits"]) == 5


def test_what_is_wrong_is_said_even_where_training_would_skip_it(tiny: VocFolder, call: Call) -> None:
    tiny.add("x", ("dog", (9, 9, 3, 3), False))
    tiny.add("y", ("bird", (1, 1, 9, 9), False))
    (tiny.root / "JPEGImages/a.jpg").write_bytes(b"")
    tiny.split("trainval", "a", "b", "x")
    tiny.split("test", "y")
    status, out, _ = call("check", f"data.root={tiny.root}", "data.skip_bad=true")
    assert status == 1
    assert "NOT READY: 2 error(s)" in out
    assert [(p["kind"], p["object"]) for p in report()["errors"]] == [("bad_image", None), ("box", 1)]
    (alone,) = [p for p in report()["notes"] if p["kind"] == "test_only"]
    assert alone["what"] == "'bird' has no training object, but 1 in the validation and test splits."
    assert out.splitlines()[-1].startswith("fix the errors, then run: fastrcnn train")
    status, _, _ = call("check", f"data.root={tiny.root}", "data.other_classes=leave_out")
    assert [p["kind"] for p in report()["errors"]] == ["bad_image", "box"]


def test_a_bad_list_does_not_hide_the_other(tiny: VocFolder, call: Call) -> None:
    tiny.split("test", "c", "a", "c")
    status, out, _ = call("check", f"data.root={tiny.root}")
    assert status == 1
    assert "test.txt, line 3" in out
    assert [s["name"] for s in report()["splits"]] == ["trainval"]


def test_mistakes_in_the_call(tiny: VocFolder, call: Call, tmp_path: Path) -> None:
    for arguments, wanted in [
        (["data.root=nowhere"], "nowhere"),
        ([f"data.root={tiny.root}", "data.train=[tran]", "data.test=[tst]"], "tran"),
        ([f"data.root={tiny.root}", "proposals=nothing.proposals"], "nothing.proposals"),
        ([f"data.root={tiny.root}", f"output={tiny.root}/ImageSets/Main/test.txt"], "test.txt is not a folder"),
    ]:
        status, out, err = call("check", *arguments)
        assert status == 1
        assert out == ""
        assert wanted in err
        assert "Traceback" not in err


def test_proposals_made_earlier_are_found(tiny: VocFolder, call: Call) -> None:
    given = [f"data.root={tiny.root}", "data.selective_search.side=64"]
    assert call("propose", *given, "workers=1")[0] == 0
    status, out, _ = call("check", *given)
    assert status == 0
    assert report()["proposals"]["images"] == 3
    assert out.splitlines()[-1].startswith("next step: fastrcnn train ")


def test_names_that_are_markup_or_no_file_name(voc: VocFolder, call: Call) -> None:
    voc.add("a", ("&lt;script&gt;", (1, 1, 20, 20), False), ("&lt;/b&gt;", (1, 1, 20, 20), False))
    voc.add("b", ("&lt;script&gt;", (1, 1, 20, 20), False))
    voc.split("trainval", "a")
    voc.split("test", "b")
    status, out, _ = call("check", f"data.root={voc.root}")
    assert status == 1
    assert "object 2: class '</b>' contains a slash, which is not allowed" in out
    html = (folder() / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_coco_without_lists(tmp_path: Path, call: Call) -> None:
    from PIL import Image

    pictures = tmp_path / "coco" / "images"
    pictures.mkdir(parents=True)
    images, annotations = [], []
    for n in range(1, 11):
        Image.fromarray(np.full((48, 64, 3), n, np.uint8)).save(pictures / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 48})
        annotations.append({"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 20, 20 if n != 4 else -2]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "coco" / "all.json").write_text(json.dumps(content))
    status, _, _ = call("check", f"data.root={tmp_path / 'coco'}")
    assert status == 1
    (error,) = report()["errors"]
    assert (error["kind"], error["object"], error["name"]) == ("box", 4, "cat")
    assert sum(s["images"] for s in report()["splits"]) == 10
    assert sum(s["objects"] for s in report()["splits"]) == 9


def test_the_bad_boxes_of_bccd(test_data: Path, call: Call) -> None:
    status, _, _ = call("check", "data=custom", f"data.root={test_data / 'BCCD'}")
    assert status == 1
    found = report()
    assert {(Path(p["file"]).name, p["object"], p["kind"]) for p in found["errors"]} == {
        ("BloodImage_00338.xml", 13, "box"),
        ("BloodImage_00343.xml", 4, "box"),
    }
    assert sum(s["objects"] for s in found["splits"]) == 4888 - 2


def test_real_selective_search_boxes(test_data: Path, call: Call, tmp_path: Path) -> None:
    from scipy.io import loadmat

    from fastrcnn.data.annotations.formats.voc_xml import read_annotation

    root = test_data / "VOCdevkit"
    items = []
    for path in sorted((test_data / "selective_search").glob("*.mat")):
        image_id = path.stem.partition("_")[0]
        said = read_annotation(root / f"VOC2007/Annotations/{image_id}.xml")
        boxes = loadmat(path)["boxes"].astype(np.float32)
        boxes[:, 2:] += 1  # inclusive in the file
        items.append(ImageProposals(image_id, said.height, said.width, boxes))
    write_store(tmp_path / "two.proposals", items, "selective search", {})
    status, _, _ = call("check", "data=voc07", f"data.root={root}", f"proposals={tmp_path / 'two.proposals'}")
    found = report(folder("voc07"))
    assert status == 1
    assert len(found["errors"]) == 409 - 2
    assert {p["kind"] for p in found["errors"]} == {"no_proposals"}
    assert found["proposals"]["images"] == 2
    status, _, _ = call(
        "check",
        "data=voc07",
        f"data.root={root}",
        f"proposals={tmp_path / 'two.proposals'}",
        "data.missing_proposals=leave_out",
    )
    assert status == 0


def test_normalised_boxes_are_one_error_without_advice_about_the_first_pixel(tiny: VocFolder, call: Call) -> None:
    for image_id in "abc":
        tiny.add(image_id, ("cat", (0, 0.25, 0.5, 1), False), ("dog", (0, 0, 1, 1), False))
    status, out, _ = call("check", f"data.root={tiny.root}")
    assert status == 1
    (error,) = report()["errors"]
    assert (error["kind"], error["object"], Path(error["file"]).name) == ("normalised", 1, "a.xml")
    assert "boxes look normalised to 0..1" in error["what"]
    assert "6 objects in 3 files" in error["what"]
    assert "zero" not in out


def test_one_cause_is_one_error(voc: VocFolder, call: Call) -> None:
    for n in range(30):
        voc.add(f"p{n}", ("cat", (1, 1, 20, 24), False))
    (voc.root / "truth").mkdir()
    (voc.root / "Annotations").rename(voc.root / "truth" / "2024")
    (voc.root / "ImageSets" / "Main").rmdir()
    status, out, _ = call("check", f"data.root={voc.root}")
    assert status == 1
    (error,) = report()["errors"]
    what = "images are in JPEGImages/ (such as p0.jpg), and XML files are in truth/2024/ (such as p0.xml)."
    assert error["what"].startswith(what)
    shown = " ".join(out.split())  # lines are wrapped
    assert "truth/2024/ (such as p0.xml). Rename these folders to JPEGImages and Annotations" in shown


def test_what_check_finds_wrong_with_xml_training_refuses(tiny: VocFolder, call: Call) -> None:
    path = tiny.root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("object>", "Object>"))
    assert call("check", f"data.root={tiny.root}")[0] == 1
    errors = [(p["kind"], Path(p["file"]).name) for p in report()["errors"]]
    assert errors == [("annotation", "a.xml")]
    status, _, err = call("train", "recipe=scratch", "data=custom", f"data.root={tiny.root}")
    assert status != 0
    assert "a.xml: <Object> is not allowed in <annotation>" in err


def test_folders_for_splits_are_what_is_checked(tiny: VocFolder, call: Call, tmp_path: Path) -> None:
    for folder, ids in (("train", "ab"), ("valid", "c"), ("test", "c")):
        (tmp_path / "set2" / folder).mkdir(parents=True)
        for image_id in ids:
            for file in (f"JPEGImages/{image_id}.jpg", f"Annotations/{image_id}.xml"):
                shutil.copy(tiny.root / file, tmp_path / "set2" / folder)
    status, _, _ = call("check", f"data.root={tmp_path / 'set2'}")
    assert status == 0
    splits = [(s["name"], s["images"], s["objects"]) for s in report()["splits"]]
    assert splits == [("trainval", 2, 3), ("val", 1, 1), ("test", 1, 1)]


def test_data_sets_of_one_name_have_pages_of_their_own(tmp_path: Path, call: Call) -> None:
    for place in ("one/set", "two/set"):
        voc = VocFolder(tmp_path / place)
        voc.add("a", ("cat", (1, 1, 32, 24), False))
        voc.split("trainval", "a")
        for _ in range(2):  # the same set again takes the place of its own page
            call("check", f"data.root={voc.root}", "data.test=[]")
    roots = [report(found)["root"] for found in Path("outputs/check").iterdir()]
    assert sorted(roots) == [str(tmp_path / "one/set"), str(tmp_path / "two/set")]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a\\b", "/abs", "a\nb", "x" * 151])
@pytest.mark.parametrize("key", ["name", "data.name"])
def test_a_name_that_leads_elsewhere_is_refused(tiny: VocFolder, call: Call, key: str, name: str) -> None:
    status, _, err = call("train", f"data.root={tiny.root}", f"{key}={name}")
    assert (status, f"{key}=" in err, "used in file and folder names" in err) == (1, True, True)
    assert list(Path().iterdir()) == []

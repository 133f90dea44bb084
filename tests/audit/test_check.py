"""What reading a whole data set finds, against values by hand and against the code that trains on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from limits import Compared, calls
from PIL import Image
from voc_folder import VocFolder, fingerprint, voc_xml

from fastrcnn.audit.check import Record, Settings, Task, read_all, sort_out
from fastrcnn.audit.findings import findings, make_report, proposal_findings
from fastrcnn.audit.report import (
    Boxes,
    Images,
    Range,
    Recall,
    Report,
    boxes,
    images,
    known_only,
    proposals,
    sampling,
    split,
    to_json,
)
from fastrcnn.audit.views import page, summary
from fastrcnn.data.annotations import splits
from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject
from fastrcnn.data.truth.problems import KINDS, Problem
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.model.sampling import RoISampler
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.settings import SolverSettings
from fastrcnn.structures import Sample


def tasks(folder: VocFolder, *image_ids: str, role: str = "train", store: Path | None = None) -> list[Task]:
    return [Task(role, "trainval" if role == "train" else "test", folder.root, i, store) for i in image_ids]


def read(folder: VocFolder, *image_ids: str) -> list[Record]:
    return read_all(tasks(folder, *image_ids), Settings())


def kinds(records: list[Record]) -> list[str]:
    return [p.kind for r in records for p in r.problems]


def test_a_sound_picture_is_read_whole(tiny: VocFolder) -> None:
    before = fingerprint(tiny.root)
    (record,) = read(tiny, "a")
    assert record.problems == []
    assert record.size == (64, 48)
    assert record.names == ["cat", "dog"]
    assert record.boxes.tolist() == [[0, 0, 32, 24], [32, 9, 64, 48]]  # one-based inclusive made half-open
    assert record.image.truncated == 2
    assert record.digest == hashlib.sha256((tiny.root / "JPEGImages/a.jpg").read_bytes()).digest()
    assert fingerprint(tiny.root) == before


def test_all_bad_files_are_reported_at_once(tiny: VocFolder) -> None:
    jpeg = (tiny.root / "JPEGImages/a.jpg").read_bytes()
    for image_id in ("cut", "empty", "text", "gone", "swapped", "noxml", "broken", "objects"):
        tiny.add(image_id, ("cat", (1, 1, 10, 10), False))
    (tiny.root / "JPEGImages/cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tiny.root / "JPEGImages/empty.jpg").write_bytes(b"")
    (tiny.root / "JPEGImages/text.jpg").write_text("no picture")
    (tiny.root / "JPEGImages/gone.jpg").unlink()
    tiny.picture("swapped", (48, 64))
    (tiny.root / "Annotations/noxml.xml").unlink()
    tiny.annotation("broken", "<annotation>\n<object>\n</annotation>")
    tiny.annotation(
        "objects",
        voc_xml([("cat", ("x", 1, 9, 9), False), ("cat", (1, 1, 9, ""), False), ("", (1, "nan", 9, 9), False)]),
    )
    records = read(tiny, "a", "cut", "empty", "text", "gone", "swapped", "noxml", "broken", "objects")
    found = {r.task.image_id: [(p.kind, p.line, p.object) for p in r.problems] for r in records}
    assert found == {
        "a": [],
        "cut": [("bad_image", None, None)],
        "empty": [("bad_image", None, None)],
        "text": [("bad_image", None, None)],
        "gone": [("missing_image", None, None)],
        "swapped": [("image_size", None, None)],
        "noxml": [("missing_annotation", None, None)],
        "broken": [("annotation", 3, None)],
        "objects": [("annotation", None, n) for n in (1, 2, 3, 3)],
    }
    assert all(p.error and Path(p.file).parent.parent == tiny.root for r in records for p in r.problems)
    assert "Width and height are swapped" in records[5].problems[0].what


def test_bad_boxes_have_file_object_and_class(voc: VocFolder) -> None:
    bad = [(20, 5, 10, 9), (7, 7, 7, 7), (1, 1, 80, 20)]
    objects = [("cat", (1, 1, 65, 48), False), *(("dog (big)", b, False) for b in bad), ("cat", (5, 5, 9, 9), False)]
    voc.add("a", *objects)
    (record,) = read(voc, "a")
    assert [(p.kind, p.object, p.name) for p in record.problems] == [("box", n, "dog (big)") for n in (2, 3, 4)]
    said = ("inverted", "point", "extends beyond")
    assert [w in p.what for p, w in zip(record.problems, said, strict=True)] == [True] * 3
    assert {p.file for p in record.problems} == {str(voc.root / "Annotations/a.xml")}
    assert [o.number for o in record.objects] == [1, 5]
    assert boxes([record], [600], 1000).clipped == 1


def test_a_link_out_of_the_data_set_is_not_followed(tiny: VocFolder, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes((tiny.root / "JPEGImages/a.jpg").read_bytes())
    (tiny.root / "JPEGImages/a.jpg").unlink()
    (tiny.root / "JPEGImages/a.jpg").symlink_to(tmp_path / "secret.jpg")
    (record,) = read(tiny, "a")
    assert kinds([record]) == ["link"]
    assert record.size is None
    assert record.digest == b""


def test_pictures_of_all_kinds_are_counted(voc: VocFolder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    folder = voc.root / "JPEGImages"
    Image.fromarray(pixels[..., 0]).save(folder / "gray.jpg")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).convert("RGBA").save(folder / "rgba.png")
    cv2.imwrite(str(folder / "deep.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "deepgray.png"), pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    cv2.imwrite(str(folder / "twelve.png"), pixels.astype(np.uint16) * 16)
    ids = ["gray", "palette", "cmyk", "rgba", "deep", "deepgray", "turned", "twelve"]
    for image_id in ids:
        voc.annotation(image_id, voc_xml([("cat", (1, 1, 9, 9), False)]))
    records = read(voc, *ids)
    assert [r.colour for r in records] == ["gray", "palette", "CMYK", "RGBA", "16-bit", "16-bit", "RGB", "16-bit"]
    found = {
        p.what for p in findings(records, ["cat"], "lists", Settings()) if p.kind in ("colours", "as_stored", "bits")
    }
    assert found == {
        "1 image(s) have the colour format gray.",
        "1 image(s) have the colour format palette.",
        "1 image(s) have the colour format CMYK.",
        "1 image(s) have the colour format RGBA.",
        "3 image(s) have the colour format 16-bit.",
        "1 image(s) have an EXIF orientation but are used as stored, because the size in their annotation fits the "
        "stored image. The first is turned.jpg, stored as 64 x 48 with EXIF orientation 6.",
        "1 image(s) with 16 bits per channel use only 12 of them (values up to 4095) and are scaled accordingly. The "
        "first is twelve.png.",
    }


def test_an_image_is_rotated_where_its_annotation_has_the_upright_size(voc: VocFolder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image_id, size in (("a", (48, 64)), ("b", (50, 60)), ("c", (64, 64))):
        Image.new("RGB", size).save(voc.root / f"JPEGImages/{image_id}.jpg", exif=exif)
        sides = (64, 64) if image_id == "c" else (64, 48)
        voc.annotation(image_id, voc_xml([("cat", (1, 1, 9, 9), False)], *sides, f"{image_id}.jpg"))
    records = read(voc, "a", "b", "c")
    assert [(r.size, r.turn) for r in records] == [((64, 48), 6), ((50, 60), 1), ((64, 64), 1)]
    (fault,) = [p for r in records for p in r.problems]
    assert (fault.kind, fault.what) == (
        "image_size",
        "the image has 50 x 60 pixels (upright: 60 x 50), but its annotation has size 64 x 48.",
    )
    notes = {p.kind: p.what for p in findings(records, ["cat"], "lists", Settings())}
    assert notes["turned"].startswith(
        "1 image(s) are rotated upright according to their EXIF orientation. The first is a.jpg"
    )
    assert "fits both the stored and the upright image. The first is c.jpg" in notes["either_way"]
    assert images(records).turned == 3


def test_what_shows_in_the_whole_set_only(tiny: VocFolder) -> None:
    for copy in ("d", "e"):
        tiny.add(copy)
    tiny.add("f", ("Cat", (0, 1, 9, 9), False), ("catt", (1, 1, 9, 9), False))
    for copy, original in (("d", "a"), ("c", "b")):
        (tiny.root / f"JPEGImages/{copy}.jpg").write_bytes((tiny.root / f"JPEGImages/{original}.jpg").read_bytes())
    every = tasks(tiny, "a", "b", "d", "e", "f", "f") + tasks(tiny, "c", "b", role="test")
    records = read_all(every, Settings())
    assert kinds(records) == []
    found = findings(records, ["cat", "dog", "bird"], "lists", Settings())
    assert Counter(p.kind for p in found) == {
        "unknown_class": 4,  # two of them in f, which comes twice
        "duplicate_id": 1,
        "leak": 2,  # the id b, and its picture as c
        "copies": 1,
        "zero_based": 1,
        "letter_case": 1,
        "test_only": 1,
        "few_objects": 2,
        "clipped": 1,
        "negative": 1,
    }
    by_kind = {p.kind: p for p in found}
    unknown = [p for p in found if p.kind == "unknown_class"]
    assert [(p.object, p.name) for p in unknown] == [(1, "Cat"), (2, "catt")] * 2
    assert all("Did you mean 'cat'?" in p.what and p.file.endswith("f.xml") for p in unknown)
    assert "All xmax and ymax are below" not in by_kind["zero_based"].what  # a's dog does
    assert "2 image(s) have no object" in by_kind["negative"].what
    assert [
        p.kind for p in findings(records, ["cat"], "lists", Settings(leave_out_others=True)) if p.name == "catt"
    ] == ["other_classes"] * 2


def test_a_zero_based_set_is_said_to_be_one(voc: VocFolder) -> None:
    voc.add("a", ("cat", (0, 0, 63, 47), False), ("cat", (10, 10, 20, 20), False))
    (zero,) = [p for p in findings(read(voc, "a"), ["cat"], "lists", Settings()) if p.kind == "zero_based"]
    assert "1 box(es) in 1 file(s) start at 0" in zero.what
    assert "the whole data set seems to be zero-based" in zero.what
    right = read_all(tasks(voc, "a"), Settings(first_pixel=0))
    assert not {p.kind for p in findings(right, ["cat"], "lists", Settings())} & {"zero_based", "clipped"}
    assert right[0].boxes[0].tolist() == [0, 0, 64, 48]


@pytest.fixture
def proposed(tiny: VocFolder, tmp_path: Path) -> Path:
    """Random proposals of a, b and c, and of a picture that is in no list."""
    rng = np.random.default_rng(3)
    corners = rng.integers(0, (40, 30), (4, 300, 2))
    found = np.concatenate((corners, corners + rng.integers(1, 40, (4, 300, 2))), axis=2).astype(np.float32)
    path = tmp_path / "x.proposals"
    write_store(path, [ImageProposals(i, 48, 64, b) for i, b in zip("abcz", found, strict=True)], "random", {})
    return path


def samples_of(records: list[Record], classes: list[str]) -> list[Sample]:
    return [
        Sample(
            r.task.image_id,
            r.image.path,
            64,
            48,
            r.boxes,
            np.array([classes.index(n) + 1 for n in r.names]),
            r.difficult,
        )
        for r in records
    ]


def test_recall_is_that_of_evaluation(tiny: VocFolder, proposed: Path) -> None:
    records = read_all(tasks(tiny, "a", "b", "c", store=proposed), Settings(max_proposals=15))
    store, classes = ProposalStore(proposed), ["cat", "dog"]
    found = proposals(records, classes, [str(proposed)])
    wanted = proposal_recall([store.boxes(i)[:15] for i in "abc"], samples_of(records, classes), classes)
    assert found is not None
    assert (found.images, found.fewest, found.mean, found.most) == (3, 15, 15, 15)
    assert 0 < wanted.all.at_50 < 1  # neither all nor nothing
    for ours, theirs in [
        (found.all, wanted.all),
        *((found.classes[c], wanted.classes[c]) for c in classes),
        *((found.sizes[s], wanted.sizes[s]) for s in ("small", "medium", "large")),
    ]:
        assert ours == theirs


def test_a_step_draws_as_many_rois_as_the_report_says(tiny: VocFolder, proposed: Path) -> None:
    tiny.add("n")  # without objects, so without foreground
    store = ProposalStore(proposed)
    for fraction, rois, difficult in ((0.25, 64, True), (0.5, 300, True), (0.5, 300, False)):
        records = read_all(tasks(tiny, "a", "b", store=proposed), Settings(use_difficult=difficult))
        found = sampling(records, rois, fraction)
        assert found is not None
        sampler = RoISampler(
            torch.zeros(3, 4), torch.ones(3, 4), SolverSettings(rois_per_image=rois, fg_fraction=fraction)
        )
        drawn, foreground = [], []
        for r in records:
            kept = np.ones(len(r.boxes), bool) if difficult else ~r.difficult
            truth = torch.from_numpy(r.boxes[kept])
            labels = torch.ones(len(truth), dtype=torch.long)
            boxes = torch.from_numpy(store.boxes(r.task.image_id))
            chosen, targets = sampler([boxes], [truth], [labels], [0])
            drawn.append(len(chosen))
            foreground.append(int((targets.labels > 0).sum()))
        assert found.drawn == np.mean(drawn)
        quota = round(fraction * rois)
        assert found.few_foreground == np.mean([n < quota for n in foreground])
        assert found.few_background == np.mean([n < rois for n in drawn])


def test_pictures_that_cannot_fill_their_share(tiny: VocFolder, proposed: Path) -> None:
    (record,) = read_all(tasks(tiny, "a", store=proposed), Settings())
    counts = [(16, 48), (15, 49), (15, 48), (100, 47)]  # foreground and background; 16 and 48 are wanted
    found = sampling([replace(record, foreground=f, background=b) for f, b in counts], 64, 0.25)
    assert found is not None
    assert (found.few_foreground, found.few_background, found.drawn) == (0.5, 0.5, (64 + 64 + 63 + 63) / 4)
    assert (found.foreground, found.background) == (36.5, 48)


def test_proposals_and_pictures_that_do_not_belong_together(tiny: VocFolder, proposed: Path, tmp_path: Path) -> None:
    tiny.add("d", ("cat", (1, 1, 20, 20), False))
    records = read_all(tasks(tiny, "a", "d", store=proposed), Settings())
    assert kinds(records) == ["no_proposals"]
    assert [p.kind for p in proposal_findings(records, [ProposalStore(proposed)])] == ["foreign_proposals"]

    other = tmp_path / "other.proposals"
    items = [
        ImageProposals("a", 48, 64, np.array([[0, 0, np.nan, 4], [9, 9, 4, 4], [70, 50, 80, 60], [0, 40, 8, 48]])),
        ImageProposals("b", 64, 48, np.zeros((0, 4))),
        ImageProposals("c", 48, 64, np.zeros((0, 4))),
    ]
    write_store(other, items, "by hand", {})
    records = read_all(tasks(tiny, "a", "b", "c", store=other), Settings())
    assert kinds(records) == ["proposal_size"]
    found = {p.kind: p.what for p in proposal_findings(records, [ProposalStore(other)])}
    assert found == {
        "dropped_proposals": "boxes dropped: 1 not finite, 1 inverted, 1 outside.",
        "zero_proposals": "1 image(s) have no box in the proposal store.",
        "missed": "3 object(s) in 2 image(s) do not overlap with any proposal.",
    }


def test_counts_and_sizes(tiny: VocFolder) -> None:
    tiny.add("big", ("cat", (1, 1, 2, 40), False), ("bird", (1, 1, 64, 48), False), width=64)
    (tiny.root / "JPEGImages/big.jpg").write_bytes(b"cut")
    records = [known_only(r, ["cat", "dog"]) for r in read(tiny, "a", "b", "big")]
    counts = split(records, ["cat", "dog"])
    assert (counts.images, counts.unreadable, counts.objects, counts.difficult, counts.truncated) == (3, 1, 3, 1, 3)
    assert (counts.classes["dog"].objects, counts.classes["dog"].images, counts.classes["dog"].difficult) == (2, 2, 1)
    assert images(records).width == Range(64, 64, 64)
    found = boxes(records, [48, 96, 600], 1000)
    assert found.sizes == {"small": 2, "medium": 2, "large": 0}  # 32 x 24, 2 x 40; 32 x 39, 36 x 36
    assert found.below_cell == {"48": 1, "96": 1, "600": 0}  # 2 pixels wide: 2, 4, and 25 at a factor of 12.5
    assert found.height == Range(24, 37.5, 40)


@pytest.mark.parametrize("known", [True, False])
def test_the_work_of_a_report_grows_as_its_images_and_classes(known: bool) -> None:
    """Twice as many images and classes take twice as much work. Without a bound, suggestions would take four times."""

    def work(number: int, size: int) -> int:
        records = []
        for n in range(number):
            name = Compared(f"{'class' if known else 'klass'}{n % size:04}")
            o = AnnotatedObject(Path("a.xml"), n, name, (1, 1, 9, 9), "")
            image = Annotated(f"{n}", Path(f"{n}.jpg"), Path("a.xml"), 16, 16, (o,))
            task = Task("test" if n < number // 5 else "train", "all", Path(), f"{n}")
            records.append(Record(task, image, [o], [], proposals=1, best=np.array([0.6])))
        classes: list[str] = [Compared(f"class{n:04}") for n in range(size)]
        return calls(lambda: page(make_report(records, [], "", "", classes, Settings())))

    work(10, 5)  # compiles the templates
    assert work(1000, 200) < 2.2 * work(500, 100)


def test_messages_about_thousands_of_classes_are_short(tiny: VocFolder) -> None:
    names = [f"class{n}" for n in range(3000)]
    found = [p for p in findings(read(tiny, "a"), names, "", Settings()) if p.kind == "unknown_class"]
    known = ", ".join(f"class{n}" for n in range(20))
    assert found[0].what == f"unknown class 'cat'. Known classes: {known} and 2980 more."


def test_several_processes_give_what_one_gives(tiny: VocFolder, proposed: Path) -> None:
    for n in range(40):
        tiny.add(f"p{n}", ("cat", (1, 1, 10 + n, 20), False))
    (tiny.root / "JPEGImages/p7.jpg").unlink()
    every = tasks(tiny, "a", "b", *(f"p{n}" for n in range(40)), store=proposed)
    alone, together = read_all(every, Settings(), 1), read_all(every, Settings(), 2)
    assert [r.task for r in together] == every
    assert [r.problems for r in together] == [r.problems for r in alone]
    assert [r.digest for r in together] == [r.digest for r in alone]
    assert [r.best.tolist() for r in together] == [r.best.tolist() for r in alone]


def test_coco_files(tmp_path: Path) -> None:
    import json

    Image.new("RGB", (64, 48)).save(tmp_path / "x.png")
    annotations = [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 10, 20], "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": [9], "bbox": [0, 0, 10, 20]},
        {"id": 3, "image_id": 5, "category_id": 3, "bbox": [5, 5, 0, 20]},
        {"id": 4, "image_id": 5, "category_id": 3, "bbox": [2.5, 3, 10, 20], "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 5, "file_name": "x.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": annotations,
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    (image,) = splits.read(path, ["x.png"], tmp_path)
    (record,) = read_all([Task("train", "set.json", path, "x.png", None, image)], Settings())
    assert image.path == tmp_path / "x.png"
    assert record.boxes.tolist() == [[0, 0, 10, 20], [2.5, 3, 12.5, 23]]
    assert record.difficult.tolist() == [False, True]
    assert [o.number for o in record.objects] == [1, 4]
    assert [(p.kind, p.object) for p in record.problems] == [("unknown_class", 2), ("box", 3), ("crowd", 4)]
    assert sort_out(image, training=False) == (record.objects, record.problems[:2])
    assert [o.trained_on(use_difficult=True) for o in record.objects] == [True, False]  # never a crowd
    assert record.size == (64, 48)


HOSTILE = "<script>alert('x')</script>\" onload=\"x"


def hostile_report() -> Report:
    from fastrcnn.audit.report import ClassCount, ProposalStatistics, Split

    recall = Recall(4, 0.75, 0.5, 0.6)
    count = {HOSTILE: ClassCount(4, 1, 3)}
    everything = Range(1, 2, 3)
    return Report(
        name=HOSTILE,
        root=HOSTILE,
        classes=[HOSTILE],
        splits=[Split(HOSTILE, "train", 3, 0, 0, 4, 1, 0, count)],
        images=Images(everything, everything, everything, {HOSTILE: 3}, 0),
        boxes=Boxes(everything, everything, everything, {"small": 4, "medium": 0, "large": 0}, {"600": 1}, 0),
        proposals=ProposalStatistics(
            [HOSTILE], 3, 1, 2.0, 3, recall, {HOSTILE: recall}, {HOSTILE: recall}, {"small": recall}, 0
        ),
        sampling=None,
        errors=[Problem("box", HOSTILE, HOSTILE, object=3, name=HOSTILE)] * 201,
        notes=[Problem("copies", HOSTILE, HOSTILE)],
    )


def test_nothing_of_the_user_becomes_markup() -> None:
    from html.parser import HTMLParser

    tags: Counter[str] = Counter()
    attributes: set[str] = set()
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags[tag] += 1
            attributes.update(name for name, _ in attrs)
            assert not any((value or "").startswith("http") for _, value in attrs)

        def handle_data(self, data: str) -> None:
            texts.append(data)

    html = page(hostile_report(), [(HOSTILE, b"jpeg")])
    Reader().feed(html)
    assert not {"script", "link", "iframe"} & set(tags)
    assert "onload" not in attributes
    assert HOSTILE in texts
    assert "report.json also lists 1 more." in texts
    assert "@import" not in html
    assert "url(" not in html


def test_the_summary_is_short_and_ends_with_the_verdict() -> None:
    from fastrcnn.audit.report import ClassCount

    report = hostile_report()
    names = [f"class{n}" for n in range(300)]
    counts = replace(report.splits[0], classes={n: ClassCount(1, 0, 1) for n in names})
    every = [Problem(kind, "f", "w") for kind in KINDS for _ in range(30)]
    report = replace(
        report,
        classes=names,
        splits=[counts],
        errors=[p for p in every if p.error],
        notes=[p for p in every if not p.error],
    )
    lines = summary(report).splitlines()
    assert len(lines) <= 36  # two more for the sampling, and two of the verb make forty
    assert lines[-1].startswith("NOT READY: ")
    ready = replace(report, errors=[])
    assert summary(ready).splitlines()[-1].startswith("READY: no errors")


def test_the_json_contains_advice() -> None:
    plain = to_json(hostile_report())
    assert plain["ok"] is False
    assert plain["errors"][0]["advice"] == KINDS["box"][1]
    assert set(plain["notes"][0]) == {"kind", "title", "file", "line", "object", "unit", "name", "what", "advice"}


def test_an_empty_annotation_and_one_without_size(voc: VocFolder) -> None:
    voc.add("a", width=0)
    voc.add("b")
    a, b = read(voc, "a", "b")
    assert [p.kind for p in a.problems] == ["annotation"]
    assert "0 x 48" in a.problems[0].what
    assert b.boxes.shape == (0, 4)


def test_check_reads_what_training_reads_and_notes_what_it_does_not_use(voc: VocFolder) -> None:
    turned = "<attributes><attribute><name>rotation</name><value>90</value></attribute></attributes>"
    voc.add("a")
    one, two = (("cat", (11, 11, 30, 20), False), ("dog", (1, 1, 64, 47), False))
    text = voc_xml([one, one, two], filename="b.jpg").replace("</bndbox>", f"</bndbox>{turned}<id/><tool/>", 1)
    first, second, rest = text.split("<pose>", 2)
    voc.annotation("a", f"{first}<pose>{second}<deleted>yes</deleted><pose>{rest}")
    voc.picture("b")
    (said,) = read(voc, "a")
    assert said.boxes.tolist() == [[15, 5, 25, 25], [0, 0, 64, 47]]
    assert [(o.name, o.number) for o in said.objects] == [("cat", 1), ("dog", 3)]
    assert {p.kind: p.object for p in said.problems} == {"elements": 1, "rotated": 1, "flags": 2, "filename": None}
    assert not any(p.error for p in said.problems)


@pytest.mark.parametrize("last", [63, 64])
def test_boxes_that_reach_the_end_contradict_a_zero_based_set(voc: VocFolder, last: int) -> None:
    voc.add("a", ("cat", (0, 1, 63, 47), False), ("cat", (1, 1, last, 9), False))
    (note,) = [p for p in findings(read(voc, "a"), ["cat"], "lists", Settings()) if p.kind == "zero_based"]
    assert ("1 box(es) have xmax or ymax" in note.what) == (last == 64)

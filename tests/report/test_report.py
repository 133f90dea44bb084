"""The report on an evaluation: its numbers by hand, its page well formed and harmless whatever the names are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mistakes import DETECTIONS, OBJECTS, found
from PIL import Image

from fastrcnn.evaluation.evaluate import Evaluation, compare, write_results
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.voc_ap import METRICS, ClassDetections
from fastrcnn.report.report import make_report, page, write_report
from fastrcnn.settings import Metric
from fastrcnn.structures import Sample

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;'"
CLASSES = ["cat", "dog"]
VOID = {"meta", "br", "input", "img", "rect", "path", "image", "polygon", "polyline"}


def samples(folder: Path, names: tuple[str, ...] = ("a", "b")) -> list[Sample]:
    """The truth of mistakes.py: two pictures, the second without objects."""
    found = []
    for i, name in enumerate(names):
        path = folder / f"{i}.png"
        Image.new("RGB", (100, 80), (90, 120, 60)).save(path)
        boxes = np.concatenate([t.boxes[t.images == i] for t in OBJECTS.values()]).astype(np.float32)
        labels = np.concatenate([np.full((t.images == i).sum(), k) for k, t in enumerate(OBJECTS.values(), 1)])
        difficult = np.concatenate([t.difficult[t.images == i] for t in OBJECTS.values()])
        found.append(Sample(name, path, 100, 80, boxes, labels.astype(np.int64), difficult))
    return found


def evaluation(folder: Path, metric: Metric = "voc10") -> Evaluation:
    there = samples(folder)
    proposals = [np.array([[0, 0, 10, 10], [0, 20, 10, 29]], np.float32), np.zeros((0, 4), np.float32)]
    return compare(DETECTIONS, there, CLASSES, metric, proposal_recall(proposals, there, CLASSES))


class Reader(HTMLParser):
    """Tags in order, and the texts of the tables' rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_numbers_of_a_class_by_hand(tmp_path: Path) -> None:
    """Of two cats that count one is found first; the dogs are not. A cat and a dog of two each have a proposal."""
    report = make_report(evaluation(tmp_path), "x", [])
    cat, dog = report.classes
    assert (cat.ap, cat.objects, cat.detections, cat.recall, cat.ceiling) == (0.5, 2, 13, 0.5, 0.5)
    assert (dog.ap, dog.objects, dog.detections, dog.recall, dog.ceiling) == (0.0, 2, 0, 0.0, 0.5)
    assert report.thresholds.false.sum(axis=2).tolist() == [[1, 2, 3, 2, 3], [0] * 5]
    assert list(cat.missed.values()) == [1, 0, 0, 0]  # no proposal
    assert list(dog.missed.values()) == [1, 0, 1, 0]
    assert (report.result.ap.mean, report.objects) == (0.25, [2, 2])
    assert cat.sizes == {"small": 0.5, "medium": None, "large": None}
    np.testing.assert_allclose(cat.curve.best, cat.curve.precision)
    assert (cat.curve.recall[0], cat.curve.recall[-1]) == (0.5, 0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_the_page_has_the_ap_of_metrics_json(tmp_path: Path, metric: Metric) -> None:
    result = evaluation(tmp_path, metric)
    result = replace(result, seconds_per_image=1.2345)
    write_results(result, tmp_path / "out")
    path = write_report(result, tmp_path / "out", "x", [])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    html = path.read_text(encoding="utf-8")
    rows = {row[0]: row for row in reversed(Reader(html).rows) if row}
    shown = next(row for row in Reader(html).rows if row and row[0] == "cat")
    assert shown[1] == f"{metrics['ap']['cat']:.3f}"
    assert f"<b>{metrics['mAP']:.3f}</b>mAP ({metric})" in html
    assert "<b>1,234 ms</b>per image in the network" in html
    assert "smallbelow 32 × 32 pixels" in rows


def test_names_that_are_html_are_text(tmp_path: Path) -> None:
    names = [HOSTILE, "dog"]
    detections = {HOSTILE: DETECTIONS["cat"], "dog": DETECTIONS["dog"]}
    there = [replace(s, image_id=HOSTILE + s.image_id) for s in samples(tmp_path)]
    there[1] = replace(there[1], path=tmp_path / "gone'\"<b>.png")
    html = page(make_report(compare(detections, there, names, "voc07"), HOSTILE, [(HOSTILE, HOSTILE)]))
    reader = Reader(html)
    assert html.count("<script") == 2  # the data and the program
    assert html.count("</script>") == 2
    assert not any("onerror" in attributes or tag == "img" for tag, attributes in reader.tags)
    content = re.search(r"id='data'>(.*?)</script>", html, re.DOTALL)
    assert content is not None
    assert json.loads(content[1])["names"] == names
    assert any(attributes.get("data-class") == HOSTILE for _, attributes in reader.tags)
    assert "gone&#39;&#34;&lt;b&gt;.png: the file cannot be read" in html
    for outside in ("http://", "https://", "src='/", "@import", "url("):
        assert outside not in html


def test_every_control_has_a_name_and_every_picture_a_text(tmp_path: Path) -> None:
    html = page(make_report(evaluation(tmp_path), "x", []))
    tags = Reader(html).tags
    pictures = [attributes for tag, attributes in tags if tag == "svg" and "aria-hidden" not in attributes]
    assert pictures
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in pictures)
    assert "aria-label='Detection of cat, 0.50: confusion (dog), IoU 1.00, in a'" in html
    assert "aria-label='Missed dog: wrong class (cat), in a'" in html
    for control in re.findall(r"<(?:input|select)[^>]*>", html):
        before = html[: html.index(control)]
        assert before.rfind("<label") > before.rfind("</label>"), control
    sortable = re.findall(r"<th scope='col' aria-sort='none'[^>]*>(<button type='button'>)?", html)
    assert sortable
    assert all(sortable)


NOTHING = found()
CASES = {
    "no detections": ({"cat": NOTHING, "dog": NOTHING}, None, "There are no detections, so all objects are missed."),
    "one class": ({"cat": DETECTIONS["cat"]}, None, "not evaluated, because no file contains their detections: dog."),
    "no truth": (DETECTIONS, [], "no objects or only difficult ones, so AP is undefined."),
    "a class without truth": (
        DETECTIONS,
        [0],
        "Classes without AP, because they have no object or only difficult ones: dog.",
    ),
    "nothing at all": ({"cat": NOTHING, "dog": NOTHING}, [], "There are no errors."),
}


@pytest.mark.parametrize("metric", ["voc07", "coco"])
@pytest.mark.parametrize("case", CASES)
def test_what_there_is_nothing_of(tmp_path: Path, case: str, metric: Metric) -> None:
    """The kept truth of the first picture: all, nothing, or its first object, a cat."""
    detections, kept, said = CASES[case]
    first, second = samples(tmp_path)
    if kept is not None:
        first = replace(
            first, boxes=first.boxes[kept], labels=first.labels[kept], difficult=first.difficult[np.array(kept, int)]
        )
    html = page(make_report(compare(detections, [first, second], CLASSES, metric), "x", []))
    Reader(html)
    assert said in html
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^']*", "", html[: html.index("<script>")]), re.IGNORECASE)


def test_a_page_of_many_classes_and_detections_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"class {k}" for k in range(260)]
    blank = Image.new("RGB", (100, 80))
    blank.save(tmp_path / "x.png")
    there = []
    for i in range(50):
        corner = rng.integers(0, 60, (20, 2))
        boxes = np.concatenate((corner, corner + 15), axis=1).astype(np.float32)
        there.append(Sample(str(i), tmp_path / "x.png", 100, 80, boxes, rng.integers(1, 261, 20), np.zeros(20, bool)))
    detections = {}
    for name in names:
        corner = rng.integers(0, 60, (80, 2))
        boxes = np.concatenate((corner, corner + 15), axis=1).astype(float)
        detections[name] = ClassDetections(rng.integers(0, 50, 80), rng.random(80), boxes)
    html = page(make_report(compare(detections, there, names, "voc10"), "x", []))
    assert "<option value='259'>class 259</option>" in html
    assert html.count("<polyline") == 200
    assert "Only the 200 classes with the lowest AP are shown." in html
    assert "confusions of rare class pairs" in html
    assert len(html) < 2_000_000

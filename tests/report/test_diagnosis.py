"""Every false detection and every miss is of one kind: cases by hand, and a second transcription in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from mistakes import CASES, CATS, DETECTIONS, DOGS, OBJECTS, diagnosed, found, truth

from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, VocMetric, class_ap
from fastrcnn.report.diagnosis import FALSE_KINDS, LEFT_OUT, MISSED_KINDS, RIGHT, Diagnosis, gains


def words(d: Diagnosis) -> list[str]:
    names = {RIGHT: "right", LEFT_OUT: "left out"} | dict(enumerate(FALSE_KINDS))
    return [names[k] for k in d.kinds.tolist()]


def reasons(d: Diagnosis) -> list[str]:
    return [({-1: ""} | dict(enumerate(MISSED_KINDS)))[k] for k in d.missed.tolist()]


def test_every_kind_by_hand() -> None:
    cat = diagnosed(DETECTIONS, OBJECTS)["cat"]
    assert words(cat) == [case[1] for case in CASES]
    np.testing.assert_allclose(cat.overlaps, [case[2] for case in CASES])
    assert cat.others.tolist() == [-1, -1, -1, -1, 1, 1, -1, -1, -1, 1, -1, 1, -1]
    assert cat.other_objects.tolist() == [-1, -1, -1, -1, 0, 1, -1, -1, -1, 1, -1, 2, -1]
    assert cat.objects.tolist() == [0, 0, 1, 2, -1, -1, -1, 2, 2, -1, -1, -1, -1]


def test_the_order_of_the_detections_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(CASES))
    shuffled = {"cat": found(*(CASES[i][0] for i in order)), "dog": found()}
    assert words(diagnosed(shuffled, OBJECTS)["cat"]) == [CASES[i][1] for i in order]


def test_why_objects_are_missed_by_hand() -> None:
    """The first cat is found, the second difficult, the third has a box of IoU .5 at best; on the first dog lies a
    box of a cat, at the second one of IoU .5 only."""
    d = diagnosed(DETECTIONS, OBJECTS)
    assert reasons(d["cat"]) == ["", "", "misplaced"]
    assert reasons(d["dog"]) == ["wrong class", "not detected", ""]
    proposals = {"cat": np.array([0.1, 0.0, 0.49]), "dog": np.array([0.5, 0.4, 0.0])}
    d = diagnosed(DETECTIONS, OBJECTS, proposals)
    assert reasons(d["cat"]) == ["", "", "no proposal"]  # a found object needs no reason
    assert reasons(d["dog"]) == ["wrong class", "no proposal", ""]


def test_an_object_of_another_class_explains_more_than_a_poor_overlap_with_the_own() -> None:
    """IoU 1/2 with the cat, 5/6 with the dog on it."""
    objects = {"cat": truth((0, (0, 0, 10, 10), False)), "dog": truth((0, (0, 0, 10, 6), False))}
    d = diagnosed({"cat": found((0, 0.5, (0, 0, 10, 5))), "dog": found()}, objects)
    assert words(d["cat"]) == ["confusion"]
    assert d["cat"].overlaps[0] == pytest.approx(5 / 6)
    assert reasons(d["cat"]) == ["not detected"]


def test_classes_that_were_not_evaluated_explain_confusions() -> None:
    d = diagnosed({"cat": DETECTIONS["cat"]}, OBJECTS)
    assert list(d) == ["cat"]
    assert words(d["cat"]) == [case[1] for case in CASES]


def test_nothing_detected_and_nothing_there() -> None:
    d = diagnosed({"cat": found()}, {"cat": truth()})
    assert (words(d["cat"]), reasons(d["cat"])) == ([], [])
    d = diagnosed({"cat": found((3, 0.5, (0, 0, 9, 9)))}, {"cat": truth()})
    assert words(d["cat"]) == ["background"]
    assert reasons(diagnosed({"cat": found()}, {"cat": CATS})["cat"]) == ["not detected", "", "not detected"]


def gained(detections: ClassDetections, objects: ClassTruth, d: Diagnosis, metric: VocMetric) -> np.ndarray:
    return gains(class_ap(detections, objects, metric), d, metric)


def test_gains_by_hand() -> None:
    """Of two cats that count one is found first: AP 1/2. The box of .6 put in place is the third that counts: precision
    2/3 at recall 1. Without the cat that is missed the AP is 1. False boxes after the last right one cost nothing."""
    cat = diagnosed(DETECTIONS, OBJECTS)["cat"]
    np.testing.assert_allclose(gained(DETECTIONS["cat"], CATS, cat, "voc10"), [0, 0, 1 / 3, 0, 0, 1 / 2])


def test_gains_of_what_stands_before_the_right_ones() -> None:
    """A false box of each kind before the only right one: AP 1/6, and 1/5 where one kind is gone. That of the poorly
    placed one, whose object is found, is no other."""
    objects = {"cat": truth((0, (0, 0, 10, 10), False), (0, (20, 0, 30, 10), True)), "dog": DOGS}
    rows = [(0, 0.9, (0, 0, 10, 4)), (0, 0.8, (0, 20, 10, 30)), (0, 0.7, (60, 0, 70, 3)), (0, 0.6, (0, 60, 10, 70))]
    detections = {"cat": found(*rows, (0, 0.65, (1, 60, 10, 70)), (0, 0.5, (0, 0, 10, 10))), "dog": found()}
    cat = diagnosed(detections, objects)["cat"]
    assert words(cat) == ["localisation", "confusion", "both", "background", "background", "right"]
    expected = [0, 1 / 5 - 1 / 6, 1 / 5 - 1 / 6, 1 / 5 - 1 / 6, 1 / 4 - 1 / 6, 0]
    np.testing.assert_allclose(gained(detections["cat"], objects["cat"], cat, "voc10"), expected)


def test_gains_where_nothing_is_found_or_there() -> None:
    nothing = diagnosed({"cat": found()}, {"cat": CATS})["cat"]
    np.testing.assert_allclose(gained(found(), CATS, nothing, "voc07"), [0, 0, 0, 0, 0, 1])
    nothing = diagnosed({"cat": found()}, {"cat": truth()})["cat"]
    np.testing.assert_allclose(gained(found(), truth(), nothing, "voc07"), [0] * 6)


def in_loops(
    detections: dict[str, ClassDetections], objects: dict[str, ClassTruth]
) -> dict[str, tuple[list[str], int]]:
    """The kinds of the false detections, sorted by name, and the number of missed objects, one at a time."""

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.0
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return width * height / (sum(areas) - width * height)

    result = {}
    for name, own in detections.items():
        taken: set[int] = set()
        kinds = []
        for i in sorted(range(len(own)), key=lambda i: -own.scores[i]):
            overlaps = {n: [] for n in objects}
            for n, t in objects.items():
                pairs = zip(t.images, t.boxes, strict=True)
                overlaps[n] = [iou(own.boxes[i], b) if image == own.images[i] else 0 for image, b in pairs]
            mine = max(overlaps[name], default=0)
            best = int(np.argmax(overlaps[name])) if overlaps[name] else -1
            other = max((v for n in objects if n != name for v in overlaps[n]), default=0)
            if mine > 0.5 and objects[name].difficult[best]:
                continue
            if mine > 0.5 and best not in taken:
                taken.add(best)
            elif mine > 0.5:
                kinds.append("duplicate")
            elif other > 0.5:
                kinds.append("confusion")
            elif mine >= 0.1:
                kinds.append("localisation")
            elif other >= 0.1:
                kinds.append("both")
            else:
                kinds.append("background")
        result[name] = sorted(kinds), int((~objects[name].difficult).sum()) - len(taken)
    return result


def test_kinds_part_all_false_detections_as_plain_loops_do() -> None:
    rng = np.random.default_rng(5)

    def boxes(n: int) -> np.ndarray:
        corner = rng.integers(0, 30, (n, 2))
        return np.concatenate((corner, corner + rng.integers(5, 25, (n, 2))), axis=1).astype(float)

    names = ["cat", "dog", "cow"]
    objects = {n: ClassTruth(rng.integers(0, 5, 30), boxes(30), rng.random(30) < 0.2) for n in names}
    detections = {n: ClassDetections(rng.integers(0, 6, 120), rng.permutation(120) / 120, boxes(120)) for n in names}
    expected = in_loops(detections, objects)
    seen = set()
    for name, d in diagnosed(detections, objects).items():
        kinds = sorted(w for w in words(d) if w not in ("right", "left out"))
        assert (kinds, int((d.missed >= 0).sum())) == expected[name]
        seen |= set(kinds)
    assert seen == set(FALSE_KINDS)

"""COCO's average precision, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, MeanAP


def coco_ap(detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth]) -> MeanAP:
    """COCO AP over the classes of `truth`: the mean over IoU .5, .55, ..., .95, in all and for each class.

    figures: COCO's other eleven, means over the classes, None where no object is of that kind. AP50 and AP75, at one
    IoU; AP_small, AP_medium and AP_large, of objects below 32 x 32 pixels, up to 96 x 96, and larger; AR_1, AR_10 and
    AR_100, the recall of the best 1, 10 and 100 detections of each image and class, averaged over the IoUs; AR_small,
    AR_medium and AR_large, the last by size.

    All equal pycocotools' own on the same files to the last digit: boxes, sizes and areas are the files' numbers in
    float64, and of equal scores in several images the first image's comes first, as samples of a COCO file are in the
    order of their ids.

    Of each class the 100 best detections of an image count, as pycocotools applies its limit `maxDets`. COCO's rules
    allow an image 100 over all classes, which is up to whoever makes them: `detection.max_per_image` is 100 in
    detection=modern; detection=paper keeps 40 per class and image on average, so that its figures may be a little high.

    Difficult objects take the part of COCO's crowds: missing one costs nothing, and a detection whose area lies in one,
    to a share above the IoU asked for, does not count. An object's size is its `area` in a COCO file, which is its
    mask's; elsewhere its box's.
    """
    names = list(truth)
    objects: list[dict[str, Any]] = []  # what pycocotools' files hold
    results: list[dict[str, Any]] = []
    for category, name in enumerate(names, 1):
        t, d = truth[name], detections.get(name)
        objects += _entries(category, t, area=t.areas.tolist(), iscrowd=t.difficult.astype(int).tolist())
        if d is not None:
            results += _entries(category, d, area=d.sizes.prod(1).tolist(), score=d.scores.tolist())
    images = sorted({entry["image_id"] for entry in (*objects, *results)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        evaluation = COCOeval(_coco(objects, images, names), _coco(results, images, names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoUs, recalls, classes, sizes, limits of 1, 10, 100 detections)
    recall = evaluation.eval["recall"]  # (IoUs, classes, sizes, limits)
    sizes = ("small", "medium", "large")
    return MeanAP(
        mean=_mean(precision[:, :, :, 0, 2]),
        ap={name: _mean(precision[:, :, k, 0, 2]) for k, name in enumerate(names)},
        objects={name: int(np.count_nonzero(~of_class.difficult)) for name, of_class in truth.items()},
        figures={
            "AP50": _mean(precision[0, :, :, 0, 2]),
            "AP75": _mean(precision[5, :, :, 0, 2]),
            **{f"AP_{size}": _mean(precision[:, :, :, s, 2]) for s, size in enumerate(sizes, 1)},
            **{f"AR_{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate((1, 10, 100))},
            **{f"AR_{size}": _mean(recall[:, :, s, 2]) for s, size in enumerate(sizes, 1)},
        },
    )


def _entries(category: int, of_class: ClassDetections | ClassTruth, **more: list[Any]) -> list[dict[str, Any]]:
    """Annotations of one class as COCO's files have them; more: by key, one value for each."""
    boxes = np.concatenate((of_class.boxes[:, :2], of_class.sizes), axis=1).tolist()  # x, y, width, height
    columns = {"image_id": of_class.images.tolist(), "bbox": boxes, **more}
    rows = zip(*columns.values(), strict=True)
    return [{"category_id": category, **dict(zip(columns, row, strict=True))} for row in rows]


def _coco(annotations: list[dict[str, Any]], images: list[int], names: list[str]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": category, "name": name} for category, name in enumerate(names, 1)],
        # Ids count from 1, since pycocotools takes an id of 0 for "matched to nothing".
        "annotations": [{"id": number} | entry for number, entry in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    """Mean of the entries that mean anything; pycocotools marks the others with -1."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None

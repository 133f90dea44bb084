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
    """Compute the COCO AP of each class of `truth`, averaged over IoU 0.5, 0.55, ..., 0.95, and the mean over classes.

    detections, truth: by class name. Detections of classes that are not in `truth` are ignored.
    `figures` of the result contains COCO's eleven other metrics. Each is a mean over the classes, or None if there are
    no objects to compute it from:

    - AP50, AP75: AP at IoU 0.5 and at IoU 0.75
    - AP_small, AP_medium, AP_large: AP of objects with an area of up to 32 x 32 pixels, 32 x 32 to 96 x 96 pixels,
      and 96 x 96 pixels or more
    - AR_1, AR_10, AR_100: recall of the best 1, 10 and 100 detections per image and class, averaged over the IoUs
    - AR_small, AR_medium, AR_large: AR_100 of objects of these sizes

    All values are bit-identical to those of pycocotools on the same files. Boxes, sizes and areas are used as stored in
    the files, in float64. Detections with equal scores are ordered by image, in the order of the data set, which for a
    COCO file is the order of the image ids.

    For each image, the 100 best detections of each class count, because pycocotools applies its limit `maxDets` per
    class. COCO's rules allow 100 detections per image over all classes, which detection=modern ensures with
    `detection.max_per_image`. With detection=paper, 40 detections per class and image are kept on average, so the
    results can be slightly too high.

    Difficult objects are treated as COCO crowds: a missed one does not count as an error. A detection that matches no
    other object is ignored if the fraction of its area inside a difficult object reaches the IoU threshold. The size of
    an object is the `area` in the COCO file, usually the area of its mask. In other formats, it is the area of the box.
    """
    names = list(truth)
    objects: list[dict[str, Any]] = []  # the annotations of a COCO file
    results: list[dict[str, Any]] = []
    for category, name in enumerate(names, 1):
        t, d = truth[name], detections.get(name)
        objects += _entries(category, t, area=t.areas.tolist(), iscrowd=t.difficult.astype(int).tolist())
        if d is not None:
            results += _entries(category, d, area=d.sizes.prod(1).tolist(), score=d.scores.tolist())
    images = sorted({entry["image_id"] for entry in (*objects, *results)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
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
    """Return one class in COCO format: a dictionary per box. category: its id. more: the values of additional keys."""
    boxes = np.concatenate((of_class.boxes[:, :2], of_class.sizes), axis=1).tolist()  # x, y, width, height
    columns = {"image_id": of_class.images.tolist(), "bbox": boxes, **more}
    rows = zip(*columns.values(), strict=True)
    return [{"category_id": category, **dict(zip(columns, row, strict=True))} for row in rows]


def _coco(annotations: list[dict[str, Any]], images: list[int], names: list[str]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": category, "name": name} for category, name in enumerate(names, 1)],
        # Ids start at 1, because pycocotools uses id 0 for "not matched".
        "annotations": [{"id": number} | entry for number, entry in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    """Return the mean of the valid entries. pycocotools marks invalid entries with -1."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None

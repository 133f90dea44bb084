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

    The further figures are AP50 and AP75, at one IoU alone, and AP_small, AP_medium and AP_large, of objects below
    32 x 32 pixels, up to 96 x 96, and larger: each a mean over the classes, None where no object is of that kind.

    Of each class the 100 best detections of an image count, as pycocotools applies its limit `maxDets` to each image
    and category. COCO's rules allow an image 100 detections over all classes; to keep to that is up to whoever makes
    them (`detection.max_per_image`, 100 in detection=modern). detection=paper keeps 40 per class and image on
    average, so that its figures may be a little higher than those rules would give.

    Difficult objects take the part of COCO's crowds: nothing is lost by missing one, and a detection whose
    area lies in one, to a share above the IoU asked for, does not count. Sizes are areas of boxes; where a
    data set has masks, COCO's own figures for small, medium and large take the masks' areas. Raises
    ValueError for detections of a class that `truth` lacks.
    """
    unknown = sorted(set(detections) - set(truth))
    if unknown:
        raise ValueError(f"detections of classes that the truth lacks: {', '.join(unknown)}")
    names = list(truth)
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for category, name in enumerate(names, 1):
        crowds = truth[name].difficult.tolist()
        objects += [e | {"iscrowd": int(c)} for e, c in zip(_entries(truth[name], category), crowds, strict=True)]
        if name in detections:
            scores = detections[name].scores.tolist()
            results += [e | {"score": s} for e, s in zip(_entries(detections[name], category), scores, strict=True)]
    images = sorted({entry["image_id"] for entry in (*objects, *results)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        evaluation = COCOeval(_coco(objects, images, names), _coco(results, images, names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, :, 2]  # (IoUs, recalls, classes, sizes), 100 detections
    return MeanAP(
        mean=_mean(precision[:, :, :, 0]),
        ap={name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
        objects={name: int(np.count_nonzero(~of_class.difficult)) for name, of_class in truth.items()},
        figures={
            "AP50": _mean(precision[0, :, :, 0]),
            "AP75": _mean(precision[5, :, :, 0]),
            "AP_small": _mean(precision[:, :, :, 1]),
            "AP_medium": _mean(precision[:, :, :, 2]),
            "AP_large": _mean(precision[:, :, :, 3]),
        },
    )


def _entries(boxes: ClassDetections | ClassTruth, category: int) -> list[dict[str, Any]]:
    """What COCO keeps of a box, for all boxes of one class."""
    size = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    columns = (boxes.images, np.concatenate((boxes.boxes[:, :2], size), axis=1), size.prod(1))
    return [
        {"image_id": image, "category_id": category, "bbox": bbox, "area": area}
        for image, bbox, area in zip(*(column.tolist() for column in columns), strict=True)
    ]


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

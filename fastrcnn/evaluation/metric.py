"""Which average precision is asked for: PASCAL VOC's two, or COCO's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from fastrcnn.evaluation.coco_ap import coco_ap
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, MeanAP, mean_ap
from fastrcnn.settings import Metric

METRICS: tuple[str, ...] = get_args(Metric)


def average_precision(
    detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth], metric: Metric
) -> MeanAP:
    """AP of each class of `truth`, the mean, and the metric's other figures; see mean_ap and coco_ap.

    What holds for all metrics, also where there is nothing to count:

    - A class without an object that counts, because no image has one or all are difficult, has no AP: None. It is
      left out of the mean, whatever was detected of it.
    - A class that has objects and of which nothing was detected has AP 0, and counts in the mean.
    - Without any class that has an AP the mean is None; without any detection it is 0.
    - A detection in an image that has no object of its class is false, also where the image has no object at all.
    - A missed difficult object costs nothing, and a detection of one is left out.

    Raises ValueError for detections of a class that `truth` lacks.
    """
    return coco_ap(detections, truth) if metric == "coco" else mean_ap(detections, truth, metric)

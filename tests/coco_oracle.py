"""COCO's figures as pycocotools gives them, for whoever compares with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def figures(truth: Path, results: Path) -> np.ndarray:
    """The twelve figures of pycocotools' own summary of two files, in its order; -1 where there is none."""
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats

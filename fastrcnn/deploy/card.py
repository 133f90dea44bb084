"""The model card of a deployed detector: what whoever runs it needs to know, as Markdown."""

from __future__ import annotations

import json

from fastrcnn import __version__
from fastrcnn.deploy.program import LEAST_SIDE
from fastrcnn.inference.description import Description

POOLING = {
    "fast_rcnn": ". x2 and y2 are lowered by 1 before the scaling, and corners are rounded to whole cells, halves away "
    "from zero (ONNX's MaxRoiPool)",
    "roi_align": " by RoI Align, 2 x 2 samples a cell",
}


def model_card(description: Description, file: str, box_regression: bool) -> str:
    """The card of the network in the file called `file`, an .onnx or a .pt2."""
    onnx = file.endswith(".onnx")
    model, data, detection = (description.config[group] for group in ("model", "data", "detection"))
    scores = "probabilities; a row sums to 1"
    if model["classifier"] == "svm":
        scores = "margins of SVMs; those of the background mean nothing"
    columns = len(description.classes) + 1
    boxes = "as the network moves them" if box_regression else "the proposals; this network does not move them"
    sides, long_side, threshold = data["test_short_sides"], data["long_side"], detection["score_threshold"]
    at = f"`scale = min({sides[0]} / short side, {long_side} / long side)`."
    if len(sides) > 1:
        at += (
            f" It was evaluated at the short sides {', '.join(map(str, sides))}: each proposal at the one where its "
            "area comes nearest to 224 x 224 pixels, which is a run of the network for each side."
        )
    mean, std = (", ".join(f"{v:g}" for v in description.pixels[key]) for key in ("mean", "std"))
    entering, kept = detection["max_per_class"], detection["max_per_image"]
    best = "" if entering is None else f" Keep the best {entering}."
    pooling = POOLING.get(model["roi_op"], f" by the operator `{model['roi_op']}`")
    smallest = "" if onnx else f" No side of `image` may be shorter than {LEAST_SIDE} pixels."
    measured = "".join(
        f" {m['metric']} mAP on {split} ({m['images']} images): {m['mAP']:.3f}."
        for split, m in description.metrics.items()
        if m.get("mAP") is not None
    )
    classes = "\n".join(f"{label}. {name}" for label, name in enumerate(description.classes, 1))
    return f"""# {file}

A Fast R-CNN detector ({model["network"]}, width {model["width"]:g}, RoI operator `{model["roi_op"]}`), written by
`fastrcnn export` {__version__}. It takes a picture with proposals, boxes that may hold an object, and gives each of
them a score and a box for every class. Proposals come from outside, here from selective search.

## Inputs

| name | shape | type | |
|---|---|---|---|
| `image` | (height, width, 3) | uint8 | RGB, 0 to 255, scaled as below; the network subtracts the mean itself |
| `proposals` | (P, 4) | float32 | x1 y1 x2 y2 in pixels of the picture before scaling; P is 1 or more |
| `scale` | () | float64 | pixels of `image` per pixel of the picture |
| `size` | (2,) | int64 | height and width of the picture before scaling |

Boxes are half-open: x2 and y2 lie one past the last pixel, so that a width is x2 - x1. The first pixel is 0.

## Outputs

| name | shape | type | |
|---|---|---|---|
| `scores` | (P, {columns}) | float32 | {scores}; column 0 is background |
| `boxes` | (P, {columns}, 4) | float32 | {boxes}; in pixels before scaling, cut off at the border |

## Before

1. Decode the picture as 8-bit RGB, and rotate it upright as its EXIF data ask, as `cv2.imread` does. Boxes are in
   pixels of the upright picture.
2. {at}
3. Scale both sides by it, bilinear, as `cv2.resize` does: the sides are rounded to whole pixels and the pixels to whole
   numbers. The input `scale` is the factor itself, before that rounding.{smallest}
4. Give it at most {data["max_proposals"]} proposals, the best where they have scores.
   `fastrcnn.proposals.selective_search.propose` makes them as for its training, unless that had others.

Inside, {mean} is subtracted from red, green and blue, and the rest divided by {std}. Proposals are scaled in float64,
rounded once to float32, and pooled to {model["roi_size"]} x {model["roi_size"]} cells{pooling}.

## After

For each class but background:

1. {"Keep all scores" if threshold is None else f"Drop what scores less than {threshold:g}"}; drop boxes without
   an area.{best}
2. From the best score down, keep a box, and drop those of its class whose overlap with it (intersection over union) is
   {detection["nms_iou"]:g} or more.

Then keep {"all" if kept is None else f"the best {kept}"} of all classes together.

## Classes

{classes}

## Example

{onnx_example(description) if onnx else program_example(description)}

## Where it comes from

Trained for {description.step or "an unknown number of"} steps.{measured}

Licence: the code that wrote this file is under Apache-2.0. What the weights may be used for depends on the pictures,
and the weights, that they were trained from.

What it was trained and is run with:

```json
{json.dumps(description.config, indent=1, ensure_ascii=False)}
```
"""


def onnx_example(description: Description) -> str:
    """A program that needs numpy, OpenCV and ONNX Runtime alone."""
    data, detection = description.config["data"], description.config["detection"]
    threshold = detection["score_threshold"]
    least = "-np.inf" if threshold is None else f"{threshold:g}"
    most = detection["max_per_class"]
    entering = "" if most is None else f"[:{most}]"
    return f"""`pip install numpy onnxruntime opencv-python-headless`, and then `python example.py MODEL.onnx PICTURE
PROPOSALS.npy`:

```python
import json, sys
import cv2, numpy as np, onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
picture = cv2.imread(sys.argv[2], cv2.IMREAD_COLOR)
picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
proposals = np.load(sys.argv[3]).astype(np.float32)[:{data["max_proposals"]}]  # (P, 4)
size = np.array(picture.shape[:2])
scale = np.array(min({data["test_short_sides"][0]} / size.min(), {data["long_side"]} / size.max()))
image = cv2.resize(picture, None, fx=float(scale), fy=float(scale))
inputs = {{"image": image, "proposals": proposals, "scale": scale, "size": size}}
scores, boxes = session.run(["scores", "boxes"], inputs)
found = []
for label, name in enumerate(classes, 1):
    score, box = scores[:, label], boxes[:, label]
    usable = (score >= {least}) & (box[:, 2:] > box[:, :2]).all(axis=1)
    order = [i for i in np.argsort(-score, kind="stable") if usable[i]]{entering}
    while order:
        best, rest = box[order[0]], box[order]
        found.append((float(score[order[0]]), name, best.tolist()))
        sides = (np.minimum(best[2:], rest[:, 2:]) - np.maximum(best[:2], rest[:, :2])).clip(0)
        shared, area = sides.prod(1), (rest[:, 2:] - rest[:, :2]).prod(1)
        order = [i for i, n in zip(order, shared / (area + area[0] - shared)) if n < {detection["nms_iou"]:g}]
for score, name, box in sorted(found, reverse=True)[:{detection["max_per_image"]}]:
    print(f"{{name}} {{score:.4f}}", *(f"{{v:.2f}}" for v in box), sep="\\t")
```

`fastrcnn detect checkpoint=MODEL.onnx source=PICTURES` and `fastrcnn.load("MODEL.onnx").detect(picture)` do the same,
proposals included."""


def program_example(description: Description) -> str:
    """How the network is run; the rest is as for ONNX."""
    data = description.config["data"]
    return f"""torch and the package fastrcnn are needed, whose import defines RoI pooling. Load only files that you
trust.

```python
import sys
import cv2, numpy as np, torch
import fastrcnn.ops

extra = {{"classes": ""}}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
picture = cv2.imread(sys.argv[2], cv2.IMREAD_COLOR)
picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
height, width = picture.shape[:2]
scale = min({data["test_short_sides"][0]} / min(height, width), {data["long_side"]} / max(height, width))
with torch.no_grad():
    scores, boxes = network(
        image=torch.from_numpy(cv2.resize(picture, None, fx=scale, fy=scale)),
        proposals=torch.from_numpy(np.load(sys.argv[3]).astype(np.float32)[:{data["max_proposals"]}]),
        scale=torch.tensor(scale, dtype=torch.float64),
        size=torch.tensor([height, width]),
    )
print(scores.shape, boxes.shape, extra["classes"])
```"""

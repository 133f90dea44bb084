"""Convert detections to label files, which can be corrected with annotation tools and then used for training.

Input boxes are half-open and zero-based, in pixels of the upright image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from fastrcnn.names import file_of
from fastrcnn.structures import Detection

FORMATS = ("voc", "yolo", "coco", "labelstudio")


@dataclass(frozen=True)
class Labelled:
    """An image and its detected objects, for label files."""

    id: str  # unique; used in the name of the label file
    path: PurePath  # image file
    width: int
    height: int
    objects: Sequence[Detection]

    @property
    def file(self) -> str:
        """Return the image name for label files: `id` with the suffix of the image file, and `_` instead of `/`."""
        return file_of(self.id, self.path).replace("/", "_")

    @property
    def stem(self) -> str:
        return self.file.removesuffix(self.path.suffix)


def label_files(format: str, images: Sequence[Labelled], classes: Sequence[str]) -> dict[str, str]:
    """Return the contents of the label files by their paths, which are relative to the output folder.

    format: one of FORMATS. classes: class names. Label k is classes[k - 1].
    """
    writers = {"voc": _voc, "yolo": _yolo, "coco": _coco, "labelstudio": _label_studio}
    return {f"labels_{format}/{name}": text for name, text in writers[format](images, classes).items()}


def _voc(images: Sequence[Labelled], classes: Sequence[str]) -> dict[str, str]:
    """Return one XML file per image, with boxes in integer pixels. The format cannot store scores."""
    files = {}
    for image in images:
        root = Element("annotation")
        SubElement(root, "filename").text = image.file
        size = SubElement(root, "size")
        for name, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            SubElement(size, name).text = str(value)
        for found in image.objects:
            element = SubElement(root, "object")
            SubElement(element, "name").text = found.name
            SubElement(element, "difficult").text = "0"
            box = SubElement(element, "bndbox")
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), whole_pixels(found.box, image), strict=True):
                SubElement(box, name).text = str(value)
        indent(root)
        files[f"Annotations/{image.stem}.xml"] = tostring(root, encoding="unicode") + "\n"
    return files


def whole_pixels(box: Sequence[float], image: Labelled) -> tuple[int, int, int, int]:
    """Round a half-open box to VOC's one-based, inclusive xmin, ymin, xmax, ymax, with at least one pixel per side."""
    x1, y1, x2, y2 = (round(v) for v in box)
    x1, y1 = min(max(x1, 0), image.width - 1), min(max(y1, 0), image.height - 1)
    return x1 + 1, y1 + 1, min(max(x2, x1 + 1), image.width), min(max(y2, y1 + 1), image.height)


def _yolo(images: Sequence[Labelled], classes: Sequence[str]) -> dict[str, str]:
    """Return one text file per image, and classes.txt in the two folders where Label Studio and LabelImg expect it.

    The text files contain no scores, because annotation tools reject a sixth number per line.
    """
    names = "".join(f"{name}\n" for name in classes)
    files = {"classes.txt": names, "labels/classes.txt": names}
    for image in images:
        lines = []
        for found in image.objects:
            x1, y1, x2, y2 = found.box
            centre = (x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height
            numbers = (*centre, (x2 - x1) / image.width, (y2 - y1) / image.height)
            lines.append(f"{found.label - 1} {' '.join(f'{v:.6f}' for v in numbers)}\n")
        files[f"labels/{image.stem}.txt"] = "".join(lines)
    return files


def _coco(images: Sequence[Labelled], classes: Sequence[str]) -> dict[str, str]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        entries.append({"id": number, "file_name": image.file, "width": image.width, "height": image.height})
        for found in image.objects:
            x1, y1, x2, y2 = found.box
            box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
            entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": found.label}
            entry |= {"bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(found.score, 4)}
            annotations.append(entry)
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    return {"annotations.json": json.dumps(content, indent=1) + "\n"}


def _label_studio(images: Sequence[Labelled], classes: Sequence[str]) -> dict[str, str]:
    """Return a file of tasks with predictions for Label Studio, and a file with the labelling interface for them."""
    tasks = []
    for image in images:
        results = []
        for number, found in enumerate(image.objects, 1):
            x1, y1, x2, y2 = found.box
            value = {"x": 100 * x1 / image.width, "y": 100 * y1 / image.height, "rotation": 0}
            value |= {"width": 100 * (x2 - x1) / image.width, "height": 100 * (y2 - y1) / image.height}
            result: dict[str, Any] = {
                "id": f"r{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
            }
            result |= {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
            results.append(result | {"score": found.score, "value": value | {"rectanglelabels": [found.name]}})
        score = min((found.score for found in image.objects), default=0.0)
        prediction = {"model_version": "fastrcnn", "score": score, "result": results}
        address = f"/data/local-files/?d={quote(image.file)}"
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    view, labels = Element("View"), Element("RectangleLabels", name="label", toName="image")
    view.extend([Element("Image", name="image", value="$image"), labels])
    labels.extend(Element("Label", value=name) for name in classes)
    indent(view)
    return {
        "tasks.json": json.dumps(tasks, indent=1) + "\n",
        "interface.txt": tostring(view, encoding="unicode") + "\n",
    }

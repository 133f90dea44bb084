"""One small data set, in the files that annotation tools and services write for it.

Six images of 100 x 80 pixels: a, b, c and d to train on, e to validate, f to test. d has no object; the others have a
cat at (10, 20, 50, 60), half-open and zero-based; b has a dog at (40, 8, 90, 72) besides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 100, 80
CAT: Box = (10, 20, 50, 60)
DOG: Box = (40, 8, 90, 72)
SPLITS = {"train": "abcd", "valid": "e", "test": "f"}
TRUTH: dict[str, list[tuple[str, Box]]] = {name: [("cat", CAT)] for name in "abcdef"}
TRUTH |= {"b": [("cat", CAT), ("dog", DOG)], "d": []}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


def picture(path: Path) -> Path:
    """An image of the data set, whose pixels depend on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(ord(path.name[0])).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo_line(name: str, box: Box, names: str = "cat dog") -> str:
    x1, y1, x2, y2 = box
    values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
    return " ".join([str(names.split().index(name)), *(f"{v:.6f}" for v in values)])


def yolo_text(image: str) -> str:
    return "\n".join(yolo_line(*o) for o in TRUTH[image])


def roboflow_yolo(root: Path) -> None:
    """Roboflow's "YOLOv8": folders with images and labels; paths in data.yaml that lead one folder too far up."""
    for split, images in SPLITS.items():
        for name in images:
            stem = f"{name}_jpg.rf.0f3c{name}"
            picture(root / split / "images" / f"{stem}.jpg")
            write(root / split / "labels" / f"{stem}.txt", yolo_text(name))
    lines = ["train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 2"]
    lines += ["names: ['cat', 'dog']", "", "roboflow:", "  workspace: pets", "  project: pets-1", "  version: 3"]
    lines += ["  license: CC BY 4.0", "  url: https://universe.roboflow.com/pets/pets-1/dataset/3"]
    write(root / "data.yaml", "\n".join(lines))
    write(root / "README.dataset.txt", "# pets > 2024-01-01\n")
    write(root / "README.roboflow.txt", "\npets - v3\n==============================\n")


def ultralytics(root: Path) -> None:
    """Ultralytics' own: images/SPLIT and labels/SPLIT, names by number, no label file for an image without objects."""
    for split, images in SPLITS.items():
        for name in images:
            picture(root / "images" / split / f"{name}.jpg")
            if TRUTH[name]:
                write(root / "labels" / split / f"{name}.txt", yolo_text(name) + "\n")
    write(root / "labels" / "train.cache", "not a label")
    lines = ["# pets", f"path: ../datasets/{root.name}  # dataset root dir", "train: images/train", "val: images/valid"]
    lines += ["test: images/test  # test images (optional)", "", "names:", "  0: cat", "  1: dog", ""]
    write(root / f"{root.name}.yaml", "\n".join(lines))


def cvat_yolo(root: Path) -> None:
    """CVAT's "YOLO 1.1": Darknet's obj.data, whose paths begin with a folder that is not in the archive."""
    for split, images in SPLITS.items():
        for name in images:
            picture(root / f"obj_{split}_data" / f"{name}.jpg")
            write(root / f"obj_{split}_data" / f"{name}.txt", yolo_text(name) + "\n")
        write(root / f"{split}.txt", "".join(f"data/obj_{split}_data/{name}.jpg\n" for name in images))
    write(root / "obj.names", "cat\ndog\n")
    lines = ["classes = 2", *(f"{split} = data/{split}.txt" for split in SPLITS), "names = data/obj.names"]
    write(root / "obj.data", "\n".join([*lines, "backup = backup/", ""]))


def roboflow_darknet(root: Path) -> None:
    """Roboflow's "YOLO Darknet": images and labels side by side, the names in each split's folder."""
    for split, images in SPLITS.items():
        for name in images:
            picture(root / split / f"{name}.jpg")
            write(root / split / f"{name}.txt", yolo_text(name))
        write(root / split / "_darknet.labels", "cat\ndog")


def labelimg_yolo(root: Path) -> None:
    """LabelImg with YOLO: all in one folder, without splits."""
    for name in TRUTH:
        picture(root / f"{name}.jpg")
        write(root / f"{name}.txt", yolo_text(name) + "\n")
    write(root / "classes.txt", "cat\ndog\n")


def label_studio_yolo(root: Path) -> None:
    """Label Studio's "YOLO with images"."""
    for name in TRUTH:
        picture(root / "images" / f"8f2d1c3a-{name}.jpg")
        write(root / "labels" / f"8f2d1c3a-{name}.txt", yolo_text(name) + "\n")
    write(root / "classes.txt", "cat\ndog\n")
    notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"year": 2024}}
    write(root / "notes.json", json.dumps(notes))


def tensorflow_csv(root: Path) -> None:
    """Roboflow's "TensorFlow Object Detection". It leaves out images without objects; a row without a box is ours."""
    for split, images in SPLITS.items():
        lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for name in images:
            picture(root / split / f"{name}.jpg")
            rows = [",".join([label, *(f"{v:g}" for v in box)]) for label, box in TRUTH[name]] or [",,,,"]
            lines += [f"{name}.jpg,{WIDTH},{HEIGHT},{row}" for row in rows]
        write(root / split / "_annotations.csv", "\n".join(lines) + "\n")


def retinanet_csv(root: Path) -> None:
    """Roboflow's "Keras RetinaNet": rows without a header, and the numbers of the classes beside them."""
    for split, images in SPLITS.items():
        lines = []
        for name in images:
            picture(root / split / f"{name}.jpg")
            lines += [",".join([f"{name}.jpg", *(f"{v:g}" for v in box), label]) for label, box in TRUTH[name]]
            lines += [] if TRUTH[name] else [f"{name}.jpg,,,,,"]
        write(root / split / "_annotations.csv", "\n".join(lines) + "\n")
        write(root / split / "_classes.csv", "cat,0\ndog,1\n")


def one_csv(root: Path) -> None:
    """A table of all images with a column for the split, and paths of another machine."""
    lines = ["image_path;label;x_min;y_min;x_max;y_max;split"]
    for name, objects in TRUTH.items():
        picture(root / "images" / f"{name}.jpg")
        rows = [";".join([label, *(f"{v:.1f}" for v in box)]) for label, box in objects] or [";;;;"]
        lines += [f"/content/drive/images/{name}.jpg;{row};{SPLIT_OF[name]}" for row in rows]
    write(root / "boxes.csv", "\n".join(lines) + "\n")


def cvat_images(root: Path) -> None:
    """CVAT's "CVAT for images 1.1" of a project."""
    subsets = {"train": "Train", "valid": "Validation", "test": "Test"}
    images = []
    for number, name in enumerate(TRUTH):
        subset = subsets[SPLIT_OF[name]]
        picture(root / "images" / subset / f"{name}.jpg")
        boxes = [
            f'    <box label="{label}" source="manual" occluded="0" xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" '
            f'ybr="{y2:.2f}" z_order="0">\n      <attribute name="difficult">false</attribute>\n    </box>'
            for label, (x1, y1, x2, y2) in TRUTH[name]
        ]
        start = f'  <image id="{number}" name="{name}.jpg" subset="{subset}" task_id="7" width="100" height="80">'
        images += [start, *boxes, "  </image>"]
    label = "<label><name>{}</name><color>#fa3253</color><type>any</type><attributes></attributes></label>"
    labels = "".join(label.format(name) for name in ("cat", "dog"))
    meta = f"<meta><project><id>3</id><name>pets</name><labels>{labels}</labels></project><dumped>2024</dumped></meta>"
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", f"  {meta}"]
    write(root / "annotations.xml", "\n".join([*lines, *images, "</annotations>", ""]))


def label_studio_region(name: str, box: Box) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    value = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT}
    value |= {"width": 100 * (x2 - x1) / WIDTH, "height": 100 * (y2 - y1) / HEIGHT, "rotation": 0}
    return {**value, "rectanglelabels": [name]}


def label_studio_json(root: Path) -> None:
    """Label Studio's "JSON", beside the images as they were before they were uploaded."""
    tasks = []
    for number, (name, objects) in enumerate(TRUTH.items(), 1):
        picture(root / "images" / f"{name}.jpg")
        results = [
            {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "id": f"r{i}", "origin": "manual"}
            | {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
            | {"value": label_studio_region(label, box)}
            for i, (label, box) in enumerate(objects)
        ]
        annotation = {"id": number, "completed_by": 1, "result": results, "was_cancelled": False}
        annotation |= {"created_at": "2024-05-01T10:00:00Z", "updated_at": "2024-05-01T10:00:00Z", "lead_time": 4.2}
        upload = f"8f2d1c3a-{name}.jpg"
        data = {"image": f"/data/upload/1/{upload}"}
        task = {"id": number, "annotations": [annotation], "file_upload": upload, "drafts": [], "predictions": []}
        tasks.append(task | {"data": data, "meta": {}, "created_at": "2024-05-01T09:00:00Z", "project": 1})
    write(root / "project-1-at-2024-05-01.json", json.dumps(tasks))


def label_studio_min(root: Path) -> None:
    """Label Studio's "JSON-MIN"; the images are served from a folder."""
    tasks = []
    for number, (name, objects) in enumerate(TRUTH.items(), 1):
        picture(root / "set" / f"{name}.jpg")
        regions = [
            label_studio_region(*o) | {"original_width": WIDTH, "original_height": HEIGHT, "id": f"r{i}"}
            for i, o in enumerate(objects)
        ]
        task: dict[str, Any] = {"image": f"/data/local-files/?d=pets/set/{name}.jpg", "id": number, "annotator": 1}
        task |= {"label": regions} if regions else {}
        tasks.append(task | {"annotation_id": number, "created_at": "2024", "updated_at": "2024", "lead_time": 3.0})
    write(root / "project-1.json", json.dumps(tasks))


def coco(root: Path) -> None:
    """Roboflow's "COCO"."""
    for split, images in SPLITS.items():
        entries, annotations = [], []
        for number, name in enumerate(images):
            picture(root / split / f"{name}.jpg")
            entries.append({"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1})
            for label, (x1, y1, x2, y2) in TRUTH[name]:
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations), "image_id": number, "bbox": box, "area": box[2] * box[3]}
                category = ["pets", "cat", "dog"].index(label)
                annotations.append(entry | {"category_id": category, "segmentation": [], "iscrowd": 0})
        names = [("pets", "none"), ("cat", "pets"), ("dog", "pets")]
        categories = [{"id": i, "name": name, "supercategory": above} for i, (name, above) in enumerate(names)]
        content = {"info": {"year": "2024"}, "licenses": [{"id": 1}], "categories": categories}
        content |= {"images": entries, "annotations": annotations}
        write(root / split / "_annotations.coco.json", json.dumps(content))


def voc_of_other_names(root: Path) -> None:
    """Pascal VOC's XML in folders of any name; the XML files are numbered, and <filename> names the image."""
    for number, (name, objects) in enumerate(TRUTH.items()):
        picture(root / "photos" / f"{name}.jpg")
        parts = [
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:g}</xmin>"
            f"<ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in objects
        ]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><folder>photos</folder><filename>{name}.jpg</filename>{size}{''.join(parts)}</annotation>"
        write(root / "boxes" / f"{number:04}.xml", text)


# What writes a data set, and what `overview` says of it.
EXPORTS: dict[Callable[[Path], None], str] = {
    roboflow_yolo: "YOLO, 3 splits: train 4, val 1, test 1; classes from data.yaml",
    ultralytics: "YOLO, 3 splits: train 4, val 1, test 1; classes from set.yaml",
    cvat_yolo: "YOLO, 3 splits: train 4, valid 1, test 1; classes from obj.data",
    roboflow_darknet: "YOLO, 3 splits: train 4, test 1, valid 1; classes from _darknet.labels",
    labelimg_yolo: "YOLO, 6 images without splits; classes from classes.txt",
    label_studio_yolo: "YOLO, 6 images without splits; classes from classes.txt",
    tensorflow_csv: "CSV, 3 files: test/_annotations.csv 1, train/_annotations.csv 4, valid/_annotations.csv 1",
    retinanet_csv: "CSV, 3 files: test/_annotations.csv 1, train/_annotations.csv 4, valid/_annotations.csv 1",
    one_csv: "CSV, 3 splits: train 4, valid 1, test 1; classes from the class column",
    cvat_images: "CVAT, 3 splits: Train 4, Validation 1, Test 1; classes from annotations.xml",
    label_studio_json: "Label Studio, 6 images without splits; classes from project-1-at-2024-05-01.json",
    label_studio_min: "Label Studio, 6 images without splits; classes from project-1.json",
    coco: "COCO, 3 files: test/a.coco.json 1, train/a.coco.json 4, valid/a.coco.json 1".replace("a.", "_annotations."),
    voc_of_other_names: "Pascal VOC's XML, 6 images without split lists",
}
WITHOUT_SPLITS = (labelimg_yolo, label_studio_yolo, label_studio_json, label_studio_min, voc_of_other_names)

"""A data set in VOC layout that a test fills as it likes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# name, (xmin, ymin, xmax, ymax) one-based and inclusive, difficult
VocObject = tuple[str, tuple[object, object, object, object], bool]


def voc_xml(objects: Sequence[VocObject], width: object = 64, height: object = 48, filename: str = "a.jpg") -> str:
    """An annotation as the VOC devkit writes it."""
    lines = [
        "<annotation>",
        "\t<folder>VOC2007</folder>",
        f"\t<filename>{filename}</filename>",
        "\t<source><database>The VOC2007 Database</database></source>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for name, (xmin, ymin, xmax, ymax), difficult in objects:
        lines += [
            "\t<object>",
            f"\t\t<name>{name}</name>",
            "\t\t<pose>Left</pose>",
            "\t\t<truncated>1</truncated>",
            f"\t\t<difficult>{int(difficult)}</difficult>",
            "\t\t<bndbox>",
            f"\t\t\t<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>",
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


class VocFolder:
    """A data set in VOC layout that a test fills as it likes; pictures are 64 pixels wide and 48 high."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)

    def picture(self, image_id: str, size: tuple[int, int] = (64, 48), suffix: str = ".jpg") -> Path:
        """Writes a picture of noise, the same for the same id."""
        seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4], "big")
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = self.root / "JPEGImages" / f"{image_id}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def annotation(self, image_id: str, text: str) -> Path:
        """Writes the text of an annotation."""
        path = self.root / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def add(self, image_id: str, *objects: VocObject, width: object = 64, height: object = 48) -> None:
        """Writes a picture and its annotation."""
        self.picture(image_id)
        self.annotation(image_id, voc_xml(objects, width, height, f"{image_id}.jpg"))

    def split(self, name: str, *lines: str) -> Path:
        """Writes a list of images."""
        path = self.root / "ImageSets" / "Main" / f"{name}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and date of every file below a folder, to see that nothing was changed."""
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }

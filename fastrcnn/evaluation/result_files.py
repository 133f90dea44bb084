"""Detections in files: the VOC devkit's comp4 text files, COCO's results JSON, and what evaluation servers take.

In memory detections are {class: ClassDetections}: half-open boxes, images counted along a list of image ids.
The files' own conventions begin and end here. Numbers are written with all their digits, so that detections
which were float32 come back exactly and their AP is the same. The devkit's own scripts round to six decimals, which
makes equal what is not; those that read such files take numbers of any length, and exponents.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrcnn.errors import UserError, nearest
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.files import replace_file
from fastrcnn.names import class_fault, comp4_id, comp4_name

if TYPE_CHECKING:  # saved detections are evaluated without loading torch
    from fastrcnn.structures import Sample

log = logging.getLogger(__name__)
# (image, score, x1, y1, x2, y2, width, height), half-open
Row = tuple[int, float, float, float, float, float, float, float]


def write_comp4(
    folder: Path, split: str, detections: Mapping[str, ClassDetections], image_ids: Sequence[str]
) -> list[Path]:
    """Writes comp4_det_<split>_<class>.txt for every class into `folder` and returns the paths.

    A line is `id score xmin ymin xmax ymax` with one-based inclusive coordinates (the devkit's results
    format), so that x1 y1 x2 y2 becomes x1+1 y1+1 x2 y2; see comp4_id for the ids. Files of the same name are
    replaced. Raises UserError for a class that cannot be part of a file's name, and where the folder cannot be written
    to.
    """
    check_comp4(split, detections)
    ids = [comp4_id(image_id) for image_id in image_ids]
    if escaped := [(image_id, here) for image_id, here in zip(image_ids, ids, strict=True) if image_id != here]:
        log.warning(
            "%s: %d image id(s) hold a space or a %% and are percent-encoded in the comp4 files (%r as %r); `fastrcnn "
            "reval` reads them back, the devkit does not", folder, len(escaped), *escaped[0],
        )  # fmt: skip
    paths = []
    for name, found in detections.items():
        boxes = np.add(found.boxes, (1, 1, 0, 0))
        rows = zip(found.images.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        lines = (f"{ids[i]} {s!r} {b[0]!r} {b[1]!r} {b[2]!r} {b[3]!r}\n" for i, s, b in rows)
        paths.append(replace_file(folder / comp4_name(split, name), "".join(lines).encode()))
    return paths


def check_comp4(split: str, classes: Iterable[str]) -> None:
    """Raises UserError for a class that cannot have a file of detections."""
    for name in classes:
        if fault := class_fault(name, split):
            raise UserError(f"Class {name[:40]!r} {fault}. Rename it in the class list.")


def read_comp4(
    folder: Path, split: str, classes: Sequence[str], image_ids: Sequence[str]
) -> dict[str, ClassDetections]:
    """Reads comp4_det_<split>_<class>.txt for those of the `classes` that have a file in `folder`.

    Images are counted along `image_ids`. A class without a file is left out, as competitions allow.
    Raises UserError with file and line for what is no detection or is of an image that `image_ids` lacks, for
    a file of a class that `classes` lacks, and where there is no file at all.
    """
    prefix = f"comp4_det_{split}_"
    paths = sorted(p for p in folder.glob("comp4_det_*.txt") if p.name.startswith(prefix))
    files = {p.name[len(prefix) : -len(".txt")]: p for p in paths}
    if not files:
        raise UserError(
            f"{folder} holds no file {prefix}<class>.txt. Give the folder with the detections, "
            "and the split that their names contain."
        )
    for name in files:
        if name not in classes:
            raise UserError(
                f"{files[name]} is of class {name!r}, which the data set lacks.{nearest(name, classes)} "
                f"Its classes are: {', '.join(classes)}. Rename the file or move it out of the folder."
            )
    index = {image_id: i for i, image_id in enumerate(image_ids)}  # as other programs write ids, and as this one does:
    index |= {comp4_id(image_id): i for i, image_id in enumerate(image_ids)}
    return {name: _read_comp4_file(files[name], index) for name in classes if name in files}


def _read_comp4_file(path: Path, index: Mapping[str, int]) -> ClassDetections:
    images = len({*index.values()})
    rows: list[Row] = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 6:
            raise UserError(f"{where}: wanted `id score xmin ymin xmax ymax`, found {line.strip()[:80]!r}.")
        score, x1, y1, x2, y2 = _numbers(fields[1:], where)
        image = _image(fields[0], index, where, images)
        rows.append((image, score, x1 - 1, y1 - 1, x2, y2, x2 - (x1 - 1), y2 - (y1 - 1)))
    return _arrays(rows)


def write_coco(
    path: Path,
    detections: Mapping[str, ClassDetections],
    image_ids: Sequence[str | int],
    category_ids: Mapping[str, int | str],
) -> Path:
    """Writes COCO results: a JSON list of {image_id, category_id, bbox: [x1, y1, width, height], score}.

    Image ids are written as they are given, strings or whole numbers. An existing file is replaced. Raises
    UserError where the file cannot be written.
    """
    entries = []
    for name, found in detections.items():
        boxes = np.concatenate((found.boxes[:, :2], found.sizes), axis=1)
        entries += [
            {"image_id": image_ids[image], "category_id": category_ids[name], "bbox": box, "score": score}
            for image, score, box in zip(found.images.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        ]
    text = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
    return replace_file(path, f"[{text}]\n".encode())


def read_coco(
    path: Path, image_ids: Sequence[str | int], category_ids: Mapping[str, int | str]
) -> dict[str, ClassDetections]:
    """Reads COCO results; the answer has every class of `category_ids`, images counted along `image_ids`.

    Boxes keep the file's width and height beside their corners, so that COCO's AP is computed from the file's numbers.
    The id "000012" is also found as 12, which is what tools that know only numbers write. Raises UserError
    with the file and the number of the entry, counted from 1, for what is no detection or is of an unknown
    image or category.
    """
    try:
        entries = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists without end
        raise UserError(f"{path}: not the JSON of COCO results: {error}.") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: should be a list of detections, as COCO results are.")
    index = {_whole(i): n for n, i in enumerate(image_ids)}
    index.update({str(image_id): n for n, image_id in enumerate(image_ids)})  # an id that is the same goes first
    names = {_whole(number): name for name, number in category_ids.items()}
    rows: dict[str, list[Row]] = {name: [] for name in category_ids}
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        try:
            image_id, category, score = entry["image_id"], entry["category_id"], entry["score"]
            x, y, width, height = entry["bbox"]
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f'{where}: should be {{"image_id": ..., "category_id": ..., "bbox": [x, y, width, height], '
                f'"score": ...}}, found {str(entry)[:200]}.'
            ) from None
        name = names.get(_whole(category))
        if name is None:
            known = ", ".join(f"{i} {n}" for n, i in category_ids.items())
            raise UserError(f"{where}: category {category!r} is unknown. The data set has: {known}")
        score, x, y, width, height = _numbers([score, x, y, width, height], where)
        image = _image(str(image_id) if str(image_id) in index else _whole(image_id), index, where, len(image_ids))
        rows[name].append((image, score, x, y, x + width, y + height, width, height))
    return {name: _arrays(of_class) for name, of_class in rows.items()}


def _arrays(rows: Sequence[Row]) -> ClassDetections:
    table = np.array(rows, np.float64).reshape(-1, 8)
    return ClassDetections(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:6], table[:, 6:])


def _whole(value: Any) -> str:
    """An id as text; a whole number without what may differ, as 12 for "000012" and 12.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text


def _image(image_id: str, index: Mapping[str, int], where: str, images: int) -> int:
    if image_id not in index:
        raise UserError(
            f"{where}: image {image_id!r} is not among the {images} images of the split. "
            "Choose the split that the detections were made for."
        )
    return index[image_id]


def _numbers(values: Iterable[Any], where: str) -> list[float]:
    numbers = []
    for value in values:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where}: {value!r} is not a finite number.")
        numbers.append(number)
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (at byte {error.start}).") from error


@dataclass(frozen=True)
class Submission:
    """Where detections of one split list go, and in which form."""

    folder: Path
    split: str  # the list, as split=NAME names it
    short: str  # the list, as names of files have it
    data_set: str  # the devkit's folder, such as VOC2012; of a COCO file not used
    category_ids: Mapping[str, int | str] | None  # of a COCO file; None for a data set in VOC layout

    def write(self, detections: Mapping[str, ClassDetections], samples: Sequence[Sample]) -> tuple[Path, Path, str]:
        """Writes the detections, images counted along `samples`. Returns what `fastrcnn reval` reads, what to hand in,
        and how. Raises UserError.

        For VOC results/<data_set>/Main/comp4_det_<short>_<class>.txt, and these packed as results.tgz, which its server
        unpacks; every class has a file, an empty one where nothing was found. For a COCO file its results JSON.
        """
        if self.category_ids is not None:
            path = self.folder / f"detections_{self.short}_results.json"
            write_coco(path, detections, [s.file_id for s in samples], self.category_ids)
            return path, path, "Zip this file and hand it in at the data set's evaluation server"
        main = self.folder / "results" / self.data_set / "Main"
        paths = write_comp4(main, self.short, detections, [s.image_id for s in samples])
        archive = replace_file(self.folder / "results.tgz", pack(self.folder, paths))
        return main, archive, "Hand in this archive at the data set's evaluation server (VOC: competition comp4)"


def check_voc_submission(split: str, classes: Sequence[str], image_ids: Sequence[str]) -> None:
    """Raises UserError for a class or an image id that the server's files cannot hold."""
    check_comp4(split, classes)
    for image_id in image_ids:
        if comp4_id(image_id) != image_id:
            raise UserError(
                f"Image id '{image_id[:100]}' holds a space or a %, which an evaluation server does not read. Rename "
                "the image and its annotation."
            )


def pack(folder: Path, paths: Sequence[Path]) -> bytes:
    """Files below `folder` as a .tgz: the same for the same files, as it holds no times, owners, or machines' names."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=content, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(paths):
            text = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())  # its owner is 0, its time 1970
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()

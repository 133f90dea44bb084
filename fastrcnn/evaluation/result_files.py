"""Read and write detections: comp4 text files of the VOC devkit, COCO results, and archives for evaluation servers.

In memory, detections are a dictionary from class names to ClassDetections. Boxes are half-open, and image indices are
positions in a list of image ids. The conventions of the files are used only in this module. Numbers are written in full
precision, so that float32 detections are restored exactly and their AP does not change. The devkit's scripts write only
six decimals, which can make different scores equal. Scripts that read such files accept longer numbers and exponents.
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
    """Write comp4_det_<split>_<class>.txt for every class to `folder` and return the paths.

    A line is `id score xmin ymin xmax ymax` with one-based inclusive coordinates (the devkit's results format):
    x1 y1 x2 y2 becomes x1+1 y1+1 x2 y2. Ids are percent-encoded by `comp4_id`. Existing files are overwritten. Raises
    UserError if a class name cannot be part of a file name, or if the folder cannot be written to.
    """
    check_comp4(split, detections)
    ids = [comp4_id(image_id) for image_id in image_ids]
    if escaped := [(image_id, here) for image_id, here in zip(image_ids, ids, strict=True) if image_id != here]:
        log.warning(
            "%s: %d image id(s) contain whitespace, %% or invalid UTF-8 and are percent-encoded in the comp4 files "
            "(for example, %r as %r). `fastrcnn reval` decodes them, but the VOC devkit does not.",
            folder, len(escaped), *escaped[0],
        )  # fmt: skip
    paths = []
    for name, found in detections.items():
        boxes = np.add(found.boxes, (1, 1, 0, 0))
        rows = zip(found.images.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        lines = (f"{ids[i]} {s!r} {b[0]!r} {b[1]!r} {b[2]!r} {b[3]!r}\n" for i, s, b in rows)
        paths.append(replace_file(folder / comp4_name(split, name), "".join(lines).encode()))
    return paths


def check_comp4(split: str, classes: Iterable[str]) -> None:
    """Raise UserError if one of the class names cannot be part of the name of a comp4 file for `split`."""
    for name in classes:
        if fault := class_fault(name, split):
            raise UserError(
                f"Class {name[:40]!r} {fault}. Rename the class in the annotations, and in data.classes if that key is "
                "set."
            )


def read_comp4(
    folder: Path, split: str, classes: Sequence[str], image_ids: Sequence[str]
) -> dict[str, ClassDetections]:
    """Read comp4_det_<split>_<class>.txt for all `classes` that have a file in `folder`.

    Returns the detections by class name. Image indices are positions in `image_ids`. Classes without a file are
    excluded, because VOC results can be for only some of the classes. Raises UserError, with file and line, if a line
    is invalid or its image is not in `image_ids`, and also if a file's class is not in `classes`, if a file is a link
    out of the folder, or if no file exists.
    """
    prefix = f"comp4_det_{split}_"
    paths = sorted(p for p in folder.glob("comp4_det_*.txt") if p.name.startswith(prefix))
    files = {p.name[len(prefix) : -len(".txt")]: p for p in paths}
    if not files:
        raise UserError(
            f"{folder}: the folder contains no file {prefix}<class>.txt. Check the path of the folder, and check that "
            f"the split in the file names is {split}."
        )
    for name in files:
        if not files[name].resolve().is_relative_to(folder.resolve()):  # messages quote lines
            raise UserError(f"{files[name]}: the link points outside the folder. Replace it with the file itself.")
        if name not in classes:
            raise UserError(
                f"{files[name]}: the data set has no class {name!r}.{nearest(name, classes)} Its classes are: "
                f"{', '.join(classes)}. Rename the file or move it out of the folder."
            )
    index = {image_id: i for i, image_id in enumerate(image_ids)}  # ids can be unencoded or percent-encoded
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
            raise UserError(f"{where}: expected `id score xmin ymin xmax ymax`, but found {line.strip()[:80]!r}.")
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
    """Write COCO results, a JSON list of {image_id, category_id, bbox: [x1, y1, width, height], score}. Return `path`.

    Image ids are written unchanged, as strings or integers. category_ids: the id of each class, by class name. An
    existing file is overwritten. Raises UserError if the file cannot be written.
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
    """Read COCO results. Return the detections by class name, with an entry for every class of `category_ids`.

    Image indices are positions in `image_ids`. category_ids: the id of each class, by class name. Detections also
    contain the width and height from the file, so that COCO AP is computed from exactly these numbers. The image id
    "000012" matches the number 12, because some tools write only numbers. Raises UserError if the file is not a JSON
    list, or, with the number of the entry (from 1), if an entry is invalid or has an unknown image or category.
    """
    try:
        entries = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: the file is not valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits, deeply nested lists
        raise UserError(f"{path}: the file cannot be read as COCO results ({error}).") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: COCO results must be a JSON list of detections, not {type(entries).__name__}.")
    index = {_whole(i): n for n, i in enumerate(image_ids)}
    index.update({str(image_id): n for n, image_id in enumerate(image_ids)})  # identical ids have priority
    names = {_whole(number): name for name, number in category_ids.items()}
    rows: dict[str, list[Row]] = {name: [] for name in category_ids}
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        try:
            image_id, category, score = entry["image_id"], entry["category_id"], entry["score"]
            x, y, width, height = entry["bbox"]
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f'{where}: expected {{"image_id": ..., "category_id": ..., "bbox": [x, y, width, height], '
                f'"score": ...}}, but found {str(entry)[:200]}.'
            ) from None
        name = names.get(_whole(category))
        if name is None:
            known = ", ".join(f"{i} {n}" for n, i in category_ids.items())
            raise UserError(f"{where}: the data set has no category {category!r}. Its categories (id, name): {known}.")
        score, x, y, width, height = _numbers([score, x, y, width, height], where)
        image = _image(str(image_id) if str(image_id) in index else _whole(image_id), index, where, len(image_ids))
        rows[name].append((image, score, x, y, x + width, y + height, width, height))
    return {name: _arrays(of_class) for name, of_class in rows.items()}


def _arrays(rows: Sequence[Row]) -> ClassDetections:
    table = np.array(rows, np.float64).reshape(-1, 8)
    return ClassDetections(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:6], table[:, 6:])


def _whole(value: Any) -> str:
    """Return an id as text. Integers are normalised: "000012" and 12.0 become "12"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text


def _image(image_id: str, index: Mapping[str, int], where: str, images: int) -> int:
    if image_id not in index:
        raise UserError(
            f"{where}: image {image_id!r} is not in the split, which has {images} image(s). Set split=NAME to the "
            "split of these detections."
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
        raise UserError(f"{path}: the file cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 text (invalid data at byte {error.start}).") from error


@dataclass(frozen=True)
class Submission:
    """The destination and the format of the detections of one split for an evaluation server."""

    folder: Path
    split: str  # name of the split, as in split=NAME
    short: str  # name of the split in file names
    data_set: str  # folder in the devkit, such as VOC2012; unused for a COCO file
    category_ids: Mapping[str, int | str] | None  # of a COCO file, by class name; None for a data set in VOC layout

    def write(self, detections: Mapping[str, ClassDetections], samples: Sequence[Sample]) -> tuple[Path, Path, str]:
        """Write the detections into `folder`. Image indices in `detections` are positions in `samples`.

        Returns the path that `fastrcnn reval` reads, the file to submit, and instructions for the submission.

        For VOC, the files are results/<data_set>/Main/comp4_det_<short>_<class>.txt, and results.tgz, an archive of
        these files for the evaluation server. Every class has a file, which is empty if nothing was detected. For a
        COCO file, it is detections_<short>_results.json. Raises UserError if a file cannot be written.
        """
        if self.category_ids is not None:
            path = self.folder / f"detections_{self.short}_results.json"
            write_coco(path, detections, [s.file_id for s in samples], self.category_ids)
            return path, path, "Zip this file and submit it to the evaluation server of the data set"
        main = self.folder / "results" / self.data_set / "Main"
        paths = write_comp4(main, self.short, detections, [s.image_id for s in samples])
        archive = replace_file(self.folder / "results.tgz", pack(self.folder, paths))
        return main, archive, "Submit this archive to the evaluation server of the data set (VOC: competition comp4)"


def check_voc_submission(split: str, classes: Sequence[str], image_ids: Sequence[str]) -> None:
    """Raise UserError if a class name cannot be part of a file name, or if an image id has to be percent-encoded."""
    check_comp4(split, classes)
    for image_id in image_ids:
        if comp4_id(image_id) != image_id:
            raise UserError(
                f"Image id {image_id[:100]!r} contains whitespace, % or invalid UTF-8, which evaluation servers do not "
                "accept. Rename the image and its annotation."
            )


def pack(folder: Path, paths: Sequence[Path]) -> bytes:
    """Return a .tgz archive of files in `folder`. It is reproducible: it contains no times, owners or host names."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=content, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(paths):
            text = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())  # owner 0, time 0 (1970)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()

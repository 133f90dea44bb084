"""From proposals of any format to a store for the images of a data set, or to a file for other programs: the Fast R-CNN
author's MATLAB layout, or COCO's results JSON."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import digest, write_derived
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import BoxCounts
from fastrcnn.proposals.formats.content import Content
from fastrcnn.proposals.formats.conventions import CONVENTIONS
from fastrcnn.proposals.formats.pickles import PICTURES
from fastrcnn.proposals.store import ImageProposals, write_store
from fastrcnn.structures import Sample

T = TypeVar("T")
Named = tuple[str, int | str | None]  # an image's id, and its number in a COCO file
Proposals = tuple[str, np.ndarray, np.ndarray | None]  # an image's id, boxes (P, 4) half-open, and scores (P,)


def match_file(wanted: Sequence[Named], file: Content) -> dict[str, int]:
    """For each id wanted its place in the file, as `match_ids` finds it. Raises UserError where none is in it."""
    matched = match_ids(wanted, file.ids)
    if not matched:
        theirs = f"the file has '{file.ids[0][:100]}' and so on" if file.ids else "the file has no image at all"
        raise UserError(
            f"{file.path}: none of the {len(wanted)} images of the data set is among its {len(file.ids)}: the data set "
            f"has '{wanted[0][0]}' and so on, {theirs}. Name the file that belongs to the data set, or fix the ids."
        )
    return matched


def match_ids(wanted: Sequence[Named], found: Sequence[str]) -> dict[str, int]:
    """For each id wanted its place among those found.

    An image is wanted by its id and, where it has one, its number in a COCO file. Beside equal ids these are matched,
    where no other id on either side could be meant: numbers of a COCO file; names of files without their folders; ids
    that differ in an image's suffix or in leading zeros alone (000005.jpg or 5 for 000005).

    Raises UserError where ids may be numbers of several images, since each split counts from 1, and where they are some
    images' numbers and others' names.
    """
    exact = {image_id: n for n, image_id in enumerate(found)}
    exact = {image_id: exact[image_id] for image_id, _ in wanted if image_id in exact}
    places = _unique((_core(image_id), n) for n, image_id in enumerate(found))
    names = [(i, {_core(i), _core(PurePosixPath(i).name)}) for i, _ in wanted]
    owners = _unique((name, image_id) for image_id, of_image in names for name in of_image)
    by_name = {image_id: places[name] for name, image_id in owners.items() if name in places}
    holders: dict[int, str] = {}  # images whose number stands at a place
    for image_id, number in wanted:
        place = places.get(_core(str(number)))
        if number is None or place is None or image_id in exact:
            continue
        if place in holders:
            raise UserError(
                f"'{found[place]}' is the number of '{holders[place]}' and of '{image_id}': each COCO file counts its "
                "images by itself. Convert one split at a time: data.test=[] for the training images alone."
            )
        if by_name.get(image_id, place) != place:
            raise UserError(
                f"'{image_id}': the ids of the proposals may be numbers of the COCO file ('{found[place]}') or names "
                f"of images ('{found[by_name[image_id]]}'), which mean different images. Write paths: '{image_id}'."
            )
        holders[place] = image_id
    return by_name | {image_id: place for place, image_id in holders.items()} | exact


def _unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The pairs whose first is in no other pair."""
    pairs = list(pairs)
    times = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if times[key] == 1}


def _core(image_id: str) -> str:
    """An id without what may differ: the suffix of a picture, and the zeros in front of a number."""
    path = PurePosixPath(image_id)
    name = image_id.removesuffix(path.suffix) if path.suffix.lower() in PICTURES else image_id
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else name


def convert_to_store(file: Content, images: Sequence[Sample], output: Path) -> tuple[dict[str, int], BoxCounts]:
    """Writes a store of the file's proposals for those of the images that it has. Returns their places in the file by
    id, and what became of the boxes.

    Raises UserError where it has none of them, for boxes that cannot be read, and as write_store does.
    """
    matched = match_file([(s.image_id, s.number) for s in images], file)
    items = (
        ImageProposals(s.image_id, s.height, s.width, *file.half_open(matched[s.image_id]))
        for s in images
        if s.image_id in matched
    )
    settings = {
        "format": file.format,
        "convention": str(file.convention),
        "sources": {path.name: fingerprint(path) for path in file.paths},
    }
    return matched, write_store(output, progress(items, len(matched), "converting"), "converted", settings)


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of the names and sha256 of a folder's files in the order of their names."""
    if path.is_file():
        return digest(path)
    parts = [f"{p.name}\0{fingerprint(p)}\n" for p in sorted(path.iterdir()) if p.is_file()]
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def export(file: Content, output: Path, numbers: Mapping[str, int | str]) -> int:
    """Writes all proposals of `file` to NAME.mat or NAME.json.

    numbers: for NAME.json the ids that images have in their COCO file. Returns how many boxes were written.

    Raises UserError where `output` exists and was not written from the same proposals, or cannot be written, and for
    .mat without scipy.
    """
    parts = [*map(fingerprint, file.paths), str(file.convention)]
    each = ((image_id, *file.half_open(n)) for n, image_id in enumerate(file.ids))
    images = progress(each, len(file.ids), "converting")
    with write_derived(output, hashlib.sha256("\n".join(parts).encode()).hexdigest()) as part:
        if output.suffix.lower() == ".mat":
            return _write_mat(file, images, part, output)
        return _write_json(file, images, part, numbers)


def _write_mat(file: Content, images: Iterable[Proposals], part: Path, output: Path) -> int:
    """The layout that fast-rcnn reads: cells `boxes` (N, 1), each (P, 4) doubles y1 x1 y2 x2, one-based and inclusive,
    and `images`, their ids; and `scores`, each (P, 1), where there are scores. All is in memory while it is written.
    """
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise UserError(
            f"{output}: writing .mat files needs scipy; install it with `pip install 'fastrcnn[mat]'`."
        ) from error
    variables: dict[str, Any] = {name: np.empty((len(file.ids), 1), object) for name in ("boxes", "images", "scores")}
    scored = 0
    for n, (image_id, boxes, scores) in enumerate(images):
        variables["boxes"][n, 0] = CONVENTIONS["yxyx-1-inclusive"].write(boxes)
        variables["images"][n, 0] = image_id
        variables["scores"][n, 0] = None if scores is None else scores.reshape(-1, 1)
        scored += scores is not None
    if not scored:
        del variables["scores"]
    elif scored < len(file.ids):
        raise UserError(f"{file.path}: only {scored} of {len(file.ids)} images have scores; all must, or none.")
    try:
        savemat(part, variables, appendmat=False)
    except Exception as error:  # whatever scipy raises for what a MATLAB file cannot take
        raise UserError(f"{output}: cannot be written ({str(error)[:200]}).") from error
    return sum(map(len, variables["boxes"][:, 0]))


def _write_json(file: Content, images: Iterable[Proposals], part: Path, numbers: Mapping[str, int | str]) -> int:
    """COCO's results: a list of objects with image_id, category_id 1, bbox [x, y, width, height] zero-based, and score.

    Of images without a number an id that is a number as JSON has it is written as a number. Without scores, 1 stands
    for all: pycocotools needs one. Boxes that are not finite are left out. Raises UserError where two images have one
    number, as those of two splits may.
    """
    used = [numbers[i] for i in file.ids if i in numbers]
    if len(set(used)) < len(used):
        raise UserError(
            f"{file.path}: has images of several COCO files that number them alike, so they cannot share one JSON "
            "file. Convert the proposals of one split."
        )
    total = 0
    with part.open("w", encoding="utf-8") as out:
        for image_id, half_open, scores in images:
            boxes = CONVENTIONS["xywh-0"].write(half_open)
            values = np.ones(len(boxes)) if scores is None else scores
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(values)  # JSON knows no other numbers
            is_number = image_id.isascii() and image_id.isdigit() and (image_id[0] != "0" or image_id == "0")
            name = image_id if is_number else json.dumps(numbers.get(image_id, image_id))
            for box, score in zip(boxes[finite].tolist(), values[finite].tolist(), strict=True):
                # Python writes finite numbers, and lists of them, as JSON does.
                start = ",\n" if total else "["
                out.write(f'{start}{{"image_id": {name}, "category_id": 1, "bbox": {box}, "score": {score}}}')
                total += 1
        out.write("]\n" if total else "[]\n")
    return total

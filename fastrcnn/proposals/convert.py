"""Convert proposals of any format to a proposal store for the images of a data set, or to a file for other programs.

The file is in the MATLAB layout of the Fast R-CNN author's code, or in COCO's JSON results format.
"""

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
Named = tuple[str, int | str | None]  # image id, and the image's id in its COCO file (here: COCO id) or None
Proposals = tuple[str, np.ndarray, np.ndarray | None]  # image id, half-open boxes (P, 4), scores (P,) or None


def match_file(wanted: Sequence[Named], file: Content) -> dict[str, int]:
    """Return a dictionary from the ids of the images that `match_ids` finds in `file` to their indices in `file.ids`.

    Raises UserError if the file contains none of the images, or if `match_ids` raises it.
    """
    matched = match_ids(wanted, file.ids)
    if not matched:
        theirs = f"{len(file.ids)} image(s), such as '{file.ids[0][:100]}'" if file.ids else "no images"
        raise UserError(
            f"{file.path}: none of the proposals is for an image of the data set. The data set has {len(wanted)} "
            f"image(s), such as '{wanted[0][0]}'; the proposals are for {theirs}. Use the proposals of this data set, "
            "or fix the image ids."
        )
    return matched


def match_ids(wanted: Sequence[Named], found: Sequence[str]) -> dict[str, int]:
    """Match images to the ids of proposals. Returns a dictionary from the ids of matched images to indices in `found`.

    wanted: for each image, its id, and its id in the COCO file (the COCO id) or None. found: the ids of the proposals.
    Equal ids always match. Otherwise, an id in `found` matches an image if it is the COCO id of the image, its file
    name without folders, or its id with a different image suffix or different leading zeros (000005.jpg or 5 for
    000005). Such a match is used only if no other image and no other id in `found` matches.

    Raises UserError if an id is the COCO id of several images (each COCO file numbers its images separately), or if the
    COCO id and the name of an image match different ids.
    """
    exact = {image_id: n for n, image_id in enumerate(found)}
    exact = {image_id: exact[image_id] for image_id, _ in wanted if image_id in exact}
    places = _unique((_core(image_id), n) for n, image_id in enumerate(found))
    names = [(i, {_core(i), _core(PurePosixPath(i).name)}) for i, _ in wanted]
    owners = _unique((name, image_id) for image_id, of_image in names for name in of_image)
    by_name = {image_id: places[name] for name, image_id in owners.items() if name in places}
    taken = set(exact.values())
    named = {place: image_id for image_id, place in by_name.items()}
    holders: dict[int, str] = {}  # maps an index in `found` to the image with this COCO id
    for image_id, number in wanted:
        place = places.get(_core(str(number)))
        if number is None or place is None or image_id in exact or place in taken:
            continue
        if place in holders:
            raise UserError(
                f"Proposal id '{found[place]}' is the COCO id of both '{holders[place]}' and '{image_id}', because "
                "each COCO file numbers its images separately. Convert one split at a time. For example, data.test=[] "
                "converts only the training images."
            )
        if by_name.get(image_id, place) != place:
            raise UserError(
                f"Image '{image_id}' is ambiguous: its id in the COCO file matches proposal id '{found[place]}', "
                f"but its name matches '{found[by_name[image_id]]}'. Use image paths such as '{image_id}' as ids in "
                "the proposal file."
            )
        if named.get(place, image_id) != image_id:
            raise UserError(
                f"Proposal id '{found[place]}' is ambiguous: it matches the name of image '{named[place]}' and the id "
                f"of '{image_id}' in the COCO file. Use image paths such as '{image_id}' as ids in the proposal file."
            )
        holders[place] = image_id
    return by_name | {image_id: place for place, image_id in holders.items()} | exact


def _unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return the pairs whose key occurs only once, as a dictionary."""
    pairs = list(pairs)
    times = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if times[key] == 1}


def _core(image_id: str) -> str:
    """Return an id without an image suffix and, if the rest is a number, without leading zeros."""
    path = PurePosixPath(image_id)
    name = image_id.removesuffix(path.suffix) if path.suffix.lower() in PICTURES else image_id
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else name


def convert_to_store(file: Content, images: Sequence[Sample], output: Path) -> tuple[dict[str, int], BoxCounts]:
    """Write a proposal store with the file's proposals for the given images. Skip images that are not in the file.

    Returns a dictionary from the id of each converted image to its index in `file.ids`, and the counts of kept and
    dropped boxes. Raises UserError if boxes cannot be read, or if `match_file` or `write_store` raises it.
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
    return matched, write_store(output, progress(items, len(matched), "Converting"), "converted", settings)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. For a folder, hash the sorted names and digests of its files."""
    if path.is_file():
        return digest(path)
    parts = [f"{p.name}\0{fingerprint(p)}\n" for p in sorted(path.iterdir()) if p.is_file()]
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def export(file: Content, output: Path, numbers: Mapping[str, int | str]) -> int:
    """Write all proposals of `file` to `output` (NAME.mat or NAME.json), and return the number of boxes written.

    numbers: a dictionary from image ids to COCO ids, for images that have a COCO id. Used only for NAME.json.

    Raises UserError if `output` exists and was not written from the same proposals, if boxes cannot be read, if
    `output` cannot be written, or if `_write_mat` or `_write_json` raises it.
    """
    parts = [*map(fingerprint, file.paths), str(file.convention)]
    each = ((image_id, *file.half_open(n)) for n, image_id in enumerate(file.ids))
    images = progress(each, len(file.ids), "Converting")
    with write_derived(output, hashlib.sha256("\n".join(parts).encode()).hexdigest()) as part:
        if output.suffix.lower() == ".mat":
            return _write_mat(file, images, part, output)
        return _write_json(file, images, part, numbers)


def _write_mat(file: Content, images: Iterable[Proposals], part: Path, output: Path) -> int:
    """Write a .mat file that the author's code reads, with all proposals in memory, and return the number of boxes.

    The variables are cell arrays (N, 1) with one cell for each image. `boxes` contains double matrices (P, 4) y1 x1 y2
    x2, one-based and inclusive. `images` contains the image ids. `scores` contains matrices (P, 1); it is omitted if
    there are no scores. Raises UserError if scipy is missing or fails, or if only some images have scores.
    """
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise UserError(
            f"{output}: writing .mat files needs scipy. Install it with `pip install 'fastrcnn[mat]'`."
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
        raise UserError(
            f"{file.path}: the file has scores for only {scored} of {len(file.ids)} images. Provide scores for all "
            "images or for none."
        )
    try:
        savemat(part, variables, appendmat=False)
    except OSError:
        raise
    except Exception as error:  # scipy raises various errors for data that a MATLAB file cannot contain
        raise UserError(f"{output}: cannot write the MATLAB file ({str(error)[:200]}).") from error
    return sum(map(len, variables["boxes"][:, 0]))


def _write_json(file: Content, images: Iterable[Proposals], part: Path, numbers: Mapping[str, int | str]) -> int:
    """Write a JSON file in COCO's results format, and return the number of boxes written.

    Each box becomes an object with image_id, category_id 1, bbox ([x, y, width, height], zero-based) and score. An
    image id that is an integer without sign and leading zeros is written as a number; any other id is replaced by the
    COCO id of the image, if it has one. Boxes without a score get the score 1, because pycocotools needs one. Boxes
    with a non-finite coordinate or score are omitted. Raises UserError if two images have the same COCO id, which is
    possible if they are in different splits.
    """
    used = [numbers[i] for i in file.ids if i in numbers]
    if len(set(used)) < len(used):
        raise UserError(
            f"{file.path}: some images have the same id in different COCO files, so their proposals cannot be written "
            "to one JSON file. Convert the proposals of one split at a time."
        )
    total = 0
    with part.open("w", encoding="utf-8") as out:
        for image_id, half_open, scores in images:
            boxes = CONVENTIONS["xywh-0"].write(half_open)
            values = np.ones(len(boxes)) if scores is None else scores
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(values)  # JSON has no NaN or infinity
            is_number = image_id.isascii() and image_id.isdigit() and (image_id[0] != "0" or image_id == "0")
            name = image_id if is_number else json.dumps(numbers.get(image_id, image_id))
            for box, score in zip(boxes[finite].tolist(), values[finite].tolist(), strict=True):
                # str() of finite numbers, and of lists of them, is valid JSON.
                start = ",\n" if total else "["
                out.write(f'{start}{{"image_id": {name}, "category_id": 1, "bbox": {box}, "score": {score}}}')
                total += 1
        out.write("]\n" if total else "[]\n")
    return total

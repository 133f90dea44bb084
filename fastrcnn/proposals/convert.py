"""From proposals of any format to a store for the images of a data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastrcnn.errors import UserError
from fastrcnn.files import digest
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import BoxCounts
from fastrcnn.proposals.formats.content import Content
from fastrcnn.proposals.formats.pickles import PICTURES
from fastrcnn.proposals.store import ImageProposals, write_store
from fastrcnn.structures import Sample

Named = tuple[str, int | str | None]  # an image's id, and its number in a COCO file
SUSPICIOUS = 0.01  # share of boxes dropped or clipped by more than a pixel that speaks of another convention


@dataclass(frozen=True)
class Conversion:
    """matched: images that got proposals. missing: ids of the data set that the file lacks. foreign: ids of the file
    that the data set lacks."""

    matched: int
    missing: list[str]
    foreign: list[str]
    counts: BoxCounts

    @property
    def suspicious(self) -> bool:
        """Whether so many boxes had to be dropped or clipped that they probably follow another convention."""
        boxes = self.counts.kept + self.counts.dropped
        return self.counts.dropped + self.counts.far > SUSPICIOUS * boxes

    def lines(self) -> list[str]:
        """What was matched, clipped and dropped, in words."""
        c, images = self.counts, self.matched + len(self.missing)
        lines = [f"{self.matched} of {images} images of the data set have proposals"]
        if self.missing:
            lines += [
                f"{len(self.missing)} images of the data set are not in the file: {first_few(self.missing)}",
                "  Training refuses them, or goes on without: data.missing_proposals=leave_out",
            ]
        if self.foreign:
            lines.append(f"{len(self.foreign)} images of the file are not in the data set: {first_few(self.foreign)}")
        far = f" ({c.far:,} by more than a pixel)" if c.far else ""
        why = {"not finite": c.not_finite, "inverted or empty": c.inverted, "outside": c.outside}
        reasons = f" ({', '.join(f'{n} {what}' for what, n in why.items() if n)})" if c.dropped else ""
        return [*lines, f"{c.kept:,} boxes kept, {c.clipped:,} of them clipped{far}; {c.dropped:,} dropped{reasons}"]


def first_few(ids: Sequence[str], most: int = 5) -> str:
    """The first of the ids, for a message."""
    return ", ".join(i[:60] for i in ids[:most]) + (", ..." if len(ids) > most else "")


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
    matched = {image_id: exact[image_id] for image_id, _ in wanted if image_id in exact}
    cores = Counter(map(_core, found))
    places = {core: n for n, core in enumerate(map(_core, found)) if cores[core] == 1}
    names = {image_id: {_core(image_id), _core(PurePosixPath(image_id).name)} for image_id, _ in wanted}
    sharing = Counter(core for of_image in names.values() for core in of_image)
    by_name = {i: places[c] for i, of_image in names.items() for c in of_image if c in places and sharing[c] == 1}
    by_number: dict[str, int] = {}
    holder: dict[int, str] = {}
    for image_id, number in wanted:
        place = None if number is None else places.get(_core(str(number)))
        if place is None or image_id in matched:
            continue
        if place in holder:
            raise UserError(
                f"'{found[place]}' is the number of '{holder[place]}' and of '{image_id}': each COCO file counts its "
                "images by itself. Convert one split at a time: data.test=[] for the training images alone."
            )
        holder[place] = image_id
        by_number[image_id] = place
    for image_id, place in by_number.items():
        if by_name.get(image_id, place) != place:
            raise UserError(
                f"'{image_id}': the ids of the proposals may be numbers of the COCO file ('{found[place]}') or names "
                f"of images ('{found[by_name[image_id]]}'), which mean different images. Write paths: '{image_id}'."
            )
    return by_name | by_number | matched


def _core(image_id: str) -> str:
    """An id without what may differ: the suffix of a picture, and the zeros in front of a number."""
    name = image_id
    if PurePosixPath(name).suffix.lower() in PICTURES:
        name = name[: name.rindex(".")]
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else name


def convert_to_store(file: Content, images: Sequence[Sample], output: Path) -> Conversion:
    """Writes a store of the file's proposals for those of the images that it has.

    Raises UserError where it has none of them, for boxes that cannot be read, and as write_store does.
    """
    matched = match_file([(s.image_id, s.number) for s in images], file)

    def items() -> Iterator[ImageProposals]:
        for s in images:
            if s.image_id in matched:
                boxes, scores = file.half_open(matched[s.image_id])
                yield ImageProposals(s.image_id, s.height, s.width, boxes, scores)

    settings = {
        "format": file.format,
        "convention": str(file.convention),
        "sources": {path.name: fingerprint(path) for path in file.paths},
    }
    counts = write_store(output, progress(items(), len(matched), "converting"), "converted", settings)
    missing = [s.image_id for s in images if s.image_id not in matched]
    used = set(matched.values())
    foreign = [image_id for n, image_id in enumerate(file.ids) if n not in used]
    return Conversion(len(matched), missing, foreign, counts)


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of the names and sha256 of a folder's files in the order of their names."""
    if path.is_file():
        return digest(path)
    parts = [f"{p.name}\0{fingerprint(p)}\n" for p in sorted(path.iterdir()) if p.is_file()]
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()

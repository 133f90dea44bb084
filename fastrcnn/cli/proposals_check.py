"""fastrcnn proposals-check"""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ProposalsCheckConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.proposals.fit import Outcome
    from fastrcnn.proposals.formats.content import Content
    from fastrcnn.structures import Sample

T = TypeVar("T")

EXAMPLES = [
    "fastrcnn proposals-check proposals=voc_2007_trainval.mat data=voc07 data.root=VOCdevkit",
    "fastrcnn proposals-check proposals=bbs.mat ids=images.txt data=custom data.root=FOLDER split=trainval",
]
IMAGES = 200  # with truth, that are looked at; twice as many annotations are read to find them
ROWS = 9  # of the table
PLACES = {
    "1 later": "the boxes of each image are kept under the id that follows its own",
    "1 earlier": "the boxes of each image are kept under the id before its own",
    "reversed": "the boxes are kept in the reverse order of the ids",
    "sorted": "the boxes stand in the order of the sorted ids",
}


def main(arguments: list[str]) -> int:
    """Tries the known readings of a proposal file; returns 0 if the boxes fit as they are read by default, else 1."""
    config: ProposalsCheckConfig = compose("proposals-check", arguments)
    if config.proposals is None:
        raise UserError("which proposals? fastrcnn proposals-check proposals=FILE data=NAME data.root=FOLDER")
    from fastrcnn.build import annotations
    from fastrcnn.cli.convert import read_ids
    from fastrcnn.proposals.files import open_proposals
    from fastrcnn.proposals.fit import find_fit

    annotations.root(config.data)  # a mistake in it is reported before a large file is read
    path = Path(config.proposals).expanduser()
    file = open_proposals(path, None if config.ids is None else read_ids(Path(config.ids).expanduser()))
    samples, entries, total = sample_images(config, file)
    outcome = find_fit(file.ids, lambda i: file.boxes(i)[0], file.convention, samples, entries)
    print(f"{path}: {file.format}, {len(file.ids):,} images")
    print(
        f"Compared: {outcome.boxes:,} boxes of {outcome.images} images with {len(outcome.winner.best):,} objects"
        f" ({total:,} images of the data set are in the file)\n"
    )
    print(table(outcome) + "\n")
    kept = [shlex.quote(a) for a in arguments if a.startswith(("data=", "data.", "ids="))]
    for line in verdict(outcome, path, kept):
        print(line if line.startswith("  ") else textwrap.fill(line, 100, break_on_hyphens=False))
    return 0 if outcome.fits and outcome.winner.reading == outcome.own.reading else 1


def sample_images(config: ProposalsCheckConfig, file: Content) -> tuple[list[Sample], list[int], int]:
    """Images with truth, spread evenly over those that the file has, their places in it, and how many it has.

    Truth that cannot be read is left out: it takes a part of the images only to compare with. Raises UserError where
    no image of the file is in the data set, or none has an object.
    """
    from fastrcnn.build import annotations, datasets
    from fastrcnn.data.annotations.splits import class_names, load
    from fastrcnn.proposals.convert import match_file

    data = config.data
    splits = [*data.train, *data.test] if config.split is None else annotations.test_splits(data, config.split)
    sources = datasets.image_sources(data, splits)
    place = match_file([(image_id, number) for image_id, (_, number) in sources.items()], file)
    wanted = evenly([image_id for image_id in sources if image_id in place], 2 * IMAGES)
    samples: list[Sample] = []
    for source in dict.fromkeys(sources[i][0] for i in wanted):
        ids = [i for i in wanted if sources[i][0] == source]
        names, _ = class_names(source, ids)
        part, _ = load(
            source,
            ids,
            names,
            training=False,
            use_difficult=True,
            skip_bad=True,
            need_pictures=False,
            first_pixel=data.first_pixel,
            leave_out_others=True,
            root=annotations.root(data),
        )
        samples += [s for s in part if (~s.difficult).any()]
    if not samples:
        raise UserError(
            f"{data.root}: none of the {len(wanted)} images looked at has an object that can be used, so there is "
            "nothing to compare with. `fastrcnn check` says what is wrong; or name another list with split=NAME."
        )
    samples = evenly(samples, IMAGES)
    return samples, [place[s.image_id] for s in samples], len(place)


def evenly(items: list[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def table(outcome: Outcome) -> str:
    """The readings that were tried and their figures, best first."""
    lines = [
        f"   {'':<24}{'':<15}{'':<12}{'recall':>12}{'mean':>8}{'borders':>9}",
        f"   {'convention':<24}{'unit':<15}{'ids':<12}{'.5':>6}{'.7':>6}{'overlap':>8}{'met':>9}",
    ]
    shown = outcome.tried[:ROWS]
    if not any(f is outcome.own for f in shown):
        shown = [*shown[:-1], outcome.own]
    for n, fit in enumerate(shown):
        r = fit.reading
        mark = "->" if n == 0 and outcome.fits else " =" if n < outcome.equal and outcome.fits else "  "
        figures = f"{fit.recall(0.5):>6.3f}{fit.recall(0.7):>6.3f}{fit.best.mean():>8.3f}{fit.touched:>9.3f}"
        lines.append(f"{mark} {r!s:<24}{r.unit:<15}{r.ids:<12}{figures}{'  as read' if fit is outcome.own else ''}")
    if outcome.images > 1:
        chance = outcome.winner.chance
        figures = f"{(chance >= 0.5).mean():>6.3f}{(chance >= 0.7).mean():>6.3f}{chance.mean():>8.3f}"
        lines.append(f"   {'boxes of other images, for comparison':<51}{figures}")
    return "\n".join(lines)


def verdict(outcome: Outcome, path: Path, arguments: list[str]) -> list[str]:
    """What the figures say, and what to do next. arguments: those that name the data set, quoted."""
    from fastrcnn.proposals.fit import AS_IS, PIXELS

    r, own = outcome.winner.reading, outcome.own.reading
    lines = []
    if outcome.wrapped:
        lines.append(
            f"{outcome.wrapped:,} numbers are 65535 or the like: a -1 that wrapped around in integers without a sign. "
            "They count as -1 here."
        )
    if outcome.not_finite:
        lines.append(f"{outcome.not_finite:,} boxes have a number that is NaN or infinite; they are left out.")
    if not outcome.fits:
        return [
            *lines,
            f"No reading fits: the best one, {r}, finds the objects no better than boxes of other images would. "
            "The file may belong to other images of the same ids, or to the same images turned, cut or resized; its "
            "boxes may be in another order than its ids; or there are too few boxes, or too few images, to tell.",
        ]
    what = str(r) if r.unit == PIXELS else f"{r}, {describe_unit(r.unit)}"
    if r == own:
        lines.append(f"The proposals fit as they are: {r}, in pixels.")
    elif r.unit != PIXELS or r.convention != own.convention:
        lines.append(f"The boxes are {what}; by default they are read as {own}, in pixels, and do not fit.")
    if r.ids != AS_IS:
        lines.append(f"The boxes belong to other ids: {PLACES[r.ids]}.")
    if outcome.equal > 1:
        others = "; ".join(
            f"{f.reading} ({f.reading.unit}, ids {f.reading.ids})" for f in outcome.tried[1 : outcome.equal]
        )
        few = " Too few boxes end at the borders of the images to tell." if outcome.winner.touched < 0.05 else ""
        lines.append(f"The data do not tell this apart from: {others}.{few}")
    if r.convention.base < 0:
        lines.append(
            "They begin at -1: one was subtracted from numbers that began at 0 already. No option fixes that; make the "
            "file again without the subtraction."
        )
    elif r.unit != PIXELS or r.ids != AS_IS:
        pixels = ["numbers in pixels of the original images"] if r.unit != PIXELS else []
        right = " and ".join([*pixels, *(["the right id for each image"] if r.ids != AS_IS else [])])
        then = "" if r.convention == own.convention else f"; then read it with convention={r}"
        lines.append(f"No option fixes that: make the file again with {right}{then}.")
    elif r != own:
        command = ["fastrcnn propose", f"convert={shlex.quote(str(path))}", f"convention={r}", *arguments]
        if path.suffix == ".proposals":
            command.append(f"output={shlex.quote(f'{path.stem}-fixed.proposals')}")
        lines += ["Convert them with", f"  {' '.join(command)}"]
    if (recall := outcome.winner.recall(0.5)) < 0.5:
        lines.append(f"They find {recall:.0%} of the objects, which is the most that a detector can reach.")
    return lines


def describe_unit(unit: str) -> str:
    """What the unit of a reading means, in words."""
    from fastrcnn.proposals.fit import RELATIVE

    if unit == RELATIVE:
        return "as shares of the image's width and height"
    kind, _, factor = unit.partition(" ")
    return (
        f"in pixels of images resized by a factor of {factor}"
        if kind == "times"
        else f"in pixels of images resized to {unit}"
    )

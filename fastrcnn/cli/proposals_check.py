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
    from fastrcnn.proposals.convert import Named
    from fastrcnn.proposals.fit import Outcome
    from fastrcnn.proposals.fit_measures import Fit
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
    "sorted": "the boxes stand in an order of their own",
}
ORDERS = {
    "": ", in the file's order",
    "text": ", that of the ids sorted as text",
    "number": ", that of the ids sorted as numbers",
    "list": ", that of the data set's lists",
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

    annotations.root(config.data)  # a mistake in it is said before a large file is read
    path = Path(config.proposals).expanduser()
    file = open_proposals(path, None if config.ids is None else read_ids(Path(config.ids).expanduser()))
    samples, entries, listed, total = sampled(config, file)
    outcome = find_fit(file.ids, lambda i: file.boxes(i)[0], file.convention, samples, entries, listed)
    print(f"{path}: {file.format}, {len(file.ids):,} images")
    print(
        f"Compared: {outcome.boxes:,} boxes of {outcome.images} images with {len(outcome.winner.best):,} objects"
        f" ({total:,} images of the data set are in the file)\n"
    )
    print(table(outcome))
    print()
    kept = [shlex.quote(a) for a in arguments if a.startswith(("data=", "data.", "ids="))]
    for line in verdict(outcome, [s.image_id for s in samples], path, kept):
        print(line if line.startswith("  ") else textwrap.fill(line, 100, break_on_hyphens=False))
    as_is = outcome.winner.reading == outcome.own.reading
    return 0 if outcome.fits and as_is else 1


def sampled(config: ProposalsCheckConfig, file: Content) -> tuple[list[Sample], list[int], list[int], int]:
    """Images with truth, spread evenly over those that the file has, and their places in it.

    Also gives the places of all images that the file has, in the data set's order, and how many these are. Truth that
    cannot be read is left out: it takes a part of the images only to compare with. Raises UserError where no image of
    the file is in the data set, or none has an object.
    """
    from fastrcnn.build import annotations
    from fastrcnn.data.annotations.coco_file import read_coco_file
    from fastrcnn.data.annotations.splits import class_names, is_coco, load
    from fastrcnn.proposals.convert import match_ids

    data = config.data
    both = list(dict.fromkeys([*data.train, *data.test]))
    source_of: dict[str, Path] = {}
    wanted_ids: list[Named] = []
    for source, ids in annotations.image_ids(
        data, both if config.split is None else annotations.test_splits(data, config.split)
    ):
        numbers = read_coco_file(source).numbers(annotations.root(data)) if is_coco(source) else {}
        wanted_ids += [(i, numbers.get(i)) for i in ids if i not in source_of]
        for image_id in ids:
            source_of.setdefault(image_id, source)
    place = match_ids(wanted_ids, file.ids)
    if not place:
        theirs = f"the file has '{file.ids[0][:100]}' and so on" if file.ids else "the file has no image at all"
        raise UserError(
            f"{file.path}: none of the data set's {len(source_of)} images is in it: the data set has "
            f"'{next(iter(source_of))}' and so on, {theirs}. Name the data set's own file, or mend the ids."
        )
    known = [image_id for image_id in source_of if image_id in place]
    wanted = evenly(known, 2 * IMAGES)
    samples: list[Sample] = []
    for source in dict.fromkeys(source_of[i] for i in wanted):
        ids = [i for i in wanted if source_of[i] == source]
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
    return samples, [place[s.image_id] for s in samples], [place[i] for i in known], len(known)


def evenly(items: list[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def table(outcome: Outcome) -> str:
    """The readings that were tried and their figures, best first."""
    lines = [
        f"   {'':<24}{'':<15}{'':<19}{'recall':>12}{'mean':>8}{'boxes':>8}{'borders':>9}",
        f"   {'convention':<24}{'unit':<15}{'ids':<19}{'.5':>6}{'.7':>6}{'overlap':>8}{'inside':>8}{'met':>9}",
    ]
    shown = outcome.tried[:ROWS]
    if not any(f is outcome.own for f in shown):
        shown = [*shown[:-1], outcome.own]
    for n, fit in enumerate(shown):
        mark = "->" if n == 0 and outcome.fits else " =" if n < outcome.equal and outcome.fits else "  "
        note = "  as read" if fit.reading == outcome.own.reading else ""
        lines.append(f"{mark} {row(fit)}{note}")
    if outcome.images > 1:
        chance = outcome.winner.chance
        figures = f"{(chance >= 0.5).mean():>6.3f}{(chance >= 0.7).mean():>6.3f}{chance.mean():>8.3f}"
        lines.append(f"   {'boxes of other images, for comparison':<58}{figures}")
    return "\n".join(lines)


def row(fit: Fit) -> str:
    """The figures of a reading."""
    r, b = fit.reading, fit.borders
    return (
        f"{r!s:<24}{r.scale:<15}{r.ids:<19}{fit.recall(0.5):>6.3f}{fit.recall(0.7):>6.3f}{fit.best.mean():>8.3f}"
        f"{b.inside:>8.3f}{b.touched:>9.3f}"
    )


def verdict(outcome: Outcome, ids: list[str], path: Path, arguments: list[str]) -> list[str]:
    """What the figures say, and what to do next.

    ids: of the images looked at. arguments: those of the command line that name the data set, quoted.
    """
    from fastrcnn.proposals.readings import AS_IS, PIXELS

    winner, own = outcome.winner, outcome.own
    r, base = winner.reading, winner.reading.convention.base
    lines = [*numbers(outcome)]
    if not outcome.fits:
        return [
            *lines,
            f"No reading fits: the best one, {r}, finds the objects no better than boxes of other images would. "
            "The file may belong to other images of the same ids, or to the same images turned, cut or resized; its "
            "boxes may be in another order than its ids; or there are too few boxes, or too few images, to tell.",
        ]
    if r == own.reading:
        lines.append(f"The proposals fit as they are: {r}, in pixels.")
    elif r.scale != PIXELS or r.convention != own.reading.convention:
        what = f"{r}, {unit(r.scale)}" if r.scale != PIXELS else str(r)
        lines.append(f"The boxes are {what}; by default they are read as {own.reading}, in pixels, and do not fit.")
    if r.ids != AS_IS:
        lines.append(f"The boxes belong to other ids: {place(r.ids)}.")
    lines += doubt(outcome)
    if base < 0:
        lines += [
            "They begin at -1: one was subtracted from numbers that began at 0 already. No option mends that; make the "
            "file again without the subtraction.",
        ]
    elif r.scale != PIXELS or r.ids != AS_IS:
        what = " and ".join(
            [*(["numbers in pixels of the original images"] if r.scale != PIXELS else []),
             *(["the right id for each image"] if r.ids != AS_IS else [])]
        )  # fmt: skip
        then = "" if r.convention == own.reading.convention else f"; then read it with convention={r}"
        lines.append(f"No option mends that: make the file again with {what}{then}.")
    elif r != own.reading:
        quoted = [f"convert={shlex.quote(str(path))}", f"convention={r}", *arguments]
        if path.suffix == ".proposals":
            quoted.append(f"output={shlex.quote(f'{path.stem}-mended.proposals')}")
        lines += ["Convert them with", f"  fastrcnn propose {' '.join(quoted)}"]
    if winner.recall(0.5) < 0.5:
        lines.append(f"They find {winner.recall(0.5):.0%} of the objects, which is the most that a detector can reach.")
    strays = [i for i, stray in zip(ids, winner.borders.strays, strict=True) if stray]
    if 0 < len(strays) <= 0.2 * len(ids):
        some = ", ".join(strays[:5]) + (", ..." if len(strays) > 5 else "")
        lines.append(
            f"Boxes stand out by more than two pixels of {len(strays)} of the {len(ids)} images; they may be those of "
            f"other images: {some}"
        )
    return lines


def doubt(outcome: Outcome) -> list[str]:
    """The readings that are not told apart from the winner, if any."""
    from fastrcnn.proposals.readings import AS_IS, PIXELS

    others = outcome.tried[1 : outcome.equal]
    if not others:
        return []
    names = []
    for fit in others:
        r = fit.reading
        more = [what for what, plain in ((r.scale, PIXELS), (f"ids {r.ids}", f"ids {AS_IS}")) if what != plain]
        names.append(f"{r} ({', '.join(more)})" if more else str(r))
    winner = outcome.winner
    few = " Too few boxes end at the borders of the images to tell." if winner.borders.touched < 0.05 else ""
    best = max(outcome.tried[: outcome.equal], key=lambda f: f.best.mean())
    slightly = f" The overlap favours {best.reading}, but slightly." if best is not winner else ""
    return [f"The data do not tell this apart from: {'; '.join(names)}.{few}{slightly}"]


def unit(scale: str) -> str:
    """What a scale means, in words."""
    from fastrcnn.proposals.readings import RELATIVE

    if scale == RELATIVE:
        return "as shares of the image's width and height"
    if scale.startswith("short side"):
        longest = {"600": 1000, "800": 1333}[scale.split()[-1]]
        return f"in pixels of pictures resized to {scale} (long side at most {longest})"
    if scale.startswith("times"):
        return f"in pixels of pictures resized by a factor of {scale.split()[-1]}"
    return f"in pixels of pictures that were all resized to {scale}"


def place(ids: str) -> str:
    """Where each image's boxes stand, in words."""
    what, _, order = ids.partition(" by ")
    return PLACES[what] + ORDERS[order]


def numbers(outcome: Outcome) -> list[str]:
    """What was wrong with single numbers."""
    lines = []
    if outcome.wrapped:
        lines.append(
            f"{outcome.wrapped:,} numbers are 65535 or the like: a -1 that wrapped around in integers without a sign. "
            "They count as -1 here."
        )
    if outcome.not_finite:
        lines.append(f"{outcome.not_finite:,} boxes have a number that is NaN or infinite; they are left out.")
    return lines

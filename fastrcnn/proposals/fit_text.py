"""What `fastrcnn proposals-check` prints of an Outcome: the figures of the readings, and what they come to."""

from __future__ import annotations

import shlex
from pathlib import Path

from fastrcnn.proposals.fit import AS_IS, PIXELS, RELATIVE, Outcome

ROWS = 9  # of the table
PLACES = {
    "1 later": "the boxes of each image are kept under the id that follows its own",
    "1 earlier": "the boxes of each image are kept under the id before its own",
    "reversed": "the boxes are kept in the reverse order of the ids",
    "sorted": "the boxes stand in the order of the sorted ids",
}


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
    if unit == RELATIVE:
        return "as shares of the image's width and height"
    kind, _, factor = unit.partition(" ")
    return (
        f"in pixels of images resized by a factor of {factor}"
        if kind == "times"
        else f"in pixels of images resized to {unit}"
    )

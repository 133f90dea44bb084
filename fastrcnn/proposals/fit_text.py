"""What `fastrcnn proposals-check` prints of an Outcome: the figures of the readings, and what they come to."""

from __future__ import annotations

import shlex
from pathlib import Path

from fastrcnn.proposals.fit import PIXELS, SHARES, Outcome, Reading

ROWS = 9  # of the table


def table(outcome: Outcome) -> str:
    """The readings that were tried and their figures, best first."""
    lines = [
        f"   {'':<24}{'':<15}{'recall':>12}{'mean':>8}{'borders':>9}",
        f"   {'convention':<24}{'unit':<15}{'.5':>6}{'.7':>6}{'overlap':>8}{'met':>9}",
    ]
    shown = outcome.tried[:ROWS]
    if outcome.own not in shown:
        shown[-1] = outcome.own
    for n, fit in enumerate(shown):
        mark = "  " if n >= outcome.equal or not outcome.fits else "->" if n == 0 else " ="
        figures = f"{fit.recall(0.5):>6.3f}{fit.recall(0.7):>6.3f}{fit.best.mean():>8.3f}{fit.touched:>9.3f}"
        as_read = "  as read" if fit is outcome.own else ""
        lines.append(f"{mark} {fit.reading.convention!s:<24}{fit.reading.unit:<15}{figures}{as_read}")
    chance = outcome.winner.chance
    figures = f"{(chance >= 0.5).mean():>6.3f}{(chance >= 0.7).mean():>6.3f}{chance.mean():>8.3f}"
    return "\n".join([*lines, f"   {'boxes of other images, for comparison':<39}{figures}"])


def verdict(outcome: Outcome, path: Path, arguments: list[str]) -> list[str]:
    """What the figures say, and what to do next. arguments: those that name the data set, quoted."""
    reading, own = outcome.winner.reading, outcome.own.reading
    lines = []
    if outcome.wrapped:
        lines.append(
            f"{outcome.wrapped:,} numbers are 65535 or the like: a -1 that wrapped around in integers without a sign, "
            "because one was subtracted from numbers that began at 0 already. They count as -1 here. No option fixes "
            "that: make the file again without the subtraction."
        )
    if outcome.not_finite:
        lines.append(f"{outcome.not_finite:,} boxes have a number that is NaN or infinite; they are left out.")
    if not outcome.fits:
        return [
            *lines,
            f"No reading fits: the best one, {describe(reading)}, finds the objects no better than boxes of other "
            "images would. The file may belong to other images of the same ids, or to the same images turned, cut or "
            "resized; its boxes may be in another order than its ids; or there are too few boxes, or too few images, "
            "to tell.",
        ]
    if reading == own:
        lines.append(f"The proposals fit as they are: {describe(own)}.")
    else:
        lines.append(f"The boxes are {describe(reading)}; by default they are read as {describe(own)}, and do not fit.")
    if outcome.equal > 1:
        others = "; ".join(describe(f.reading) for f in outcome.tried[1 : outcome.equal])
        few = " Too few boxes end at the borders of the images to tell." if outcome.winner.touched < 0.05 else ""
        lines.append(f"The data do not tell this apart from: {others}.{few}")
    if reading.unit != PIXELS:
        then = "" if reading.convention == own.convention else f"; then read it with convention={reading.convention}"
        lines.append(f"No option fixes that: make the file again with numbers in pixels of the original images{then}.")
    elif reading != own:
        command = ["fastrcnn propose", f"convert={shlex.quote(str(path))}", f"convention={reading.convention}"]
        if path.suffix == ".proposals":
            arguments = [*arguments, f"output={shlex.quote(f'{path.stem}-fixed.proposals')}"]
        lines += ["Convert them with", f"  {' '.join([*command, *arguments])}"]
    if (recall := outcome.winner.recall(0.5)) < 0.5:
        lines.append(f"They find {recall:.0%} of the objects, which is the most that a detector can reach.")
    return lines


def describe(reading: Reading) -> str:
    """A reading in words."""
    if reading.unit == PIXELS:
        return f"{reading.convention}, in pixels"
    if reading.unit == SHARES:
        return f"{reading.convention}, as shares of the image's width and height"
    return f"{reading.convention}, in pixels of images resized ({reading.unit})"

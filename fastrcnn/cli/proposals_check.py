"""fastrcnn proposals-check"""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ProposalsCheckConfig
from fastrcnn.errors import UserError
from fastrcnn.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from fastrcnn.proposals.fit import Outcome
    from fastrcnn.proposals.formats.content import Content
    from fastrcnn.structures import Sample

EXAMPLES = [
    "fastrcnn proposals-check proposals=voc_2007_trainval.mat data=voc07 data.root=VOCdevkit",
    "fastrcnn proposals-check proposals=bbs.mat ids=images.txt data=custom data.root=FOLDER split=trainval",
]
IMAGES = 200  # with truth, that are looked at, at most; twice as many annotations are read to find them
ROWS = 9  # of the table of readings


def main(arguments: list[str]) -> int:
    """Tries the known readings of a proposal file; returns 0 if the boxes fit as they are read by default, else 1."""
    config: ProposalsCheckConfig = compose("proposals-check", arguments)
    if config.proposals is None:
        raise UserError("which proposals? fastrcnn proposals-check proposals=FILE data=NAME data.root=FOLDER")
    from fastrcnn.build import annotations
    from fastrcnn.proposals.files import open_all
    from fastrcnn.proposals.fit import find_fit

    annotations.root(config.data)  # a mistake in it is reported before a large file is read
    path = Path(config.proposals).expanduser()
    file = open_all([config.proposals], config.ids)[0]
    samples, numbers, total = sample_images(config, file)
    outcome = find_fit(numbers, file.convention, samples)
    print(f"{path}: {file.format}, {len(file.ids):,} images")
    print(
        f"Compared: {sum(map(len, numbers)):,} boxes of {len(samples)} images with {len(outcome.winner.best):,} objects"
        f" ({total:,} images of the data set are in the file)\n"
    )
    print(table(outcome) + "\n")
    kept = [shlex.quote(a) for a in arguments if a.startswith(("data=", "data.", "ids="))]
    for line in verdict(outcome, path, kept):
        print(line if line.startswith("  ") else textwrap.fill(line, 100, break_on_hyphens=False))
    return 0 if outcome.fits and outcome.winner.reading == outcome.own.reading else 1


def sample_images(config: ProposalsCheckConfig, file: Content) -> tuple[list[Sample], list[np.ndarray], int]:
    """Images with truth, spread evenly over those that the file has, the numbers (P, 4) that it has for each, and how
    many it has.

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
    shared = [image_id for image_id in sources if image_id in place]
    wanted = shared[:: (len(shared) - 1) // (2 * IMAGES) + 1]
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
    samples = samples[:: (len(samples) - 1) // IMAGES + 1]
    places = [place[s.image_id] for s in samples]
    return samples, [file.boxes(n)[0] for n in progress(places, len(places), "reading proposals")], len(place)


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
    if len(outcome.winner.sides) > 1:
        chance = outcome.winner.chance
        figures = f"{(chance >= 0.5).mean():>6.3f}{(chance >= 0.7).mean():>6.3f}{chance.mean():>8.3f}"
        lines.append(f"   {'boxes of other images, for comparison':<39}{figures}")
    return "\n".join(lines)


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
            f"No reading fits: the best one, {reading}, finds the objects no better than boxes of other "
            "images would. The file may belong to other images of the same ids, or to the same images turned, cut or "
            "resized; its boxes may be in another order than its ids; or there are too few boxes, or too few images, "
            "to tell.",
        ]
    if reading == own:
        lines.append(f"The proposals fit as they are: {own}.")
    else:
        lines.append(f"The boxes are {reading}; by default they are read as {own}, and do not fit.")
    if outcome.equal > 1:
        others = "; ".join(str(f.reading) for f in outcome.tried[1 : outcome.equal])
        few = " Too few boxes end at the borders of the images to tell." if outcome.winner.touched < 0.05 else ""
        lines.append(f"The data do not tell this apart from: {others}.{few}")
    if reading.unit != own.unit:
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

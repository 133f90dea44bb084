"""The command `fastrcnn proposals-check`."""

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
IMAGES = 200  # maximum number of images to compare; up to twice as many are read to find images with objects
ROWS = 9  # maximum number of rows in the table


def main(arguments: list[str]) -> int:
    """Read a proposal file in all known box conventions and units, and compare the boxes with the ground truth.

    Returns 0 if the default convention and unit fit the ground truth best, else 1.
    """
    config: ProposalsCheckConfig = compose("proposals-check", arguments)
    if config.proposals is None:
        raise UserError("Specify the proposals: fastrcnn proposals-check proposals=FILE data=NAME data.root=FOLDER")
    from fastrcnn.build import annotations
    from fastrcnn.proposals.files import open_all
    from fastrcnn.proposals.fit import find_fit

    annotations.root(config.data)  # reports an error in data.root before a large file is read
    path = Path(config.proposals).expanduser()
    file = open_all([config.proposals], config.ids)[0]
    samples, numbers, total = sample_images(config, file)
    outcome = find_fit(numbers, file.convention, samples)
    print(f"{path}: {file.format}, {len(file.ids):,} images")
    print(
        f"Compared {sum(map(len, numbers)):,} boxes with {len(outcome.winner.best):,} objects, in {len(samples)} images"
        f" ({total:,} images of the data set are in the file)\n"
    )
    print(table(outcome) + "\n")
    kept = [shlex.quote(a) for a in arguments if a.startswith(("data=", "data.", "ids="))]
    for line in verdict(outcome, path, kept):
        print(line if line.startswith("  ") else textwrap.fill(line, 100, break_on_hyphens=False))
    return 0 if outcome.fits and outcome.winner.reading == outcome.own.reading else 1


def sample_images(config: ProposalsCheckConfig, file: Content) -> tuple[list[Sample], list[np.ndarray], int]:
    """Select the images to compare. Return the images, their boxes (P, 4), and the number of images to choose from.

    The boxes are the unconverted numbers in the file. The images are spread evenly over the images that are both in the
    data set and in the file. Annotations that cannot be read are skipped, because some images are enough. Raises
    UserError if no image is both in the file and in the data set, or if no image has an object.
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
            f"{data.root}: none of the {len(wanted)} images that were read has a usable object to compare the "
            "proposals with. Run `fastrcnn check` to see why the objects are unusable, or choose another split with "
            "split=NAME."
        )
    samples = samples[:: (len(samples) - 1) // IMAGES + 1]
    places = [place[s.image_id] for s in samples]
    return samples, [file.boxes(n)[0] for n in progress(places, len(places), "reading proposals")], len(place)


def table(outcome: Outcome) -> str:
    """Return a table of box conventions, best first: recall, mean IoU, and fraction of image borders touched."""
    lines = [
        f"   {'':<24}{'':<15}{'recall':>12}{'mean':>8}{'borders':>9}",
        f"   {'convention':<24}{'unit':<15}{'0.5':>6}{'0.7':>6}{'IoU':>8}{'touched':>9}",
    ]
    shown = outcome.tried[:ROWS]
    if outcome.own not in shown:
        shown[-1] = outcome.own
    for n, fit in enumerate(shown):
        mark = "  " if n >= outcome.equal or not outcome.fits else "->" if n == 0 else " ="
        figures = f"{fit.recall(0.5):>6.3f}{fit.recall(0.7):>6.3f}{fit.best.mean():>8.3f}{fit.touched:>9.3f}"
        default = "  default" if fit is outcome.own else ""
        lines.append(f"{mark} {fit.reading.convention!s:<24}{fit.reading.unit:<15}{figures}{default}")
    if len(outcome.winner.sides) > 1:
        chance = outcome.winner.chance
        figures = f"{(chance >= 0.5).mean():>6.3f}{(chance >= 0.7).mean():>6.3f}{chance.mean():>8.3f}"
        lines.append(f"   {'boxes of other images, for comparison':<39}{figures}")
    return "\n".join(lines)


def verdict(outcome: Outcome, path: Path, arguments: list[str]) -> list[str]:
    """Return the conclusion and the next step as lines of text. arguments: shell words that select the data set."""
    reading, own = outcome.winner.reading, outcome.own.reading
    lines = []
    if outcome.wrapped:
        lines.append(
            f"{outcome.wrapped:,} numbers are negative values that wrapped around in unsigned integers, such as 65535 "
            "for -1. They are read as negative values here. The usual cause is that 1 was subtracted from coordinates "
            "that already started at 0. No option can fix this file. Generate it again without the subtraction."
        )
    if outcome.not_finite:
        lines.append(f"{outcome.not_finite:,} boxes have a NaN or infinite coordinate and were skipped.")
    if not outcome.fits:
        return [
            *lines,
            f"No convention fits. Even with the best one ({reading}), the boxes match the objects no better than the "
            "boxes of other images do. Possible causes: the file belongs to other images with the same ids, or to "
            "rotated, cropped or resized versions of these images; the order of its boxes differs from the order of "
            "its ids; there are too few boxes or images for a conclusion.",
        ]
    if reading == own:
        lines.append(f"The proposals fit in the convention that is used by default: {own}.")
    else:
        lines.append(f"The convention of the boxes is {reading}. The default, {own}, does not fit.")
    if outcome.equal > 1:
        others = "; ".join(str(f.reading) for f in outcome.tried[1 : outcome.equal])
        few = " Too few boxes touch the borders of the images to decide." if outcome.winner.touched < 0.05 else ""
        lines.append(f"Other conventions that fit equally well: {others}.{few}")
    if reading.unit != own.unit:
        then = "" if reading.convention == own.convention else f", and read it with convention={reading.convention}"
        lines.append(f"No option can fix this file. Generate it again in pixels of the original images{then}.")
    elif reading != own:
        command = ["fastrcnn propose", f"convert={shlex.quote(str(path))}", f"convention={reading.convention}"]
        if path.suffix == ".proposals":
            arguments = [*arguments, f"output={shlex.quote(f'{path.stem}-fixed.proposals')}"]
        lines += ["Convert the file with:", f"  {' '.join([*command, *arguments])}"]
    if (recall := outcome.winner.recall(0.5)) < 0.5:
        lines.append(
            f"The recall of the proposals at IoU 0.5 is only {recall:.0%}, which limits the recall of the detector."
        )
    return lines

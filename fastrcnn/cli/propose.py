"""The command `fastrcnn propose`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ProposeConfig
from fastrcnn.errors import UserError
from fastrcnn.names import refuse_stream
from fastrcnn.parallel.launch import launch

if TYPE_CHECKING:
    from fastrcnn.proposals.formats.content import Content

EXPORTED = (".mat", ".json")
SUSPICIOUS = 0.01  # if more boxes are dropped, or clipped by more than a pixel, the convention is probably wrong
EXAMPLES = [
    "fastrcnn propose data=voc07 data.root=VOCdevkit",
    "fastrcnn propose source='photos/*.jpg' output=photos.proposals data.selective_search.mode=quality",
    "fastrcnn propose convert=[voc_2007_trainval.mat,voc_2007_test.mat] data=voc07 data.root=VOCdevkit",
    "fastrcnn propose convert=NAME.proposals output=NAME.mat",
]
EVERYDAY = [
    "source",
    "convert",
    "output",
    "workers",
    "data.root",
    "data.train",
    "data.val",
    "data.test",
    "data.selective_search.mode",
    "data.selective_search.side",
    "data.selective_search.max_boxes",
]


def main(arguments: list[str]) -> int:
    """Generate proposals with selective search, or convert proposal files.

    If an earlier generation of the proposals was interrupted, continue it.
    """
    config: ProposeConfig = compose("propose", arguments)
    if config.convert and launch().size > 1:
        raise UserError("`fastrcnn propose convert=FILE` runs in one process only. Start it without torchrun.")
    if config.convert:
        convert(config)
        return 0
    if config.ids is not None or config.convention is not None:
        raise UserError("The keys `ids` and `convention` need convert=FILE. Set it, or omit these keys.")
    import torch

    from fastrcnn.parallel import distributed
    from fastrcnn.proposals.store import ProposalStore

    with distributed.join_processes(torch.device("cpu")):
        made = make(config)
        for path in made if distributed.leads() else []:
            store = ProposalStore(path)
            boxes = sum(len(store.boxes(i)) for i in store.ids)
            print(f"{path}: {len(store)} images, {boxes / len(store):.0f} boxes per image on average")
    return 0


def make(config: ProposeConfig) -> list[Path]:
    """Generate proposals for the images of `source` or of the data set. Return the paths of the proposal stores."""
    from fastrcnn.build import annotations, datasets

    data, output = config.data, None if config.output is None else Path(config.output).expanduser()
    if config.source is not None:
        refuse_stream(config.source)
        if output is None:
            raise UserError("With source=, the path of the proposal store is required. Set output=NAME.proposals.")
        images = annotations.source_pictures(config.source, data.skip_bad)
        return [datasets.make_proposals(data, images, output, config.workers)]
    names = annotations.classes(data)
    made = []
    used = [data.train, annotations.validation_splits(data), data.test]
    for splits in used if output is None else [all_splits(config)]:
        if not splits:
            continue
        images = annotations.samples(data, splits, names)
        path = output or datasets.proposal_path(data, images, annotations.split_name(splits))
        made.append(datasets.make_proposals(data, images, path, config.workers))
    return made


def all_splits(config: ProposeConfig) -> list[str]:
    """Return the training, validation and test splits of the data set, without duplicates."""
    from fastrcnn.build.annotations import validation_splits

    return list(dict.fromkeys([*config.data.train, *validation_splits(config.data), *config.data.test]))


def convert(config: ProposeConfig) -> None:
    """Convert proposal files to a proposal store, or to a .mat or .json file if `output` has that suffix."""
    from fastrcnn.proposals.files import join_files, open_all
    from fastrcnn.proposals.formats.conventions import convention

    chosen = None if config.convention is None else convention(config.convention)
    files = open_all(config.convert, config.ids, chosen)
    for part in files:
        print(f"{part.path}: {part.format}, {len(part.ids)} images, boxes read as {part.convention}")
    file = join_files(files)
    output = None if config.output is None else Path(config.output).expanduser()
    if output is not None and output.suffix.lower() in EXPORTED:
        to_file(config, file, output)
    else:
        to_store(config, file, output)


def to_file(config: ProposeConfig, file: Content, output: Path) -> None:
    """Write all proposals to a .mat or .json file. JSON contains the image ids of the data set's COCO files, if any."""
    from fastrcnn.build import datasets
    from fastrcnn.proposals.convert import export

    numbers: dict[str, int | str] = {}
    if output.suffix.lower() == ".json" and config.data.root is not None:
        sources = datasets.image_sources(config.data, all_splits(config))
        numbers = {image_id: number for image_id, (_, number) in sources.items() if number is not None}
    print(f"Wrote {export(file, output, numbers):,} boxes of {len(file.ids)} images to {output}")
    if numbers and (others := [i for i in file.ids if i not in numbers]):
        print(f"  images that are not in the COCO files of the data set: {len(others)} ({first_few(others)})")
        print("    Their ids are written unchanged.")


def to_store(config: ProposeConfig, file: Content, output: Path | None) -> None:
    """Write a proposal store for the images of the data set, or of `source`, and print a summary."""
    from fastrcnn.build import annotations
    from fastrcnn.proposals.convert import convert_to_store

    data, path = config.data, file.path
    stem = path.name if path.is_dir() and path.suffix != ".proposals" else path.stem
    output = output or Path(data.proposal_cache).expanduser() / f"{stem}.proposals"
    if output.exists() and any(output.samefile(part) for part in file.paths):
        raise UserError(f"{output}: the output cannot replace the input. Choose a path with output=NAME.proposals.")
    if config.source is not None:
        images = annotations.source_pictures(config.source, data.skip_bad)
    else:
        images = annotations.samples(data, all_splits(config), annotations.classes(data), need_pictures=False)
    matched, counts = convert_to_store(file, images, output)
    places = set(matched.values())
    missing = [image.image_id for image in images if image.image_id not in matched]
    foreign = [image_id for n, image_id in enumerate(file.ids) if n not in places]
    print(f"  images with proposals in the file: {len(matched)} of {len(images)}")
    if missing:
        print(f"  images without proposals in the file: {len(missing)} ({first_few(missing)})")
        print("    Training fails with an error for such images. Set data.missing_proposals=leave_out to skip them.")
    if foreign:
        print(f"  image ids in the file that match no image: {len(foreign)} ({first_few(foreign)})")
    print(f"  {counts}")
    if counts.dropped + counts.far > SUSPICIOUS * (counts.kept + counts.dropped):
        where = f" data.root={data.root}" if data.root else ""
        print(
            "  Many boxes do not fit in their images. The file probably uses a different box convention than assumed. "
            "To check, run:\n"
            f"    fastrcnn proposals-check proposals={path} data={data.name}{where}"
        )
    print(f"Use the proposals with data.proposals={output}")


def first_few(ids: Sequence[str], most: int = 5) -> str:
    """Return the first `most` ids as text for a message, with "..." if there are more."""
    return ", ".join(i[:60] for i in ids[:most]) + (", ..." if len(ids) > most else "")

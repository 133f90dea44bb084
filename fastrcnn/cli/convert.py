"""`fastrcnn propose convert=...`: proposals of any format to a store, and out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.schema import ProposeConfig
from fastrcnn.data.annotations.text_files import read_lines
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.proposals.formats.content import Content

EXPORTED = (".mat", ".json")


def convert(config: ProposeConfig) -> int:
    """Writes a store for the images of a data set (or of `source`), or with output=NAME.mat or NAME.json all there is.

    Prints what was matched, clipped and dropped. Returns 0.
    """
    from fastrcnn.proposals.files import join_files, open_proposals
    from fastrcnn.proposals.formats.conventions import convention

    chosen = None if config.convention is None else convention(config.convention)
    ids = None if config.ids is None else read_ids(Path(config.ids).expanduser())
    files = [open_proposals(Path(name).expanduser(), ids) for name in config.convert]
    if chosen is not None:
        files = [replace(file, convention=chosen) for file in files]
    for part in files:
        print(f"{part.path}: {part.format}, {len(part.ids)} images; boxes read as {part.convention}")
    file = join_files(files)
    output = None if config.output is None else Path(config.output).expanduser()
    if output is None or output.suffix.lower() not in EXPORTED:
        return to_store(config, file, output)
    from fastrcnn.build import datasets
    from fastrcnn.proposals.export import export

    numbers: dict[str, int | str] = {}  # of images in their COCO files
    if output.suffix.lower() == ".json" and config.data.root is not None:
        sources = datasets.image_sources(config.data, [*config.data.train, *config.data.test])
        numbers = {image_id: number for image_id, (_, number) in sources.items() if number is not None}
    print(f"{output}: {export(file, output, numbers):,} boxes of {len(file.ids)} images")
    if numbers and (others := [i for i in file.ids if i not in numbers]):
        print(f"  {len(others)} of the images are not in the data set's COCO file: {_some(others)}")
    return 0


def to_store(config: ProposeConfig, file: Content, output: Path | None) -> int:
    """Writes a store for the images of the data set, or of `source`. Prints what became of them; returns 0."""
    from fastrcnn.build import annotations
    from fastrcnn.data import sources
    from fastrcnn.proposals.convert import convert_to_store
    from fastrcnn.proposals.store import check_target

    path = file.path
    stem = path.name if path.is_dir() and path.suffix != ".proposals" else path.stem
    output = output or Path(config.data.proposal_cache).expanduser() / f"{stem}.proposals"
    if output.exists() and any(output.samefile(part) for part in file.paths):
        raise UserError(f"{output}: is what is read; name another store, as output=NAME.proposals.")
    check_target(output)
    if config.source is not None:
        found, looks = sources.without_truth(sources.pictures(config.source))
        annotations.say_looks(looks)
    else:
        splits = list(dict.fromkeys([*config.data.train, *config.data.test]))
        found = annotations.samples(config.data, splits, annotations.classes(config.data), need_pictures=False)
    done = convert_to_store(file, found, output)

    counts = done.counts
    why = [f"{counts.not_finite} not finite", f"{counts.inverted} inverted or empty", f"{counts.outside} outside"]
    reasons = f" ({', '.join(w for w in why if not w.startswith('0 '))})" if counts.dropped else ""
    far = f" ({counts.far:,} by more than a pixel)" if counts.far else ""
    print(f"  {done.matched} of {len(found)} images of the data set have proposals")
    if done.missing:
        print(f"  {len(done.missing)} images of the data set are not in the file: {_some(done.missing)}")
        print("    Training refuses them, or goes on without: data.missing_proposals=leave_out")
    if done.foreign:
        print(f"  {len(done.foreign)} images of the file are not in the data set: {_some(done.foreign)}")
    print(f"  {counts.kept:,} boxes kept, {counts.clipped:,} of them clipped{far}; {counts.dropped:,} dropped{reasons}")
    if done.suspicious:
        where = f" data.root={config.data.root}" if config.data.root else ""
        print(
            "  So many that the boxes probably follow another convention. This finds out which:\n"
            f"    fastrcnn proposals-check proposals={path} data={config.data.name}{where}"
        )
    print(f"Use them with data.proposals={output}")
    return 0


def read_ids(path: Path) -> list[str]:
    """Image ids of a text file, one a line. Raises UserError where it cannot be read or a line has more than an id."""
    try:
        lines = read_lines(path)
    except UserError as error:
        raise UserError(f"ids={error}") from None
    return [line.strip() for line in lines if line.strip()]


def _some(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(i[:60] for i in ids[:most]) + (", ..." if len(ids) > most else "")

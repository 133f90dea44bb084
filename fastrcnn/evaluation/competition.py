"""Detections as evaluation servers take them, for test sets whose truth is not public."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.evaluation.result_files import check_comp4, write_coco, write_comp4
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.files import replace_file
from fastrcnn.names import comp4_id
from fastrcnn.structures import Sample


@dataclass(frozen=True)
class Submission:
    """Where detections of one split list go, and in which form."""

    folder: Path
    split: str  # the list, as split=NAME names it
    short: str  # the list, as names of files have it
    data_set: str  # the devkit's folder, such as VOC2012; of a COCO file not used
    category_ids: Mapping[str, int | str] | None  # of a COCO file; None for a data set in VOC layout

    def write(self, detections: Mapping[str, ClassDetections], samples: Sequence[Sample]) -> tuple[Path, Path, str]:
        """Writes the detections, images counted along `samples`. Returns what `fastrcnn reval` reads, what to hand in,
        and how. Raises UserError.

        For VOC results/<data_set>/Main/comp4_det_<short>_<class>.txt, and these packed as results.tgz, which its server
        unpacks; every class has a file, an empty one where nothing was found. For a COCO file its results JSON.
        """
        if self.category_ids is not None:
            path = self.folder / f"detections_{self.short}_results.json"
            write_coco(path, detections, [s.file_id for s in samples], self.category_ids)
            return path, path, "Zip this file and hand it in at the data set's evaluation server"
        main = self.folder / "results" / self.data_set / "Main"
        paths = write_comp4(main, self.short, detections, [s.image_id for s in samples])
        archive = replace_file(self.folder / "results.tgz", pack(self.folder, paths))
        return main, archive, "Hand in this archive at the data set's evaluation server (VOC: competition comp4)"


def check_voc_submission(split: str, classes: Sequence[str], image_ids: Sequence[str]) -> None:
    """Raises UserError for a class or an image id that the server's files cannot hold."""
    check_comp4(split, classes)
    for image_id in image_ids:
        if comp4_id(image_id) != image_id:
            raise UserError(
                f"Image id '{image_id[:100]}' holds a space or a %, which an evaluation server does not read. Rename "
                "the image and its annotation."
            )


def pack(folder: Path, paths: Sequence[Path]) -> bytes:
    """Files below `folder` as a .tgz: the same for the same files, as it holds no times, owners, or machines' names."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=content, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(paths):
            text = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())  # its owner is 0, its time 1970
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()

"""Write the output folder of `fastrcnn detect`: images with boxes, files with the detections, and times."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.evaluation.result_files import check_comp4, write_comp4
from fastrcnn.evaluation.voc_ap import detections_by_class
from fastrcnn.files import replace_file, write_folder
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.labels import FORMATS, Labelled, label_files
from fastrcnn.names import comp4_name, csv_cell
from fastrcnn.structures import Detections

log = logging.getLogger(__name__)
SPLIT = "detect"  # the split in the names of comp4 files
STAGES = {"proposals": "proposals", "network": "network", "nms": "non-maximum suppression"}
TIMING = "timing.json"  # if this file contains the key `source`, `fastrcnn detect` wrote the folder


def folder_for(output: str | None, run: Path, source: str) -> Path:
    """Return the output folder: `output` if it is set, otherwise RUN/detect/NAME, with a name taken from the source.

    A number is appended to the name if this folder exists, unless `fastrcnn detect` wrote it for the same source.
    """
    if output is not None:
        return Path(output).expanduser()
    whole = absolute(source)
    plain = [part for part in Path(whole).parts if not any(letter in part for letter in "*?[")]
    named = Path(whole if Path(whole).exists() else str(Path(*plain)))
    base = run / "detect" / (named.stem or "images")
    folder, number = base, 1
    while folder.exists() and _timing(folder).get("source") != whole:
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def absolute(source: str) -> str:
    return str(Path(source).expanduser().absolute())


def _timing(folder: Path) -> dict[str, Any]:
    """Return the content of timing.json in a folder, or an empty dictionary if it is missing or damaged."""
    try:
        content = json.loads((folder / TIMING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Output:
    """An output folder, created when the first image is added. Files of an earlier `fastrcnn detect` are overwritten.

    columns: names of additional CSV columns that describe an image or frame. found: for each image or frame, its id,
    the values of `columns` and the detections.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        columns: Sequence[str],
        formats: Collection[str],
        detector: Detector,
        images: Sequence[str],
        inputs: Sequence[Path],
    ) -> None:
        """formats: any of json, csv, comp4 and labels.FORMATS. images: names of the image files to write. inputs: the
        input files.

        Raises UserError if an output file is also an input file, if an output file exists that `fastrcnn detect` did
        not write, if a folder of label files exists, or if a class name cannot be used in the name of a comp4 file.
        """
        self.folder, self.source, self.columns, self.formats = folder, source, columns, formats
        self.detector = detector
        self.found: list[tuple[str, Sequence[Any], Detections]] = []
        self.drawn = 0  # number of detections drawn
        self.labelled: list[Labelled] = []
        names = [*images, *(f"detections.{name}" for name in formats if name in ("json", "csv"))]
        if "comp4" in formats:
            check_comp4(SPLIT, detector.classes)
            names += [comp4_name(SPLIT, name) for name in detector.classes]
        for name in formats:
            if name in FORMATS and (folder / f"labels_{name}").exists():
                raise UserError(
                    f"{folder / f'labels_{name}'}: the folder already exists and may contain labels that you "
                    "corrected. Move it, or choose another output folder with output=FOLDER."
                )
        own = {path.resolve() for path in inputs}
        for name in names:
            if (folder / name).resolve() in own:
                raise UserError(
                    f"output={folder}: the output file {name} would overwrite an input file. Choose another folder."
                )
        if "source" not in _timing(folder):
            for name in [*names, TIMING]:
                if (folder / name).exists():
                    raise UserError(
                        f"{folder / name}: the file already exists and `fastrcnn detect` did not write it. Choose "
                        "another output folder with output=FOLDER."
                    )

    def add(self, image_id: str, found: Detections, about: Sequence[Any]) -> None:
        """Add the detections of an image or frame. about: its values in the additional CSV columns.

        Raises UserError if the folder cannot be created or written to.
        """
        if not self.found:
            self._write(TIMING, json.dumps({"source": absolute(self.source)}))
        self.found.append((image_id, about, found))

    def count_drawn(self, image_id: str, file: Path, size: Sequence[int], found: Detections, chosen: list[int]) -> None:
        """Count the drawn detections of an image and keep them for label files.

        file: the image file. size: width and height of the image. chosen: indices of the drawn detections in `found`.
        """
        self.drawn += len(chosen)
        if any(name in FORMATS for name in self.formats):
            every, (width, height) = list(found), size
            kept = [every[i] for i in chosen]
            self.labelled.append(Labelled(image_id, file, width, height, kept))

    def best_scores(self) -> np.ndarray:
        """Return the scores of all detections, in descending order."""
        return -np.sort(-np.concatenate([np.zeros(0, np.float32), *(of_image.scores for _, _, of_image in self.found)]))

    def write_image(self, name: str, image: np.ndarray) -> None:
        """Write an image (H, W, 3) uint8 RGB as PNG."""
        ok, data = cv2.imencode(".png", image[:, :, ::-1])
        assert ok
        replace_file(self.folder / name, data.tobytes())

    def write_detections(self) -> None:
        """Write the detections in the requested formats.

        detections.json is a COCO results file with additional keys. detections.csv contains boxes as x1, y1, x2, y2.
        Text in it that a spreadsheet would run as a formula starts with an apostrophe.
        Label files contain only the drawn detections.
        """
        rows: list[dict[str, Any]] = []
        for image_id, about, found in self.found:
            known = {"image_id": image_id, **dict(zip(self.columns, about, strict=True))}
            for box, score, label, name in found:
                x1, y1, x2, y2 = (round(v, 2) for v in box)
                bbox = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
                rows.append({**known, "category": name, "category_id": label, "bbox": bbox, "score": round(score, 5)})
        if "json" in self.formats:
            self._write("detections.json", json.dumps(rows, indent=1) + "\n")
        if "csv" in self.formats:
            text = io.StringIO()
            about = ["image_id", *self.columns, "category", "category_id", "score"]
            table = csv.writer(text)  # its lines end in CR LF, so that a carriage return in a name is quoted
            table.writerow([*about, "x1", "y1", "x2", "y2"])
            for row in rows:
                x, y, width, height = row["bbox"]
                values = [csv_cell(v) if isinstance(v := row[key], str) else v for key in about]
                table.writerow([*values, x, y, round(x + width, 2), round(y + height, 2)])
            self._write("detections.csv", text.getvalue().replace("\r\n", "\n"))
        if "comp4" in self.formats:
            by_class = detections_by_class([found for *_, found in self.found], self.detector.classes)
            write_comp4(self.folder, SPLIT, by_class, [image_id for image_id, *_ in self.found])
        for name in [name for name in self.formats if name in FORMATS]:
            labels = f"labels_{name}"
            with write_folder(self.folder / labels) as folder:  # a partial folder would have to be moved away
                for path, content in label_files(name, self.labelled, self.detector.classes).items():
                    file = folder / Path(path).relative_to(labels)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content.encode(errors="surrogateescape"))

    def write_timing(self, left_out: int) -> None:
        """Write timing.json and log the time per image (see Stopwatch). left_out: number of unreadable images."""
        images, runs_on, watch = len(self.found), self.detector.network.runs_on, self.detector.watch
        seconds, work = ({stage: round(t, 6) for stage, t in of_all.items()} for of_all in (watch.seconds, watch.work))
        each, work_each = (
            {stage: round(t / max(images, 1), 6) for stage, t in of_all.items()} for of_all in (seconds, work)
        )
        timing = {
            "source": absolute(self.source),
            "device": runs_on,
            "images": images,
            "left_out": left_out,
            "seconds": seconds,
            "seconds_per_image": each,
            "work": work,
            "work_per_image": work_each,
        }
        self._write(TIMING, json.dumps(timing, indent=1) + "\n")
        beside = {stage: f" (waiting for threads that used {1000 * t:,.1f} ms)" for stage, t in work_each.items()}
        shown = ", ".join(f"{STAGES[stage]} {1000 * t:,.1f} ms{beside.get(stage, '')}" for stage, t in each.items())
        log.info("Time per image on %s: %s", runs_on, shown)

    def _write(self, name: str, content: str) -> None:
        # File names can contain bytes that are not valid UTF-8. surrogateescape restores these bytes.
        replace_file(self.folder / name, content.encode(errors="surrogateescape"))

"""What `fastrcnn detect` leaves in a folder: images with boxes, detections as JSON and CSV, times."""

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
from fastrcnn.files import replace_file
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.labels import FORMATS, Labelled, label_files
from fastrcnn.names import comp4_name
from fastrcnn.structures import Detections

log = logging.getLogger(__name__)
SPLIT = "detect"  # in the names of comp4 files
STAGES = {"proposals": "proposals", "network": "network", "nms": "suppression of duplicates"}
TIMING = "timing.json"  # where it names a source, the folder is one of ours


def folder_for(output: str | None, run: Path, source: str) -> Path:
    """The folder to write into: `output`, or one in the run's folder with the source's name that does not hold what was
    found in another source of that name."""
    if output is not None:
        return Path(output).expanduser()
    whole = absolute(source)
    plain = [part for part in Path(whole).parts if not any(letter in part for letter in "*?[")]
    named = Path(whole if Path(whole).exists() else str(Path(*plain)))
    base = run / "detect" / (named.stem or "pictures")
    folder, number = base, 1
    while folder.exists() and _timing(folder).get("source") != whole:
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def absolute(source: str) -> str:
    return str(Path(source).expanduser().absolute())


def _timing(folder: Path) -> dict[str, Any]:
    """What timing.json in a folder says, if there is one."""
    try:
        content = json.loads((folder / TIMING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Output:
    """A folder of detections, whose files take the place of what an earlier detect left there. It is made for the first
    of them.

    columns: what is known of each image or frame beside its id, in the CSV file. found: of the images or frames, in
    their order, the id, the values of `columns` and the detections.
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
        """formats: json, csv, comp4, or of labels.FORMATS, of the detections. images: names of the other files to
        write. inputs: the files to detect in.

        Raises UserError where a file to write is an input, or is there and was not written by an earlier detect, and
        for a class whose detections cannot have a comp4 file.
        """
        self.folder, self.source, self.columns, self.formats = folder, source, columns, formats
        self.detector = detector
        self.found: list[tuple[str, Sequence[Any], Detections]] = []
        self.drawn = 0  # of the detections
        self.labelled: list[Labelled] = []
        names = [*images, *(f"detections.{name}" for name in formats if name in ("json", "csv"))]
        if "comp4" in formats:
            check_comp4(SPLIT, detector.classes)
            names += [comp4_name(SPLIT, name) for name in detector.classes]
        for name in formats:
            if name in FORMATS and (folder / f"labels_{name}").exists():
                raise UserError(
                    f"{folder / f'labels_{name}'}: is there already, and may have been corrected by you. Move it "
                    "away, or choose another folder with output=FOLDER."
                )
        own = {path.resolve() for path in inputs}
        for name in names:
            if (folder / name).resolve() in own:
                raise UserError(f"output={folder}: {name} is one of the pictures to detect in. Choose another folder.")
        if "source" not in _timing(folder):
            for name in [*names, TIMING]:
                if (folder / name).exists():
                    raise UserError(
                        f"{folder / name}: is there already, and not from an earlier detect. Choose another folder "
                        "with output=FOLDER."
                    )

    def add(self, image_id: str, found: Detections, about: Sequence[Any]) -> None:
        """about: the values of `columns`. Raises UserError where the folder cannot be made."""
        if not self.found:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: cannot be made ({error.strerror}); choose another with output=FOLDER."
                ) from None
            self._write(TIMING, json.dumps({"source": absolute(self.source)}))
        self.found.append((image_id, about, found))

    def count_drawn(self, image_id: str, file: Path, size: Sequence[int], found: Detections, chosen: list[int]) -> None:
        """Counts the chosen detections of an image as drawn, and keeps them for label files. size: width and height."""
        self.drawn += len(chosen)
        if any(name in FORMATS for name in self.formats):
            every, (width, height) = list(found), size
            kept = [every[i] for i in chosen]
            self.labelled.append(Labelled(image_id, file, width, height, kept))

    def best_scores(self) -> np.ndarray:
        """The scores of all detections, the best first."""
        return -np.sort(-np.concatenate([np.zeros(0, np.float32), *(of_image.scores for _, _, of_image in self.found)]))

    def write_image(self, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB, written as PNG."""
        ok, data = cv2.imencode(".png", image[:, :, ::-1])
        assert ok
        replace_file(self.folder / name, data.tobytes())

    def write_detections(self) -> None:
        """Writes the detections in the formats asked for: detections.json, a COCO results file with more columns;
        detections.csv, with corners in place of width and height; comp4 files; label files of what is drawn."""
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
            table = csv.writer(text, lineterminator="\n")
            table.writerow([*about, "x1", "y1", "x2", "y2"])
            for row in rows:
                x, y, width, height = row["bbox"]
                table.writerow([*(row[key] for key in about), x, y, round(x + width, 2), round(y + height, 2)])
            self._write("detections.csv", text.getvalue())
        if "comp4" in self.formats:
            by_class = detections_by_class([found for *_, found in self.found], self.detector.classes)
            write_comp4(self.folder, SPLIT, by_class, [image_id for image_id, *_ in self.found])
        for name in [name for name in self.formats if name in FORMATS]:
            for path, content in label_files(name, self.labelled, self.detector.classes).items():
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                self._write(path, content)

    def write_timing(self, left_out: int) -> None:
        """Writes timing.json, and reports how long an image took; see Stopwatch. left_out: images that could not be
        read."""
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
        beside = {stage: f" of waiting ({1000 * t:,.1f} ms of work in other threads)" for stage, t in work_each.items()}
        shown = ", ".join(f"{STAGES[stage]} {1000 * t:,.1f} ms{beside.get(stage, '')}" for stage, t in each.items())
        log.info("time per image on %s: %s", runs_on, shown)

    def _write(self, name: str, content: str) -> None:
        # A file's name need not be text; what stands for its other bytes becomes these again.
        replace_file(self.folder / name, content.encode(errors="surrogateescape"))

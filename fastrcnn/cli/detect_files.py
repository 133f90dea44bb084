"""What detect leaves in a folder: pictures or a video, detections in the formats asked for, times."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from fastrcnn.inference.detector import Detector
    from fastrcnn.structures import Detections

SPLIT = "detect"  # in the names of comp4 files
STAGES = {"proposals": "proposals", "network": "network", "nms": "suppression of duplicates"}
TIMING = "timing.json"  # where it names a source, the folder is one of ours


def targets(formats: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Names of the files that hold the detections. Raises UserError for a class whose detections cannot have a
    comp4 file."""
    from fastrcnn.evaluation.result_files import check_comp4
    from fastrcnn.names import comp4_name

    names = [f"detections.{name}" for name in formats if name != "comp4"]
    if "comp4" in formats:
        check_comp4(SPLIT, classes)
        names += [comp4_name(SPLIT, name) for name in classes]
    return names


def folder_for(output: str | None, run: Path, source: str) -> Path:
    """The folder to write into: `output`, or one in the run's folder with the source's name that does not hold what was
    found in another source of that name."""
    if output is not None:
        return Path(output).expanduser()
    whole = absolute(source)
    assert whole is not None
    plain = [part for part in Path(whole).parts if not any(letter in part for letter in "*?[")]
    named = Path(whole if Path(whole).exists() else str(Path(*plain)))
    base = run / "detect" / (named.stem or "pictures")
    folder, number = base, 1
    while folder.exists() and _told(folder).get("source") != whole:
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def absolute(source: str | None) -> str | None:
    return None if source is None else str(Path(source).expanduser().absolute())


def _told(folder: Path) -> dict[str, Any]:
    """What timing.json says in a folder, if there is one."""
    try:
        told = json.loads((folder / TIMING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def claim(folder: Path, source: str | None, names: Sequence[str], sources: Sequence[Path]) -> None:
    """Makes the folder ready for files of these names, which take the place of what an earlier detect left there.

    Raises UserError where they would take the place of anything else, of the pictures themselves above all.
    """
    own = {path.resolve() for path in sources}
    for name in names:
        if (folder / name).resolve() in own:
            raise UserError(f"output={folder}: {name} is one of the pictures to detect in. Choose another folder.")
    if "source" not in _told(folder):
        for name in [*names, TIMING]:
            if (folder / name).exists():
                raise UserError(
                    f"{folder / name}: is there already, and not from an earlier detect. Choose another folder with "
                    "output=FOLDER."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another with output=FOLDER.") from None
    write(folder / TIMING, json.dumps({"source": absolute(source)}))


@dataclass
class Findings:
    """What was found so far: a row for each detection, and the images or frames in their order.

    known: what else `add` is told of each image or frame; columns of the CSV file.
    """

    classes: Sequence[str]
    known: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    found: list[Detections] = field(default_factory=list)

    def add(self, image_id: str, found: Detections, about: dict[str, Any]) -> None:
        """about: what else is known of the image or frame, by the names in `known`."""
        self.image_ids.append(image_id)
        self.found.append(found)
        for box, score, label, name in found:
            x1, y1, x2, y2 = (round(v, 2) for v in box)
            self.rows.append(
                {
                    "image_id": image_id,
                    **{key: about[key] for key in self.known},
                    "category": name,
                    "category_id": label,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "score": round(score, 5),
                }
            )

    def at_least(self, score: float) -> int:
        """How many detections have this score or more."""
        return sum(int((of_image.scores >= score).sum()) for of_image in self.found)

    @property
    def best(self) -> float | None:
        """The best score; None where nothing was found at all."""
        return max((float(of_image.scores.max()) for of_image in self.found if len(of_image)), default=None)

    def write(self, folder: Path, formats: Sequence[str]) -> None:
        """Writes the detections in the formats asked for, under the names that `targets` gives."""
        from fastrcnn.evaluation.result_files import write_comp4
        from fastrcnn.evaluation.voc_ap import detections_by_class

        if "json" in formats:
            write(folder / "detections.json", json.dumps(self.rows, indent=1) + "\n")
        if "csv" in formats:
            write(folder / "detections.csv", self._csv())
        if "comp4" in formats:
            write_comp4(folder, SPLIT, detections_by_class(self.found, self.classes), self.image_ids)

    def _csv(self) -> str:
        text = io.StringIO()
        about = ["image_id", *self.known, "category", "category_id"]
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*about, "score", "x1", "y1", "x2", "y2"])
        for row in self.rows:
            x, y, width, height = row["bbox"]
            corners = (x, y, round(x + width, 2), round(y + height, 2))
            table.writerow([*(row[key] for key in about), row["score"], *corners])
        return text.getvalue()


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all. Raises UserError where the disk does not take it."""
    from fastrcnn.files import replace_file

    # A file's name need not be text; what stands for its other bytes becomes these again.
    replace_file(path, content.encode(errors="surrogateescape") if isinstance(content, str) else content)


def write_timing(detector: Detector, folder: Path, source: str | None, images: int, left_out: int = 0) -> str:
    """Writes timing.json, and returns in words how long an image took."""
    seconds = {stage: round(of_all, 6) for stage, of_all in detector.watch.seconds.items()}
    each = {stage: round(of_all / max(images, 1), 6) for stage, of_all in seconds.items()}
    timing = {
        "source": absolute(source),
        "device": detector.runs_on,
        "images": images,
        "left_out": left_out,
        "seconds": seconds,
        "seconds_per_image": each,
    }
    write(folder / TIMING, json.dumps(timing, indent=1) + "\n")
    shown = ", ".join(f"{STAGES[stage]} {1000 * value:,.1f} ms" for stage, value in each.items())
    return f"time per image on {detector.runs_on}: {shown}"


def write_picture(path: Path, image: np.ndarray) -> None:
    """image: (H, W, 3) uint8 RGB, written as PNG."""
    import cv2

    ok, data = cv2.imencode(".png", image[:, :, ::-1])
    assert ok
    write(path, data.tobytes())

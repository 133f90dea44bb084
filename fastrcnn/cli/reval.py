"""The command `fastrcnn reval`."""

from __future__ import annotations

import logging
import shlex
from dataclasses import asdict
from pathlib import Path

from fastrcnn.config.compose import compose
from fastrcnn.config.values import as_yaml
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn reval detections=RUN/eval/VOC2007-test data=voc07 data.root=VOCdevkit",
    "fastrcnn reval detections=results/VOC2007/Main data=voc07 data.root=VOCdevkit split=test metric=voc07",
    "fastrcnn reval detections=results.json data=custom data.root=COCO data.test=[annotations/val.json] metric=coco",
]


def comp4_split(folder: Path, split: str) -> str:
    """Return the split in the names of a folder's comp4 files: `split`, or its end (`test` for `VOC2007-test`)."""
    short = split.rpartition("-")[2]
    return split if any(folder.glob(f"comp4_det_{split}_*.txt")) else short


def comp4_folder(folder: Path) -> Path:
    """Return the folder of the comp4 files: `folder`, or its only results/*/Main, which competition=true writes."""
    below = [] if any(folder.glob("comp4_det_*.txt")) else list(folder.glob("results/*/Main"))
    return below[0] if len(below) == 1 else folder


def main(arguments: list[str]) -> int:
    """Evaluate saved detections without a model. Print the AP, and write a report if `output` is set."""
    config = compose("reval", arguments)
    if config.detections is None:
        raise UserError(
            "Specify the detections with detections=FOLDER (comp4_det_*.txt files) or detections=FILE.json (COCO "
            "results)."
        )
    from fastrcnn.build import annotations
    from fastrcnn.evaluation.evaluate import compare, table
    from fastrcnn.evaluation.result_files import read_coco, read_comp4

    folder = None if config.output is None else Path(config.output).expanduser()
    if folder is not None:
        refuse_unusable(folder, f"output={folder}")
    metric = config.metric or config.data.metric
    splits = annotations.test_splits(config.data, config.split)
    names = annotations.classes(config.data, splits)
    samples = annotations.samples(config.data, splits, names, need_pictures=False)
    where = Path(config.detections).expanduser()
    split = annotations.split_name(splits)
    if where.suffix == ".json" and not where.is_dir():  # the output folder of a COCO split can end in .json
        numbers = annotations.category_ids(config.data, splits, names)
        found = read_coco(where, [s.file_id for s in samples], numbers)
        for name in [name for name in found if name not in names]:
            if unused := len(found.pop(name)):
                text = "%s: no annotation has the category '%s', so its detections (%d) are not evaluated"
                log.warning(text, where, name, unused)
    else:
        where = comp4_folder(where)
        found = read_comp4(where, comp4_split(where, split), names, [s.image_id for s in samples])
    if missing := [name for name in names if name not in found]:
        log.warning("These classes have no detection file and are not evaluated: %s", ", ".join(missing))
    result = compare(found, samples, names, metric)
    print(table(result))
    if folder is not None:
        from fastrcnn.report.report import write_evaluation
        from fastrcnn.training.tracking import environment

        title = f"{where.name} on {split}"
        about = [("Command", shlex.join(["fastrcnn", "reval", *arguments])), ("Configuration", as_yaml(asdict(config)))]
        report = write_evaluation(result, folder, split, title, about, environment())
        print(f"Wrote the results to {folder}\nreport: {report}")
    return 0

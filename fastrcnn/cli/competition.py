"""What `fastrcnn eval competition=true` does: detections of a split without truth, for an evaluation server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.schema import EvalConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.inference.detect import AnyNetwork


def compete(config: EvalConfig, model: AnyNetwork, names: list[str], run: Path) -> int:
    """Detects on the one split list asked for, and writes what its server takes. Computes no AP.

    For a data set in VOC layout results.tgz, for a COCO file its results JSON. Raises UserError.
    """
    from fastrcnn.build import annotations, datasets, machine, training
    from fastrcnn.data.annotations.coco_file import read_coco_file
    from fastrcnn.data.annotations.splits import find_split, is_coco
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.competition import check_voc_submission, write_voc_submission
    from fastrcnn.evaluation.evaluate import detect_all
    from fastrcnn.evaluation.result_files import write_coco
    from fastrcnn.files import refuse_unusable
    from fastrcnn.parallel import distributed

    if config.metric is not None:
        raise UserError(f"metric={config.metric}: with competition=true no AP is computed. Leave one of them out.")
    splits = annotations.test_splits(config.data, config.split)
    if len(splits) != 1:
        raise UserError(
            f"competition=true is for one split list, here are {len(splits)}: {', '.join(splits)}. "
            "Name one, as split=VOC2012/test."
        )
    source, listed, made = find_split(annotations.root(config.data), splits[0])
    if made:
        raise UserError(
            f"{source}: '{splits[0]}' is no list of this data set, but a part of it that would be chosen here. For "
            "competition=true name a list of ImageSets/Main, or a COCO file below data.root, as split=FILE.json."
        )
    numbers = annotations.category_ids(config.data, splits, names)
    if strangers := [name for name in names if name not in numbers]:
        raise UserError(
            f"{source}: has no category named {', '.join(strangers)}, which the model detects. "
            f"It has: {', '.join(read_coco_file(source).categories.values())}."
        )
    default = run / "eval" / annotations.split_name(splits)
    folder = Path(config.output).expanduser() if config.output else default
    refuse_unusable(folder, f"output={folder}")
    if not is_coco(source):
        check_voc_submission(splits[0].rpartition("/")[2], names, listed)  # before the work
    device = machine.device(config.runtime)
    test_set = datasets.test_set(config.data, names, config.split, truth=False)
    samples, found = detect_all(
        model,
        detection_loader(test_set, workers=machine.workers(config.runtime)),
        len(test_set),
        names,
        training.detection(config.detection, model.classifier),
        machine.precision(config.runtime, device),
    )
    if not distributed.leads():
        return 0
    ids = [sample.image_id for sample in samples]
    if is_coco(source):
        path = folder / f"detections_{coco_split(splits[0])}_results.json"
        written = write_coco(path, found, [s.file_id for s in samples], numbers)
        following = "Zip this file and hand it in at the data set's evaluation server"
    else:
        parts = splits[0].split("/")  # VOC2012/test, or test below VOC2012
        year = parts[-2] if len(parts) > 1 else source.resolve().name
        path, written = write_voc_submission(folder, year, parts[-1], found, ids)
        following = "Hand in this archive at the data set's evaluation server (VOC: competition comp4)"
    total = sum(len(of_class) for of_class in found.values())
    print(f"{total} detections of {len(names)} classes in {len(ids)} images; no AP, since the truth was not looked at")
    print(f"written to {written}")
    print(f"{following}, or where you have the truth: fastrcnn reval detections={path} split={splits[0]} data.root=...")
    return 0


def coco_split(split: str) -> str:
    """The split's part of a results file's name: test-dev2017 of annotations/image_info_test-dev2017.json."""
    name = split.rpartition("/")[2]
    return Path(name).stem.rpartition("_")[2] if name.lower().endswith(".json") else name

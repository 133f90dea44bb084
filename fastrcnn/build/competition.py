"""What `competition=true` asks for: the one split list, where its detections go, and in which form."""

from __future__ import annotations

from pathlib import Path

from fastrcnn.build.annotations import category_ids, root, split_name, test_splits
from fastrcnn.config.schema import EvalConfig
from fastrcnn.data.annotations.coco_file import read_coco_file
from fastrcnn.data.annotations.splits import find_split, is_coco
from fastrcnn.errors import UserError
from fastrcnn.evaluation.competition import Submission, check_voc_submission
from fastrcnn.files import refuse_unusable


def submission(config: EvalConfig, names: list[str], run: Path) -> Submission:
    """The submission of detections of the classes. Raises UserError, before the work, where it cannot be made."""
    if config.metric is not None:
        raise UserError(f"metric={config.metric}: with competition=true no AP is computed. Leave one of them out.")
    splits = test_splits(config.data, config.split)
    if len(splits) != 1:
        raise UserError(
            f"competition=true is for one split list, here are {len(splits)}: {', '.join(splits)}. "
            "Name one, as split=VOC2012/test."
        )
    source, listed, made = find_split(root(config.data), splits[0])
    if made:
        raise UserError(
            f"{source}: '{splits[0]}' is no list of this data set, but a part of it that would be chosen here. For "
            "competition=true name a list of ImageSets/Main, or a COCO file below data.root, as split=FILE.json."
        )
    numbers = category_ids(config.data, splits, names)
    if strangers := [name for name in names if name not in numbers]:
        raise UserError(
            f"{source}: has no category named {', '.join(strangers)}, which the model detects. "
            f"It has: {', '.join(read_coco_file(source).categories.values())}."
        )
    default = run / "eval" / split_name(splits)
    folder = Path(config.output).expanduser() if config.output else default
    refuse_unusable(folder, f"output={folder}")
    year, _, split = splits[0].rpartition("/")  # VOC2012/test, or test below VOC2012
    if is_coco(source):  # test-dev2017 of annotations/image_info_test-dev2017.json
        short = Path(split).stem.rpartition("_")[2] if split.lower().endswith(".json") else split
        return Submission(folder, splits[0], short, "", numbers)
    check_voc_submission(split, names, listed)
    return Submission(folder, splits[0], split, year.rpartition("/")[2] or source.resolve().name, None)

"""The command `fastrcnn compare`."""

from __future__ import annotations

import logging
from pathlib import Path

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import CompareConfig
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable

log = logging.getLogger(__name__)
EXAMPLES = [
    "fastrcnn compare outputs/train/RUN outputs/train/OTHER_RUN",
    "fastrcnn compare RUN/eval/VOC2007-test OTHER_RUN/eval/VOC2007-test output=compared",
]


def main(arguments: list[str]) -> int:
    """Compare each evaluation with the first one. Print a table, and write compare.html."""
    plain = [a for a in arguments if "=" not in a or Path(a).is_dir()]
    config: CompareConfig = compose("compare", [a for a in arguments if a not in plain])
    given = [*plain, *config.runs]
    if len(given) < 2:
        raise UserError("Specify two to five runs or folders of evaluations: fastrcnn compare RUN OTHER_RUN")
    from fastrcnn.evaluation import matches
    from fastrcnn.evaluation.comparison import compare_runs, table
    from fastrcnn.report.compare import write_comparison

    folder = Path(config.output).expanduser()
    refuse_unusable(folder, f"output={folder}")
    runs = {name: matches.read(evaluation_folder(name, config.split)) for name in given}
    found = compare_runs(runs, config.resamples, config.seed)
    path = write_comparison(found, folder)
    print(table(found))
    print(f"page: {path}")
    return 0


def evaluation_folder(name: str, split: str | None) -> Path:
    """Return the folder of an evaluation. `name` is the path of this folder, of a run, or of a folder of runs.

    In a run, the evaluation on `split` is used, or the only evaluation if `split` is None. In a folder of runs
    (outputs/NAME), the newest run with an evaluation is used. Raises UserError if there is no such evaluation, or if
    `split` is None and there are several.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"{name}: this folder does not exist. Specify a run or the folder of an evaluation.")
    if (folder / "metrics.json").is_file():
        return folder
    found = sorted(p.parent for p in folder.glob("eval/*/metrics.json"))
    runs = {p.parents[2] for p in folder.glob("*/eval/*/metrics.json")}
    if not found and runs:
        from fastrcnn.training.tracking import newest_first

        newest = newest_first(runs)[0]
        log.info("%s: using the newest run, %s", name, newest.name)
        return evaluation_folder(str(newest), split)
    if not found:
        raise UserError(
            f"{name}: no evaluation found (metrics.json or eval/SPLIT/metrics.json). Create one with: "
            f"fastrcnn eval checkpoint={name}"
        )
    names = [p.name for p in found]
    if split is not None and split not in names:
        raise UserError(f"{name}: no evaluation on split={split}. Available splits: {', '.join(names)}.")
    if split is None and len(found) > 1:
        raise UserError(f"{name}: this run has evaluations on {', '.join(names)}. Choose one of them with split=NAME.")
    return found[0] if split is None else folder / "eval" / split

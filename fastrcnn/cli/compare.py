"""fastrcnn compare"""

from __future__ import annotations

import logging
from pathlib import Path

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import CompareConfig
from fastrcnn.errors import UserError

log = logging.getLogger(__name__)
EXAMPLES = [
    "fastrcnn compare outputs/voc07/RUN outputs/voc07/OTHER_RUN",
    "fastrcnn compare RUN/eval/VOC2007-test OTHER_RUN/eval/VOC2007-test output=compared",
]


def main(arguments: list[str]) -> int:
    """Compares evaluations with the first: a table, and compare.html."""
    plain = [a for a in arguments if "=" not in a or Path(a).is_dir()]
    config: CompareConfig = compose("compare", [a for a in arguments if a not in plain])
    given = [*plain, *config.runs]
    if len(given) < 2:
        raise UserError("which runs? fastrcnn compare RUN RUN, two to five runs or folders of evaluations.")
    from fastrcnn.evaluation import matches
    from fastrcnn.evaluation.comparison import compare_runs, table
    from fastrcnn.report.compare import write_comparison

    runs = {name: matches.read(evaluation_folder(name, config.split)) for name in given}
    found = compare_runs(runs, config.resamples, config.seed)
    path = write_comparison(found, Path(config.output).expanduser())
    print(table(found))
    print(f"page: {path}")
    return 0


def evaluation_folder(name: str, split: str | None) -> Path:
    """The folder of the evaluation that a user means: the folder itself, or of a run the one in eval/. A folder of runs
    (outputs/NAME) means its newest run that has an evaluation.

    Raises UserError where there is none, or several of which `split` names none.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"{name}: there is no such folder. Name a run, or the folder of an evaluation.")
    if (folder / "metrics.json").is_file():
        return folder
    found = sorted(p.parent for p in folder.glob("eval/*/metrics.json"))
    runs = {p.parents[2] for p in folder.glob("*/eval/*/metrics.json")}
    if not found and runs:
        newest = max(runs, key=lambda run: ((run / "eval").stat().st_mtime_ns, run))
        log.info("%s: its newest run is %s", name, newest.name)
        return evaluation_folder(str(newest), split)
    if not found:
        raise UserError(
            f"{name}: has no evaluation, neither metrics.json nor eval/SPLIT/metrics.json. Make one: "
            f"fastrcnn eval checkpoint={name}"
        )
    names = [p.name for p in found]
    if split is not None and split not in names:
        raise UserError(f"{name}: has no evaluation on split={split}. There are: {', '.join(names)}.")
    if split is None and len(found) > 1:
        raise UserError(f"{name}: has several evaluations, {', '.join(names)}. Say which by split=NAME.")
    return found[0] if split is None else folder / "eval" / split

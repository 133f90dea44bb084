"""What compress and svm share: a checkpoint that is made from another one, and the mAP before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn import files
from fastrcnn.build.checkpoints import Trained, run_of
from fastrcnn.config.schema import CompressConfig, SvmConfig
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable

if TYPE_CHECKING:
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.inference.network import Network
    from fastrcnn.settings import DetectionSettings


def output_file(output: str | None, path: Path, default: str) -> tuple[Path, str]:
    """The file to write, `output` or `default` below the folder of the run that `path` is the checkpoint of, in a
    folder of its own, so that what is evaluated from it lies beside it; and the digest of `path`, for write.

    Raises UserError where it is there already and was not made of this checkpoint, where it cannot be written, or where
    training would take it for one of its own.
    """
    file = run_of(path) / default if output is None else Path(output).expanduser()
    if file.suffix != ".pt":
        raise UserError(f"output={file}: should be the name of a file that ends in .pt.")
    if file.parent.name == "checkpoints":
        raise UserError(f"output={file}: a run keeps and removes its own checkpoints there; choose another folder.")
    refuse_unusable(file.parent, f"output={file}")
    source = files.digest(path)
    files.refuse_existing(file, source)
    return file, source


def write(made: Trained, mean_ap: float | None, output: Path, source: str) -> None:
    """Writes the checkpoint `made` of the file with the digest `source`, its mAP 0 to 1 or None. Raises UserError."""
    from fastrcnn.training import checkpoint

    best = -1.0 if mean_ap is None else mean_ap
    content = {"step": made.step, "best": best, "classes": made.classes, "config": made.config, "model": made.state}
    whole = checkpoint.packed(content)
    with files.write_derived(output, source) as part:
        part.write_bytes(whole)


def mean_ap(
    config: CompressConfig | SvmConfig,
    network: Network,
    test_set: DetectionDataset | None,
    names: list[str],
    settings: DetectionSettings,
) -> float | None:
    """mAP, 0 to 1; None without a test set, and where no class has truth."""
    from fastrcnn.build import machine
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.inference.evaluate import evaluate

    if test_set is None:
        return None
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    result = evaluate(network, batches, len(test_set), names, config.data.metric, settings)
    assert result is not None, "in the first process, which this one is"
    return result.ap.mean


def ap_line(
    config: CompressConfig | SvmConfig, form: str, before: float | None, after: float | None, unmeasured: str
) -> str:
    """What is said of two mAPs, 0 to 1; form: with places for both. unmeasured: why there are none."""
    from fastrcnn.build import annotations

    if before is None or after is None:
        return f"mAP: not measured, as {unmeasured}"
    split = annotations.split_name(annotations.test_splits(config.data, config.split))
    both = form.format(f"{100 * before:.2f}", f"{100 * after:.2f}")
    return f"mAP on {split}: {both} ({100 * (after - before):+.2f} points)"

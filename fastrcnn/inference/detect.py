"""Run a network on batches of images and return detections in pixels of the original images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from fastrcnn.errors import UserError
from fastrcnn.inference.network import Network
from fastrcnn.memory import advise, detection_advice
from fastrcnn.model.postprocess import best_boxes, entering_scores
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, Detections, Sample


@dataclass
class Stopwatch:
    """Measured times, in seconds, of the stages of detection: "proposals", "network" and "nms".

    seconds: wall-clock time that the detecting thread spent in each stage. The stages do not overlap. A GPU is
        synchronised at the start and at the end of a stage. In the stage "proposals", the thread waits for proposals.
    work: CPU time that other threads spent on a stage. It is not included in `seconds`.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def add_work(self, name: str, seconds: float) -> None:
        self.work[name] = self.work.get(name, 0.0) + seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def detect(
    network: Network,
    pyramids: Iterable[Sequence[Batch]],
    settings: DetectionSettings,
    watch: Stopwatch | None = None,
) -> Iterator[tuple[Sample, Detections]]:
    """Yield each image with its detections, in order.

    pyramids: batches of images at one or more scales, see Network.outputs. watch: measures the times of
    the stages. Raises UserError if an output of the network is not finite, or if memory runs out.
    """

    def advice(pyramid: Sequence[Batch]) -> str:
        scales = [(level.images.shape[2], level.images.shape[3]) for level in pyramid]
        rois = max(len(p) for p in pyramid[0].proposals)
        return detection_advice(scales, len(pyramid[0].samples), rois, settings.rois_per_chunk)

    for pyramid in pyramids:
        with advise("detection", network.device, partial(advice, pyramid)):
            found = detect_batch(network, pyramid, settings, watch)
        yield from zip(pyramid[0].samples, found, strict=True)


@torch.no_grad()
def detect_batch(
    network: Network, pyramid: Sequence[Batch], settings: DetectionSettings, watch: Stopwatch | None = None
) -> list[Detections]:
    """Return the detections of each image in a batch, as tensors on the CPU.

    watch: measures the stages "network" and "nms". Raises UserError if the outputs of the network are not finite.
    """
    watch = watch or Stopwatch(torch.device("cpu"))
    with watch.stage("network"):
        outputs = network.outputs(pyramid, settings.rois_per_chunk, settings.box_regression)
    results = []
    with watch.stage("nms"):
        for sample, (scores, boxes) in zip(pyramid[0].samples, outputs, strict=True):
            if not (scores.isfinite().all() and boxes.isfinite().all()):
                raise UserError(
                    f"{sample.image_id or 'detection'}: the network returned scores or boxes that are not finite. Its "
                    "weights are damaged or too large. Use another checkpoint, or set runtime.precision=float32."
                )
            found = best_boxes(scores, boxes, settings)
            whole = settings.average_per_class is not None
            entered = entering_scores(scores, settings.max_per_class).cpu() if whole else None
            results.append(Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu(), entered))
    return results

"""Maps of the frozen layers, computed once for each view of an image and kept in files.

Where the first layers of the trunk are not trained, what they make of an image is the same in every epoch. Each view
has a file of its own, in half precision: bfloat16 where the training computes in it, so that nothing is lost, else
float16. Maps that are not kept, because there is no room, are rounded as well, so what is learned does not depend on
the room.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import pad, pixels, views_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.files import remove_parts
from fastrcnn.inference.network import autocast
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.parallel import distributed
from fastrcnn.progress import progress
from fastrcnn.structures import Batch, Sample, View

log = logging.getLogger(__name__)
SPARE = 1e9  # bytes that are left free on the disk
LARGEST_HEAD = 4096  # bytes of a file before its numbers


@dataclass(frozen=True)
class MapFiles:
    """A folder with a file for each view whose maps are kept. What finds one spoilt, or gone, has none."""

    folder: Path

    def path(self, sample: Sample, view: View) -> Path:
        """The file for a view of the image as it is now: another one when the image has changed."""
        with suppress(OSError):  # which reading it will tell
            status = sample.path.stat()
            what = f"{sample.image_id}\0{view}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
            return self.folder / hashlib.sha256(what).hexdigest()[:32]
        return self.folder / "none"

    def has(self, sample: Sample, view: View) -> bool:
        """Whether the maps are kept."""
        return self.path(sample, view).exists()

    def read(self, sample: Sample, view: View) -> list[Tensor] | None:
        """The maps (C, H, W) that are kept, or None."""
        try:
            content = bytearray(self.path(sample, view).read_bytes())
            head, _, _ = content.partition(b"\n")
            described = json.loads(head)
            values = memoryview(content)[len(head) + 1 :]
            if zlib.crc32(values) != described["crc32"]:  # a machine that stopped may leave a file half written
                return None
            numbers = torch.frombuffer(values, dtype=getattr(torch, described["dtype"]))
            shapes = [torch.Size(shape) for shape in described["shapes"]]
            parts = numbers.split([shape.numel() for shape in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def write(self, sample: Sample, view: View, maps: Sequence[Tensor]) -> None:
        """Keeps the maps. Raises OSError."""
        values: memoryview = torch.cat([m.flatten() for m in maps]).view(torch.uint8).numpy().data
        described = {
            "crc32": zlib.crc32(values),
            "dtype": str(maps[0].dtype).removeprefix("torch."),
            "shapes": [list(m.shape) for m in maps],
        }
        head = json.dumps(described).encode() + b"\n"
        part = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                file.write(head)
                file.write(values)
            part.replace(self.path(sample, view))
        finally:
            part.unlink(missing_ok=True)


class Maps:
    """The maps of the frozen layers of a model, as training and the evaluations within it ask for them.

    room: bytes that this process may still write; full: whether there was something that they did not hold.
    """

    def __init__(self, folder: Path, model: FastRCNN, dtype: torch.dtype, budget: float) -> None:
        """budget: bytes in `folder`, which is made, of all processes together. The model is on its device."""
        self.model, self.dtype = model, dtype
        self.kept_as = dtype if dtype == torch.bfloat16 else torch.float16
        self.files = MapFiles(folder / digest(model, self.kept_as))
        self.full = False
        self.files.folder.mkdir(parents=True, exist_ok=True)
        if distributed.leads():
            for other in folder.iterdir():  # of the same run in another precision
                if other != self.files.folder:
                    shutil.rmtree(other, ignore_errors=True)
            remove_parts(self.files.folder)
        sizes = [entry.stat().st_size for entry in os.scandir(self.files.folder)] if distributed.leads() else []
        kept = distributed.from_first(sum(sizes))
        free = shutil.disk_usage(folder).free - SPARE
        if kept + free < budget:
            log.info("runtime.cache: %.2g GB of the disk are free for it, in %s", max(0, free) / 1e9, folder)
        self.room = (min(budget - kept, free)) / distributed.size()

    def __call__(self, batch: Batch) -> list[Tensor]:
        """What FastRCNN.features takes in place of the images of the batch, on the model's device; padded with 0 at the
        right and the bottom. Raises UserError as `read_sample` does."""
        return self._together([self._of(batch, i) for i in range(len(batch.samples))])

    def fresh(self, batch: Batch) -> list[Tensor]:
        """The same, all computed whether they are kept or not, and not kept. The batch has all images' pixels."""
        return self._together([self.compute(_image(batch, i), sample) for i, sample in enumerate(batch.samples)])

    def _together(self, found: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        own = self.model.pixel_mean  # where the model is, and in which precision it is without autocast
        dtype = self.dtype if self.dtype == self.kept_as else own.dtype
        return [pad(maps)[0].to(own.device, dtype) for maps in zip(*found, strict=True)]

    def _of(self, batch: Batch, i: int) -> list[Tensor]:
        """The maps (C, H, W) of one image of the batch, on the CPU, in half precision."""
        sample, view = batch.samples[i], batch.views[i]
        if (kept := self.files.read(sample, view)) is not None:
            return kept
        maps = self.compute(_image(batch, i) if batch.sizes[i, 0] else pixels(sample, view), sample)
        size = sum(m.nbytes for m in maps) + LARGEST_HEAD
        if size > self.room:
            self.full = True
        else:
            try:
                self.files.write(sample, view, maps)
                self.room -= size
            except OSError as error:
                log.warning("%s: no more maps are kept there (%s)", self.files.folder, error.strerror)
                self.full, self.room = True, 0.0
        return maps

    @torch.no_grad()
    def compute(self, image: Tensor, sample: Sample) -> list[Tensor]:
        """The maps (C, H, W) of an image (3, H, W), on the CPU, in half precision. `sample` is for the message."""
        device = self.model.delta_mean.device
        with autocast(device, self.dtype):
            maps = self.model.frozen_maps(image[None].contiguous().to(device))
        halves = [m[0].to("cpu", self.kept_as).contiguous() for m in maps]
        if not all(bool(m.isfinite().all()) for m in halves):
            kind = str(self.kept_as).removeprefix("torch.")
            raise UserError(
                f"{sample.path}: the frozen layers give values that {kind} cannot hold. runtime.cache=0 trains without "
                "keeping maps."
            )
        return halves

    def fill(
        self, dataset: DetectionDataset, chosen: Sequence[tuple[int, View]], workers: int, stop: Callable[[], bool]
    ) -> None:
        """Computes and keeps the maps of the chosen views (number of the image, view), until `stop` says so or there is
        no more room. In a group of processes each does a share."""
        self.model.eval()
        own, begun = distributed.share(chosen), self.room
        loader = views_loader(dataset, own, workers)
        for done, (batch,) in enumerate(progress(loader, len(own), "computing maps", "map")):
            self(batch)
            if self.full:
                what = "runtime.cache: there is room for the maps of %d of %d views; the others are computed each time"
                log.warning(what, done, len(own))
                break
            if done == 0 and begun > self.room:
                log.info("they take about %.2g GB", (begun - self.room) * len(chosen) / 1e9)
            if stop():
                break


def _image(batch: Batch, i: int) -> Tensor:
    """An image (3, H, W) of the batch without its padding."""
    height, width = batch.sizes[i].tolist()
    return batch.images[i, :, :height, :width]


def open_maps(
    folder: Path, model: FastRCNN, dtype: torch.dtype, budget: float, augmentation: Augmentation
) -> Maps | None:
    """The maps of a training, in files in the folder; None where they cannot be kept, or are not to: a budget of 0."""
    below, first = model.frozen_layers
    reason = None
    if not below and first == model.trunk.network.conv_names[0]:
        reason = "model.finetune_from leaves no layer of the trunk as it is"
    elif augmentation.colour:
        reason = "data.colour shows each image in other colours each time"
    elif augmentation.crop:
        reason = "data.crop shows another part of an image each time"
    if budget and reason:
        log.warning("runtime.cache: no maps are kept: %s", reason)
    return None if reason or not budget else Maps(folder, model, dtype, budget)


def digest(model: FastRCNN, dtype: torch.dtype) -> str:
    """Hexadecimal digits that name what maps depend on beside the image."""
    below, first = model.frozen_layers
    names = model.trunk.network.conv_names
    frozen = names if first is None else names[: names.index(first)]
    layers = [*model.trunk.convs.items(), *model.trunk.norms.items()]
    tensors = [t for name, layer in layers if name in frozen for t in layer.state_dict().values()]
    result = hashlib.sha256(f"{model.trunk.network.name} {below} {first} {dtype}".encode())
    for tensor in (*tensors, model.pixel_mean, model.pixel_std):
        result.update(tensor.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]

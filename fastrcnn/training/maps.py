"""Feature maps of the frozen layers, computed once for each view of an image and cached in files.

A view is an image after a given crop, flip, scaling and colour change. If the first layers of the trunk are frozen,
their output for a view is the same in every epoch. Each view has its own file, in half precision: bfloat16 if training
uses bfloat16 (this is lossless), and float16 otherwise. If the disk space runs out, the remaining maps are not cached,
but they are rounded in the same way. The trained weights therefore do not depend on the available disk space.
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
SPARE = 1e9  # bytes of disk space that are left free
LARGEST_HEAD = 4096  # maximum size of a file's header in bytes


@dataclass(frozen=True)
class MapFiles:
    """A folder with a file for each view of an image whose maps are cached. A damaged file is treated as missing.

    view: the crop, flips, scaling and colour change of the image.
    """

    folder: Path

    def path(self, sample: Sample, view: View) -> Path:
        """Return the path of the file for a view of an image. If an image file changes, the path changes too."""
        with suppress(OSError):  # code that reads the image reports the error
            what = f"{sample.image_id}\0{view}"
            for path in [tile.sample.path for tile in sample.tiles] or [sample.path]:
                status = path.stat()
                what += f"\0{status.st_size}\0{status.st_mtime_ns}"
            return self.folder / hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / "none"

    def has(self, sample: Sample, view: View) -> bool:
        """Return whether a file for the maps of a view of an image exists."""
        return self.path(sample, view).exists()

    def read(self, sample: Sample, view: View) -> list[Tensor] | None:
        """Read the cached maps (C, H, W) of a view of an image. Return None if their file is missing or damaged."""
        try:
            content = bytearray(self.path(sample, view).read_bytes())
            head, _, _ = content.partition(b"\n")
            described = json.loads(head)
            values = memoryview(content)[len(head) + 1 :]
            if zlib.crc32(values) != described["crc32"]:  # a crash of the machine can leave an incomplete file
                return None
            numbers = torch.frombuffer(values, dtype=getattr(torch, described["dtype"]))
            shapes = [torch.Size(shape) for shape in described["shapes"]]
            parts = numbers.split([shape.numel() for shape in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def write(self, sample: Sample, view: View, maps: Sequence[Tensor]) -> None:
        """Write the maps of a view of an image to a file atomically. Raises OSError if the file cannot be written."""
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
    """Computes and caches the feature maps of a model's frozen layers, for training and for evaluations during it.

    room: number of bytes that this process can still write. full: whether some maps were not cached for lack of room.
    """

    def __init__(self, folder: Path, model: FastRCNN, dtype: torch.dtype, budget: float) -> None:
        """Create `folder`, or delete the maps in it that other layers or another precision have computed.

        budget: maximum size of the folder in bytes, for all processes together. The model must be on its device.
        """
        self.model, self.dtype = model, dtype
        self.kept_as = dtype if dtype == torch.bfloat16 else torch.float16
        self.files = MapFiles(folder / digest(model, self.kept_as))
        self.full = False
        self.files.folder.mkdir(parents=True, exist_ok=True)
        if distributed.leads():
            for other in folder.iterdir():  # maps of another precision or other frozen layers
                if other != self.files.folder:
                    shutil.rmtree(other, ignore_errors=True)
            remove_parts(self.files.folder)
        sizes = [entry.stat().st_size for entry in os.scandir(self.files.folder)] if distributed.leads() else []
        kept = distributed.from_first(sum(sizes))
        free = shutil.disk_usage(folder).free - SPARE
        if kept + free < budget:
            text = "runtime.cache: only %.3g GB of disk space are available for feature maps in %s"
            log.info(text, max(0, free) / 1e9, folder)
        self.room = (min(budget - kept, free)) / distributed.size()

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return the feature maps of a batch on the model's device. FastRCNN.features accepts them instead of images.

        Maps that are not in the cache are computed, and cached if there is room. All maps are padded with 0 at the
        right and the bottom. Raises UserError if an image cannot be read, or a value does not fit in half precision.
        """
        return self._together([self._of(batch, i) for i in range(len(batch.samples))])

    def fresh(self, batch: Batch) -> list[Tensor]:
        """Compute the feature maps of a batch without the cache. The batch must have all pixels."""
        return self._together([self.compute(_image(batch, i), sample) for i, sample in enumerate(batch.samples)])

    def _together(self, found: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        own = self.model.pixel_mean  # has the model's device, and its dtype without autocast
        dtype = self.dtype if self.dtype == self.kept_as else own.dtype
        return [pad(maps)[0].to(own.device, dtype) for maps in zip(*found, strict=True)]

    def _of(self, batch: Batch, i: int) -> list[Tensor]:
        """Read or compute the feature maps (C, H, W) of one image of the batch, on the CPU, in half precision."""
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
                log.warning("%s: stopped caching feature maps (%s)", self.files.folder, error.strerror)
                self.full, self.room = True, 0.0
        return maps

    @torch.no_grad()
    def compute(self, image: Tensor, sample: Sample) -> list[Tensor]:
        """Compute the feature maps (C, H, W) of an image (3, H, W). Return them on the CPU in half precision.

        Raises UserError if half precision cannot represent a value. sample: the image, for the message.
        """
        device = self.model.delta_mean.device
        with autocast(device, self.dtype):
            maps = self.model.frozen_maps(image[None].contiguous().to(device))
        halves = [m[0].to("cpu", self.kept_as).contiguous() for m in maps]
        if not all(bool(m.isfinite().all()) for m in halves):
            kind = str(self.kept_as).removeprefix("torch.")
            name = sample.image_id if sample.tiles else sample.path
            raise UserError(
                f"{name}: the frozen layers compute values that {kind} cannot represent. Set runtime.cache=0 to "
                "train without cached feature maps."
            )
        return halves

    def fill(
        self, dataset: DetectionDataset, chosen: Sequence[tuple[int, View]], workers: int, stop: Callable[[], bool]
    ) -> None:
        """Compute and cache the feature maps of `chosen`, until `stop` returns true or there is no space left.

        chosen: pairs of an image's index in `dataset` and a view (crop, flips, scale and colour change) of that image.
        If there are several processes, each computes a part. workers: number of processes that load images.
        """
        self.model.eval()
        own, begun = distributed.share(chosen), self.room
        loader = views_loader(dataset, own, workers)
        for done, (batch,) in enumerate(progress(loader, len(own), "feature maps", "map")):
            self(batch)
            if self.full:
                text = "runtime.cache: only %d of %d feature maps fit in the cache; all others are computed when needed"
                log.warning(text, done, len(own))
                break
            if done == 0 and begun > self.room:
                log.info("The feature maps need about %.3g GB of disk space", (begun - self.room) * len(chosen) / 1e9)
            if stop():
                break


def _image(batch: Batch, i: int) -> Tensor:
    """Return an image (3, H, W) of the batch without its padding."""
    height, width = batch.sizes[i].tolist()
    return batch.images[i, :, :height, :width]


def open_maps(
    folder: Path, model: FastRCNN, dtype: torch.dtype, budget: float, augmentation: Augmentation
) -> Maps | None:
    """Create a run's feature map cache in `folder`. Return None if no map can be reused or if `budget` (bytes) is 0."""
    below, first = model.frozen_layers
    reason = None
    if not below and first == model.trunk.network.conv_names[0]:
        reason = "model.finetune_from freezes no convolution of the network"
    elif augmentation.colour:
        reason = "data.colour changes the colours of an image differently each time"
    elif augmentation.crop:
        reason = "data.crop selects a different part of an image each time"
    if budget and reason:
        log.warning("runtime.cache: feature maps are not cached, because %s", reason)
    return None if reason or not budget else Maps(folder, model, dtype, budget)


def digest(model: FastRCNN, dtype: torch.dtype) -> str:
    """Return a hexadecimal digest of everything that the feature maps depend on, except the image."""
    below, first = model.frozen_layers
    names = model.trunk.network.conv_names
    frozen = names if first is None else names[: names.index(first)]
    layers = [*model.trunk.convs.items(), *model.trunk.norms.items()]
    tensors = [t for name, layer in layers if name in frozen for t in layer.state_dict().values()]
    result = hashlib.sha256(f"{model.trunk.network.name} {below} {first} {dtype}".encode())
    for tensor in (*tensors, model.pixel_mean, model.pixel_std):
        result.update(tensor.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]

"""The paper's three networks, up to the map that RoIs are pooled from: S, M and L of its tables.

L is VGG16 (Simonyan and Zisserman, 2014, configuration D) without the fifth pooling; M is VGG_CNN_M_1024 (Chatfield and
others, 2014); S is CaffeNet, the author's AlexNet (Jia and others, 2014). Layers have the names of the author's files,
models/*/train.prototxt. All poolings round up as Caffe's do: a 600 x 1000 image gives VGG16 a 38 x 63 map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrcnn.model.recompute import recompute
from fastrcnn.model.strips import Window, in_strips

STRIP_VALUES = 4_000_000  # of the largest map of a strip, on a CPU; rows at the edges of strips are computed twice


class Pool(Window):
    """Max pooling, rounding up."""


@dataclass(frozen=True)
class ResponseNorm:
    """Local response normalisation over five channels, exponent .75 (Krizhevsky and others, 2012, section 3.3)."""

    alpha: float
    k: float


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. before: what happens to the map of the layer below first."""

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    before: tuple[Pool | ResponseNorm, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network by its layers."""

    convs: tuple[Conv, ...]
    fc6: int  # features
    fc7: int
    least_side: int = 1  # images with a shorter side are padded with 0 to it, or no cell would be left

    @property
    def conv_names(self) -> tuple[str, ...]:
        return tuple(conv.name for conv in self.convs)

    @property
    def stages(self) -> list[tuple[Conv, ...]]:
        """The convolutions, parted where something happens in between."""
        starts = [i for i, conv in enumerate(self.convs) if conv.before or i == 0]
        return [self.convs[a:b] for a, b in zip(starts, [*starts[1:], len(self.convs)], strict=True)]

    @property
    def finetune_from(self) -> tuple[str, ...]:
        """Layers at which training may begin; what lies before stays as it is."""
        return (*self.conv_names, "fc6", "fc7", "bbox_pred")

    def above(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The convolutions above all that are wanted."""
        return self.conv_names[1 + max(self.conv_names.index(name) for name in wanted) :]

    def stride_of(self, name: str) -> int:
        """Pixels of the image from one cell to the next of the map that the convolution `name` gives."""
        convs = self.convs[: self.conv_names.index(name) + 1]
        pools = [step for conv in convs for step in conv.before if isinstance(step, Pool)]
        return math.prod(conv.stride for conv in convs) * math.prod(pool.stride for pool in pools)

    def channels_of(self, name: str, width: float) -> int:
        """Channels of the map that the convolution `name` gives where all channels are multiplied by `width`."""
        unit = max(conv.groups for conv in self.convs)  # groups must come out even, above and below
        return unit * max(1, round(self.convs[self.conv_names.index(name)].channels * width / unit))

    def features_of(self, width: float) -> tuple[int, int]:
        """Features of fc6 and fc7, multiplied by `width` as well."""
        return max(1, round(self.fc6 * width)), max(1, round(self.fc7 * width))


HALF = Pool(2, 2)
VGG16 = Network(
    tuple(
        Conv(f"conv{stage}_{i}", channels, before=(HALF,) if i == 1 and stage > 1 else ())
        for stage, (channels, number) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1)
        for i in range(1, number + 1)
    ),
    fc6=4096,
    fc7=4096,
)
VGG_CNN_M_1024 = Network(
    (
        Conv("conv1", 96, kernel=7, stride=2, padding=0),
        Conv("conv2", 256, kernel=5, stride=2, before=(ResponseNorm(0.0005, 2.0), Pool(3, 2))),
        Conv("conv3", 512, before=(ResponseNorm(0.0005, 2.0), Pool(3, 2))),
        Conv("conv4", 512),
        Conv("conv5", 512),
    ),
    fc6=4096,
    fc7=1024,
    least_side=25,
)
CAFFENET = Network(
    (
        Conv("conv1", 96, kernel=11, stride=4, padding=5),
        Conv("conv2", 256, kernel=5, padding=2, groups=2, before=(Pool(3, 2, 1), ResponseNorm(0.0001, 1.0))),
        Conv("conv3", 384, before=(Pool(3, 2, 1), ResponseNorm(0.0001, 1.0))),
        Conv("conv4", 384, groups=2),
        Conv("conv5", 256, groups=2),
    ),
    fc6=4096,
    fc7=4096,
)
NETWORKS = {"vgg16": VGG16, "vgg_cnn_m_1024": VGG_CNN_M_1024, "caffenet": CAFFENET}


class Trunk(nn.Module):
    """The convolutions of a network, each followed by ReLU, with the poolings and normalisations between them.

    width: factor on all channel counts; 1 is the paper's, less is a slim network.
    batch_norm: batch normalisation after every convolution, in place of local response normalisation.
    recompute: whether training keeps of each stage (from one pooling between layers to the next) only what the next
        one begins with, and computes the other maps again on the way back.
    """

    recompute = False

    def __init__(self, network: Network = VGG16, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.network = network
        self.width = width
        self.convs = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        below = 3
        for conv in network.convs:
            out = network.channels_of(conv.name, width)
            where = (conv.kernel, conv.stride, conv.padding)
            self.convs[conv.name] = nn.Conv2d(below, out, *where, groups=conv.groups, dtype=torch.float32)
            if batch_norm:
                self.norms[conv.name] = nn.BatchNorm2d(out, dtype=torch.float32)
            below = out
        for module in self.convs.values():
            assert isinstance(module, nn.Conv2d)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        """Maps (N, C, H', W') of the convolutions `wanted`, after their ReLU, for images (N, 3, H, W); for VGG16 H' and
        W' are H and W divided by the stride, rounded up. What lies above the last of them is not computed."""
        height, width = (max(0, self.network.least_side - n) for n in images.shape[2:])
        x = functional.pad(images, (0, width, 0, height)) if height or width else images
        unused = self.network.above(wanted)
        stages = [tuple(conv for conv in stage if conv.name not in unused) for stage in self.network.stages]
        maps: dict[str, Tensor] = {}
        found: dict[str, Tensor]
        for stage, above in zip(stages, [*stages[1:], ()], strict=True):
            after = above[0].before if above else ()
            if (strips := self._strips(x, stage, wanted)) > 1:
                x, found = self._stage_in_strips(x, stage, after, strips), {}
            elif self.recompute and torch.is_grad_enabled():
                norms: list[Any] = [self.norms[conv.name] for conv in stage if self.norms]
                x, found = recompute(self._stage, x, stage, after, wanted, norms=norms)
            else:
                x, found = self._stage(x, stage, after, wanted)
            maps |= found
        return [maps[name] for name in wanted]

    def _stage(
        self, x: Tensor, stage: Sequence[Conv], after: Sequence[Pool | ResponseNorm], wanted: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the next stage begins with, and the maps of this one's convolutions that are wanted."""
        maps = {}
        for conv in stage:
            x = self.convs[conv.name](x)
            if self.norms:
                x = self.norms[conv.name](x)
            x = functional.relu(x, inplace=True)
            if conv.name in wanted:
                maps[conv.name] = x
        for step in after:
            if isinstance(step, Pool):
                x = functional.max_pool2d(x, step.kernel, step.stride, step.padding, ceil_mode=True)
            elif not self.norms:
                x = functional.local_response_norm(x, 5, step.alpha, 0.75, step.k)
        return x, maps

    def _stage_in_strips(
        self, x: Tensor, stage: Sequence[Conv], after: Sequence[Pool | ResponseNorm], strips: int
    ) -> Tensor:
        steps = [step for step in (*stage, *after) if not isinstance(step, ResponseNorm)]
        windows = [Window(step.kernel, step.stride, step.padding) for step in steps]
        return in_strips(lambda rows: self._stage(rows, stage, after, ())[0], x, windows, strips)

    def _strips(self, x: Tensor, stage: Sequence[Conv], wanted: Sequence[str]) -> int:
        """How many strips a stage is computed in: more than one where its maps are large, on a CPU, and nothing needs
        them later, neither RoI pooling nor a gradient nor the statistics of a batch."""
        names = [conv.name for conv in stage]
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not names or not set(names).isdisjoint(wanted):
            return 1
        norms = [self.norms[name] for name in names if self.norms]
        parameters = [p for layer in (*norms, *(self.convs[name] for name in names)) for p in layer.parameters()]
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
        if gradient or any(norm.training for norm in norms):
            return 1
        cells = x.shape[0] * x.shape[2] * x.shape[3] // stage[0].stride ** 2
        return -(-cells * self.network.channels_of(names[0], self.width) // STRIP_VALUES)

"""The convolutional layers of the paper's three networks S, M and L.

L is VGG16 (Simonyan and Zisserman, 2014, configuration D) without the fifth pooling layer. M is VGG_CNN_M_1024
(Chatfield and others, 2014). S is CaffeNet, a version of AlexNet (Jia and others, 2014). Layers have the same names as
in the author's models/*/train.prototxt. All pooling layers round sizes up as in Caffe: VGG16 computes a 38 x 63 map
from a 600 x 1000 image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fastrcnn.settings import NetworkName

T = TypeVar("T")
STRIP_VALUES = 4_000_000  # number of values in a strip's largest map, on a CPU; smaller strips recompute more rows


@dataclass(frozen=True)
class Window:
    """The kernel size, stride and padding of a layer along one axis, in rows of its input."""

    kernel: int
    stride: int
    padding: int = 0


class Pool(Window):
    """Max pooling that rounds the output size up."""


@dataclass(frozen=True)
class ResponseNorm:
    """Local response normalisation over five channels, exponent 0.75 (Krizhevsky and others, 2012, section 3.3)."""

    alpha: float
    k: float


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. before: the pooling and normalisation layers that precede it."""

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    before: tuple[Pool | ResponseNorm, ...] = ()


@dataclass(frozen=True)
class Network:
    """The layers of a network. name: its key in NETWORKS."""

    name: NetworkName
    convs: tuple[Conv, ...]
    fc6: int  # number of features
    fc7: int
    least_side: int = 1  # shorter image sides are padded with 0 to this length, so that every map has a cell

    @property
    def conv_names(self) -> tuple[str, ...]:
        return tuple(conv.name for conv in self.convs)

    @property
    def stages(self) -> list[tuple[Conv, ...]]:
        """The convolutions, grouped so that pooling or normalisation layers are only between two groups."""
        starts = [i for i, conv in enumerate(self.convs) if conv.before or i == 0]
        return [self.convs[a:b] for a, b in zip(starts, [*starts[1:], len(self.convs)], strict=True)]

    @property
    def finetune_from(self) -> tuple[str, ...]:
        """The names of the layers from which fine-tuning can start. Earlier layers are then frozen."""
        return (*self.conv_names, "fc6", "fc7", "bbox_pred")

    def above(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the convolutions after the last one in `wanted`."""
        return self.conv_names[len(self.up_to(wanted)) :]

    def up_to(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the convolutions up to and including the last one in `wanted`."""
        return self.conv_names[: 1 + max(self.conv_names.index(name) for name in wanted)]

    def stride_of(self, name: str) -> int:
        """Return the stride of the feature map of the convolution `name`, in pixels of the image per cell."""
        convs = self.convs[: self.conv_names.index(name) + 1]
        pools = [step for conv in convs for step in conv.before if isinstance(step, Pool)]
        return math.prod(conv.stride for conv in convs) * math.prod(pool.stride for pool in pools)

    def channels_of(self, name: str, width: float) -> int:
        """Return the number of channels of the convolution `name` in a network with the channel multiplier `width`."""
        unit = max(conv.groups for conv in self.convs)  # inputs and outputs must be divisible by the number of groups
        return unit * max(1, round(self.convs[self.conv_names.index(name)].channels * width / unit))

    def features_of(self, width: float, head: Sequence[int] | None = None) -> tuple[int, int]:
        """Return the numbers of features of fc6 and fc7: `head` if given, else the default numbers times `width`."""
        if head is not None:
            return head[0], head[1]
        return max(1, round(self.fc6 * width)), max(1, round(self.fc7 * width))


HALF = Pool(2, 2)
VGG16 = Network(
    "vgg16",
    tuple(
        Conv(f"conv{stage}_{i}", channels, before=(HALF,) if i == 1 and stage > 1 else ())
        for stage, (channels, number) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1)
        for i in range(1, number + 1)
    ),
    fc6=4096,
    fc7=4096,
)
VGG_CNN_M_1024 = Network(
    "vgg_cnn_m_1024",
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
    "caffenet",
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
NETWORKS = {network.name: network for network in (VGG16, VGG_CNN_M_1024, CAFFENET)}


class Trunk(nn.Module):
    """The convolutions of a network, each followed by ReLU, with the pooling and normalisation layers between them.

    width: multiplier for the number of channels of every layer. 1 is the paper's network.
    batch_norm: use batch normalisation after every convolution instead of local response normalisation.
    recompute: use activation checkpointing. Training keeps only the input of each stage (a group in Network.stages) and
        recomputes the other maps in the backward pass.
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

    def forward(self, images: Tensor, wanted: Sequence[str], first: str | None = None) -> list[Tensor]:
        """Compute the feature maps (N, C, H', W') of the convolutions `wanted`, after ReLU. images: (N, 3, H, W).

        For VGG16, H' and W' are H and W divided by the stride, rounded up. Layers after the last one in `wanted`
        are not computed. first: name of a convolution. If given, `images` must be the input of this convolution, and
        `wanted` must not contain earlier layers.
        """
        x, start = (self._padded(images), 0) if first is None else (images, self.network.conv_names.index(first))
        maps, _ = self._run(x, self.network.convs[start : len(self.network.up_to(wanted))], wanted)
        return [maps[name] for name in wanted]

    def below(self, images: Tensor, first: str, wanted: Sequence[str]) -> list[Tensor]:
        """Compute the feature maps of the convolutions `wanted`, followed by the input of the convolution `first`.

        images: (N, 3, H, W). `wanted` must contain only convolutions before `first`.
        """
        end = self.network.conv_names.index(first)
        maps, x = self._run(self._padded(images), self.network.convs[:end], wanted, self.network.convs[end].before)
        return [*(maps[name] for name in wanted), x]

    def _padded(self, images: Tensor) -> Tensor:
        height, width = (max(0, self.network.least_side - n) for n in images.shape[2:])
        return functional.pad(images, (0, width, 0, height)) if height or width else images

    def _run(
        self, x: Tensor, convs: Sequence[Conv], wanted: Sequence[str], last: Sequence[Pool | ResponseNorm] = ()
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the convolutions and then the layers `last`; return the wanted maps by name, and the output."""
        stages = [tuple(conv for conv in stage if conv in convs) for stage in self.network.stages]
        stages = [stage for stage in stages if stage]
        maps: dict[str, Tensor] = {}
        found: dict[str, Tensor]
        for stage, above in zip(stages, [*stages[1:], ()], strict=True):
            after = above[0].before if above else last
            if (strips := self._strips(x, stage, wanted)) > 1:
                x, found = self._stage_in_strips(x, stage, after, strips), {}
            elif self.recompute and torch.is_grad_enabled():
                norms: list[Any] = [self.norms[conv.name] for conv in stage if self.norms]
                x, found = recompute(self._stage, x, stage, after, wanted, norms=norms)
            else:
                x, found = self._stage(x, stage, after, wanted)
            maps |= found
        return maps, x

    def _stage(
        self, x: Tensor, stage: Sequence[Conv], after: Sequence[Pool | ResponseNorm], wanted: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a stage (several convolutions), then the layers `after`. Return the output, and wanted maps by name."""
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
        """Return the number of strips of rows in which a stage is computed to save memory.

        It is greater than 1 only on a CPU, for a stage whose maps are large and not in `wanted`, if no gradient is
        computed and batch normalisation does not use the statistics of the batch.
        """
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


# Computing a stage in strips of rows needs less memory, because its large maps are never in memory as a whole.


def rows_seen(row: int, windows: Sequence[Window]) -> tuple[int, int]:
    """Return the first and the last input row on which output row `row` depends; both can be in the padding.

    windows: kernel size, stride and padding of each layer, in the order of the layers.
    """
    first = last = row
    for window in reversed(windows):
        first = first * window.stride - window.padding
        last = last * window.stride - window.padding + window.kernel - 1
    return first, last


def in_strips(compute: Callable[[Tensor], Tensor], x: Tensor, windows: Sequence[Window], count: int) -> Tensor:
    """Return the result of `compute` for a map (N, C, H, W), computed in at most `count` strips of rows.

    compute: a function that applies several layers, which pad their input. windows: the window of each layer. A strip
    includes all input rows on which its output rows depend. Output rows that depend on padding at the edge between two
    strips are cut off, so the result is unchanged.
    """
    stride, height = math.prod(window.stride for window in windows), x.shape[2]
    first, last = rows_seen(0, windows)
    least = -(-(last - first + 1) // stride)  # minimum number of output rows of a strip
    count = max(1, min(count, height // stride // least))
    edges = [i * (height // stride) // count for i in range(count)]  # first output row of each strip
    out = x  # replaced by the last strip, which is computed first and determines the size
    for top, bottom in reversed(list(zip(edges, [*edges[1:], None], strict=True))):
        shift = max(0, rows_seen(top, windows)[0]) // stride  # number of output rows before the strip
        end = height if bottom is None else rows_seen(bottom - 1, windows)[1] + 1
        part = compute(x[:, :, shift * stride : end])
        if bottom is None:
            last = part.is_contiguous(memory_format=torch.channels_last)
            order = torch.channels_last if last else torch.contiguous_format
            shape = (*part.shape[:2], shift + part.shape[2], part.shape[3])
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)
        out[:, :, top:bottom] = part[:, :, top - shift : None if bottom is None else bottom - shift]
    return out


def recompute(function: Callable[..., T], *arguments: object, norms: list[nn.BatchNorm2d]) -> T:
    """Call a function with activation checkpointing: keep only its arguments, and call it again in the backward pass.

    The function must be deterministic. norms: the batch normalisation layers that it uses. The second call does not
    update their running statistics, so that each batch counts only once.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _keep_statistics(norms)

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _keep_statistics(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Context manager: layers in training mode do not update their running statistics inside the `with` block."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count

"""VGG16 (Simonyan and Zisserman, 2014, configuration D), as Fast R-CNN uses it: without the fifth pooling.

Layers bear the names of the paper: conv1_1 ... conv5_3, fc6, fc7. All poolings round up ("ceil mode") as Caffe's do,
so that a 600 x 1000 image gives a 38 x 63 map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

STAGES = {"conv1": (64, 2), "conv2": (128, 2), "conv3": (256, 3), "conv4": (512, 3), "conv5": (512, 3)}
CONV_NAMES = tuple(f"{stage}_{i + 1}" for stage, (_, n) in STAGES.items() for i in range(n))
FINETUNE_FROM = (*CONV_NAMES, "fc6")  # layers at which training may begin; what lies before stays as it is


def stride_of(conv: str) -> int:
    """Pixels of the image from one cell to the next of the map that the layer `conv` gives, 1 to 16."""
    return 2 ** (int(conv[4]) - 1)


def channels_of(conv: str, width: float) -> int:
    """Channels of the map that the layer `conv` gives in a trunk of the given `width`."""
    return max(1, round(STAGES[conv[:5]][0] * width))


class VGG16Trunk(nn.Module):
    """The thirteen convolutions, each followed by ReLU, and the four poolings between their five stages.

    width: factor on all channel counts; 1 is the paper's, less is a slim network.
    batch_norm: batch normalisation after every convolution, for training from scratch.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        channels = 3
        for name in CONV_NAMES:
            out = channels_of(name, width)
            self.convs[name] = nn.Conv2d(channels, out, 3, padding=1)
            if batch_norm:
                self.norms[name] = nn.BatchNorm2d(out)
            channels = out
        for conv in self.convs.values():
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, wanted: Sequence[str] = ("conv5_3",)) -> list[Tensor]:
        """Maps (N, C, ceil(H / s), ceil(W / s)) of the `wanted` layers, after their ReLU, for images (N, 3, H, W)."""
        maps = {}
        x = images
        for name, conv in self.convs.items():
            if name.endswith("_1") and name != "conv1_1":
                x = nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
            x = conv(x)
            if self.norms:
                x = self.norms[name](x)
            x = nn.functional.relu(x, inplace=True)
            if name in wanted:
                maps[name] = x
        return [maps[name] for name in wanted]


def head_shapes(channels: int, roi_size: int = 7, width: float = 1.0) -> dict[str, tuple[int, int]]:
    """Rows and columns of the weights of fc6 and fc7."""
    features = max(1, round(4096 * width))
    return {"fc6": (features, channels * roi_size * roi_size), "fc7": (features, features)}


def largest_rank(rows: int, columns: int) -> int:
    """The largest rank whose two factors have fewer weights than a layer of rows x columns; 0 where there is none."""
    return (rows * columns - 1) // (rows + columns)


def fully_connected(rows: int, columns: int, rank: int | None = None) -> nn.Module:
    """A layer from `columns` to `rows` features, or with a rank two in its place, nothing between them.

    The two are L, without bias, and U, with it, after the author's fc6_L and fc6_U (section 3.1 of the paper).
    """
    last = nn.Linear(columns if rank is None else rank, rows)
    nn.init.kaiming_normal_(last.weight, nonlinearity="relu")
    nn.init.zeros_(last.bias)
    if rank is None:
        return last
    first = nn.Linear(columns, rank, bias=False)
    nn.init.kaiming_normal_(first.weight, nonlinearity="linear")
    return nn.Sequential(OrderedDict(L=first, U=last))


class VGG16Head(nn.Module):
    """fc6 and fc7 with ReLU and dropout, on pooled RoIs.

    fc6_rank, fc7_rank: of a layer that stands as two, see fully_connected; None: one layer.
    """

    def __init__(
        self,
        channels: int,
        roi_size: int = 7,
        width: float = 1.0,
        dropout: float = 0.5,
        fc6_rank: int | None = None,
        fc7_rank: int | None = None,
    ) -> None:
        super().__init__()
        shapes = head_shapes(channels, roi_size, width)
        self.out_features = shapes["fc7"][0]
        self.fc6 = fully_connected(*shapes["fc6"], fc6_rank)
        self.fc7 = fully_connected(*shapes["fc7"], fc7_rank)
        self.dropout = dropout

    def forward(self, pooled: Tensor) -> Tensor:
        """Features (K, D) of pooled RoIs (K, C, roi_size, roi_size)."""
        x = pooled.flatten(1)  # (K, C * roi_size^2)
        for layer in (self.fc6, self.fc7):
            x = nn.functional.relu(layer(x), inplace=True)
            x = nn.functional.dropout(x, self.dropout, self.training)
        return x


def freeze_before(trunk: VGG16Trunk, first: str) -> None:
    """Keeps every layer of the trunk before the layer `first` (one of FINETUNE_FROM) from being trained.

    The paper trains VGG16 from conv3_1 up (section 4.5). Statistics of frozen batch normalisation stay as they are
    too: see FastRCNN.train.
    """
    for name in FINETUNE_FROM[: FINETUNE_FROM.index(first)]:
        for parameter in trunk.convs[name].parameters():
            parameter.requires_grad_(False)
        if name in trunk.norms:
            for parameter in trunk.norms[name].parameters():
                parameter.requires_grad_(False)


def frozen_norms(trunk: VGG16Trunk) -> list[nn.Module]:
    """The batch normalisations whose parameters are frozen."""
    return [norm for norm in trunk.norms.values() if not any(p.requires_grad for p in norm.parameters())]


def parameter_count(module: nn.Module) -> int:
    """Number of parameters; 134,690,729 for the paper's network with 20 classes."""
    return sum(p.numel() for p in module.parameters())

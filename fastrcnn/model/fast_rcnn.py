"""The Fast R-CNN network (Girshick, 2015, figure 1), which computes class logits and box deltas of RoIs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastrcnn.model.head import Head
from fastrcnn.model.networks import NETWORKS, Trunk
from fastrcnn.ops import roi_align, roi_pool, roi_warp
from fastrcnn.settings import Classifier, ModelSettings, NetworkName, RoiOp

DEFAULT = ModelSettings()
INCLUSIVE = ("fast_rcnn", "roi_warp")  # operators for which x2, y2 are the last pixel in the box
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # for torchvision's weights; RGB in 0 .. 255
IMAGENET_STD = (58.395, 57.12, 57.375)


def scaled_rois(rois: Tensor, op: str, scales: Tensor | None = None) -> Tensor:
    """Convert half-open RoIs (K, 5) [image index, x1, y1, x2, y2] to the float32 RoIs that `op` expects.

    For operators with inclusive boxes, x2 and y2 are reduced by one. scales: (N,) scale factors of the images, by
    default 1. Boxes are scaled after the conversion, in float64, and rounded once to float32, as in `_project_im_rois`
    in the author's lib/fast_rcnn/test.py. The precision matters: if 375 pixels are scaled to 600, one in ten box edges
    is exactly halfway between two cells.
    """
    box = rois[:, 1:].double()
    if op in INCLUSIVE:
        box = torch.cat((box[:, :2], box[:, 2:] - 1), dim=1)  # a constant tensor would wait for pending work of a GPU
    if scales is not None:
        box = box * scales.to(box)[rois[:, 0].long()][:, None]
    return torch.cat((rois[:, :1].float(), box.float()), dim=1)


def distinct_rois(rois: Tensor, op: str, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find the distinct RoIs among RoIs (K, 5) from `scaled_rois`; RoIs that pool the same cells count as equal.

    strides: pixels of the network's input per cell, for each feature map. Returns the indices (U,) of the distinct RoIs
    in `rois`, and the position (K,) of each of the K RoIs among the U distinct ones. 13 to 26 % of selective search's
    boxes coincide when they are rounded to cells (`DEDUP_BOXES` in the author's lib/fast_rcnn/test.py). For operators
    other than "fast_rcnn", all RoIs are treated as distinct.
    """
    count = torch.arange(len(rois), device=rois.device)
    if op != "fast_rcnn" or len(rois) == 0:
        return count, count
    box = rois[:, 1:].double()  # rounded half away from zero, as the operator does
    cells = [torch.sign(box) * torch.floor(box.abs() / stride + 0.5) for stride in strides]
    place = torch.zeros_like(count)
    for column in (rois[:, 0], *(column for edges in cells for column in edges.unbind(1))):
        # Much faster than torch.unique(dim=0), which compares entire rows.
        number = torch.unique(column, return_inverse=True)[1]
        place = torch.unique(place * len(rois) + number, return_inverse=True)[1]
    rows = count.new_zeros(int(place.max()) + 1)
    rows[place] = count
    return rows, place


def nearest_level(rois: Tensor, scales: Tensor) -> Tensor:
    """Return for each half-open RoI (K, 4) the index (K,) of the scale at which its area is closest to 224 x 224.

    scales: (L,) scale factors of the image that contains the RoIs.
    Sources: section 2.4 of the paper, and `_project_im_rois` in the author's lib/fast_rcnn/test.py.
    """
    size = rois[:, 2:].double() - rois[:, :2].double()
    area = size.prod(dim=1)[:, None] * scales.to(size).square()  # (K, L)
    return (area - 224 * 224).abs().argmin(dim=1)


def pool_rois(features: Tensor, rois: Tensor, size: int, scale: float, op: str) -> Tensor:
    """Pool RoIs (K, 5) from `scaled_rois` to (K, C, size, size) with the operator `op`.

    features: feature maps (N, C, H, W). scale: cells of the feature map per pixel of the network's input.
    """
    if op == "roi_align":
        return roi_align(features, rois, size, scale, sampling_ratio=2, aligned=True)
    if op == "roi_warp":
        return roi_warp(features, rois, size, scale)
    # On a GPU, checking the values would wait for pending work. Proposal stores and Detector have already checked them.
    return roi_pool(features, rois, size, scale, variant=op, check_values=rois.device.type == "cpu")


class FastRCNN(nn.Module):
    """A convolutional network, RoI pooling, fc6 and fc7, and two output layers.

    num_classes: number of object classes, excluding background, which is class 0 of the logits.
    network: a key in NETWORKS. width, batch_norm: see Trunk.
    roi_size: number of bins of a pooled RoI along each axis.
    roi_op: the operator that pools RoIs, see pool_rois; "fast_rcnn" is the paper's.
    roi_features: layers whose maps are pooled, each at its own stride. The pooled maps of several layers are
        concatenated. If there are several layers, or if the number of channels differs from that of the trunk's last
        layer, a 1 x 1 convolution converts the channels to the last layer's number.
    dropout: dropout probability after fc6 and fc7.
    classifier: "softmax": the class logits are the inputs of a softmax; "svm": they are the margins of one-vs-rest
        SVMs, and the margin of background has no meaning.
    mean, std: mean and standard deviation of the trunk's training pixels, RGB in 0 .. 255; part of the state dict.
    fc6_rank, fc7_rank: see Head.
    class_agnostic: use one box regression for all classes instead of one per class.
    head: numbers of features of fc6 and fc7, by default the network's own numbers times `width`.
    scale_maps: multiply each map by its factor in `map_scale`, which is 1 until training/initial.py sets it. Without
        them, a randomly initialised fc6 diverges at usual learning rates if maps have values in the tens or hundreds.
    """

    map_scale: Tensor | None
    delta_mean: Tensor
    delta_std: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        num_classes: int,
        width: float = DEFAULT.width,
        batch_norm: bool = DEFAULT.batch_norm,
        roi_size: int = DEFAULT.roi_size,
        roi_op: RoiOp = DEFAULT.roi_op,
        roi_features: Sequence[str] = DEFAULT.roi_features,
        dropout: float = DEFAULT.dropout,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        classifier: Classifier = DEFAULT.classifier,
        fc6_rank: int | None = None,
        fc7_rank: int | None = None,
        network: NetworkName = DEFAULT.network,
        class_agnostic: bool = DEFAULT.class_agnostic,
        head: Sequence[int] | None = DEFAULT.head,
        scale_maps: bool | None = DEFAULT.scale_maps,
    ) -> None:
        super().__init__()
        self.num_classes, self.classifier = num_classes, classifier
        self.roi_size, self.roi_op, self.roi_features = roi_size, roi_op, tuple(roi_features)
        layers = NETWORKS[network]
        self.strides = [layers.stride_of(name) for name in self.roi_features]  # image pixels per cell
        self.trunk = Trunk(layers, width, batch_norm)
        channels = layers.channels_of(layers.conv_names[-1], width)
        pooled = sum(layers.channels_of(name, width) for name in self.roi_features)
        mixed = len(self.roi_features) > 1 or pooled != channels
        self.reduce = nn.Conv2d(pooled, channels, 1, dtype=torch.float32) if mixed else nn.Identity()
        self.head = Head(channels * roi_size**2, layers.features_of(width, head), dropout, fc6_rank, fc7_rank)
        self.cls_score = nn.Linear(self.head.out_features, num_classes + 1, dtype=torch.float32)
        outputs = 4 if class_agnostic else 4 * (num_classes + 1)
        self.bbox_pred = nn.Linear(self.head.out_features, outputs, dtype=torch.float32)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # section 2.3
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        # Mean and standard deviation of the training set's regression targets. Deltas are outputs times std plus mean.
        self.register_buffer("delta_mean", torch.zeros(num_classes + 1, 4, dtype=torch.float32))
        self.register_buffer("delta_std", torch.ones(num_classes + 1, 4, dtype=torch.float32))
        scale = torch.ones(len(self.roi_features), dtype=torch.float32) if scale_maps else None
        self.register_buffer("map_scale", scale)
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))

    def train(self, mode: bool = True) -> FastRCNN:
        """Set the mode like nn.Module.train, but keep frozen batch normalisation layers in eval mode."""
        super().train(mode)
        for norm in self.trunk.norms.values():
            if not any(p.requires_grad for p in norm.parameters()):
                norm.eval()
        return self

    def normalise(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return (images - pixel_mean) / pixel_std for uint8 or float RGB images (N, 3, H, W) in 0 .. 255.

        sizes: (N, 2) height and width of each image without padding. If given, the padding is set to 0 after
        normalisation, as in the author's code.
        """
        images = (images.float() - self.pixel_mean).div_(self.pixel_std)
        if sizes is not None:
            rows = torch.arange(images.shape[2], device=images.device)[None, :, None] < sizes[:, 0, None, None]
            columns = torch.arange(images.shape[3], device=images.device)[None, None, :] < sizes[:, 1, None, None]
            images *= (rows & columns)[:, None]
        return images

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        rois: Tensor,
        sizes: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute class logits (K, classes + 1) and normalised box deltas (K, classes + 1, 4) for K RoIs.

        images: (N, 3, H, W) uint8 or float RGB in 0 .. 255, or the result of `frozen_maps` for them.
        rois: (K, 5) float [image index, x1, y1, x2, y2], half-open, in pixels of the images before scaling. Values must
            be finite and image indices valid. This is checked only on a CPU, and not for roi_align and roi_warp.
        sizes: see normalise. scales: (N,) scale factor of each image, by default 1.
        """
        return self.classify(self.features(images, sizes), scaled_rois(rois, self.roi_op, scales))

    def features(self, images: Tensor | Sequence[Tensor], sizes: Tensor | None = None) -> list[Tensor]:
        """Compute the feature maps (N, C, H', W') of the layers in `roi_features`. images, sizes: see `forward`."""
        if isinstance(images, Tensor):
            return self.trunk(self._input(images, sizes), self.roi_features)
        below, first = self.frozen_layers
        found = dict(zip(below, images, strict=False))
        if first is not None:
            above = [name for name in self.roi_features if name not in below]
            x = images[-1].contiguous(memory_format=torch.channels_last)
            found |= zip(above, self.trunk(x, above, first), strict=True)
        return [found[name] for name in self.roi_features]

    def frozen_maps(self, images: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
        """Compute the part of `features` that does not change during training.

        Returns the maps of the frozen layers in `roi_features` and, if a layer of the trunk is trained, the input of
        the first such layer. `features` accepts the result instead of the images.
        """
        below, first = self.frozen_layers
        x = self._input(images, sizes)
        return self.trunk(x, below) if first is None else self.trunk.below(x, first, below)

    @property
    def frozen_layers(self) -> tuple[list[str], str | None]:
        """The layers in `roi_features` that do not change in training, and the first trained convolution or None."""
        used = self.trunk.network.up_to(self.roi_features)
        layers = {name: [t[name] for t in (self.trunk.convs, self.trunk.norms) if name in t] for name in used}
        trained = [n for n in used if any(p.requires_grad for layer in layers[n] for p in layer.parameters())]
        first = trained[0] if trained else None
        frozen = used if first is None else used[: used.index(first)]
        return [name for name in self.roi_features if name in frozen], first

    def _input(self, images: Tensor, sizes: Tensor | None) -> Tensor:
        return self.normalise(images, sizes).contiguous(memory_format=torch.channels_last)

    def roi_vectors(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Compute the output (K, D) of fc7. maps: the result of `features`. rois: RoIs (K, 5) from `scaled_rois`."""
        if self.map_scale is not None:
            maps = [m * scale for m, scale in zip(maps, self.map_scale, strict=True)]
        if isinstance(self.reduce, nn.Identity) and maps[0].device.type == "cpu" and not torch.is_grad_enabled():
            # The pooled RoIs of a contiguous map are contiguous, so fc6 reads them without a copy. After pooling a
            # channels_last map, flatten() copies 100 kB per RoI. With gradients, channels_last is still faster.
            maps = [m.contiguous() for m in maps]
        pooled = [
            pool_rois(m, rois.to(torch.promote_types(m.dtype, rois.dtype)), self.roi_size, 1 / stride, self.roi_op)
            for stride, m in zip(self.strides, maps, strict=True)
        ]
        return self.head(self.reduce(torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]))

    def classify(self, maps: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and box deltas, see `forward`. maps: from `features`. rois: (K, 5) from `scaled_rois`."""
        x = self.roi_vectors(maps, rois)  # (K, D)
        logits = self.cls_score(x).float()
        deltas = self.bbox_pred(x).float().view(x.shape[0], self.bbox_pred.out_features // 4, 4)
        return logits, deltas.expand(-1, self.num_classes + 1, -1)


def round_weights(model: FastRCNN, dtype: torch.dtype) -> None:
    """Convert the weights and biases of convolutions and linear layers to `dtype` permanently.

    This is for a model that is used only for detection, under autocast with the same dtype. Without this conversion,
    autocast converts the weights again for each image. Normalisation layers, which autocast does not convert, and
    buffers are not changed.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


def freeze_before(model: FastRCNN, first: str) -> None:
    """Freeze every layer before the layer `first`, which must be one of the network's `finetune_from`.

    Source: section 4.5 of the paper. With "bbox_pred", only the box regression is trained (section 5.1).
    """
    convs, norms = model.trunk.convs, model.trunk.norms
    layers = {name: [conv, *([norms[name]] if name in norms else [])] for name, conv in convs.items()}
    layers |= {"fc6": [model.reduce, model.head.fc6], "fc7": [model.head.fc7], "cls_score": [model.cls_score]}
    for name, before in layers.items():
        if name == first:
            break
        for layer in before:
            layer.requires_grad_(False)


def fold_map_scale(model: FastRCNN) -> FastRCNN:
    """Return an equivalent model without `map_scale`, for formats that do not support it.

    If the model has a `map_scale`, the result is a copy in which the first layer after pooling has weights that include
    the factors. Its outputs are equal except for rounding, and it shares all other layers with the model. If the model
    has no `map_scale`, the model itself is returned.
    """
    if model.map_scale is None:
        return model
    plain = copy.copy(model)
    plain._buffers, plain._modules = dict(model._buffers), dict(model._modules)
    plain.map_scale = None
    with torch.no_grad():
        if isinstance(model.reduce, nn.Conv2d):
            plain.reduce = copy.deepcopy(model.reduce)
            channels = [model.trunk.convs[name].out_channels for name in model.roi_features]
            factors = torch.cat([s.repeat(n) for s, n in zip(model.map_scale, channels, strict=True)])
            plain.reduce.weight *= factors[:, None, None]
        else:
            plain.head = copy.deepcopy(model.head)
            layers = plain.head.fc6.modules()
            next(layer for layer in layers if isinstance(layer, nn.Linear)).weight *= model.map_scale
    return plain


def box_layer_for(model: FastRCNN, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a box layer (bbox_pred) whose outputs times `std` plus `mean` equal the model's unnormalised deltas.

    mean, std: (classes + 1, 4). Returns the layer's weight (4 K, D) and bias (4 K,). K is classes + 1, or 1 in a
    class-agnostic model, whose statistics are equal for all classes. With mean 0 and std 1, this is the layer that
    `snapshot` in the author's lib/fast_rcnn/train.py saves.
    """
    rows = model.bbox_pred.out_features // 4
    old_mean, old_std, mean, std = (
        t[-rows:].to(model.delta_mean.device, torch.float64).flatten()
        for t in (model.delta_mean, model.delta_std, mean, std)
    )
    weight = model.bbox_pred.weight.detach().double() * (old_std / std)[:, None]
    bias = (model.bbox_pred.bias.detach().double() * old_std + old_mean - mean) / std
    return weight.float(), bias.float()


@torch.no_grad()
def normalise_box_layer(model: FastRCNN, mean: Tensor, std: Tensor) -> None:
    """Set `delta_mean` and `delta_std` to `mean` and `std` (classes + 1, 4); adapt bbox_pred to keep the detections."""
    weight, bias = box_layer_for(model, mean, std)
    model.bbox_pred.weight.copy_(weight)
    model.bbox_pred.bias.copy_(bias)
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)

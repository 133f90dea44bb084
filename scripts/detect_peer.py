"""Fast R-CNN detection built from torchvision's components, the peer of bench_detect.py."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torchvision
from bench_train import CLASSES, Peer
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.inference.network import autocast
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections

HEIGHT, WIDTH, SCALE = 375, 500, 1.6
SETTINGS = DetectionSettings()
Detect = Callable[[np.ndarray, np.ndarray], Detections]  # arguments: image (H, W, 3), half-open boxes (K, 4)


def scaled(picture: np.ndarray) -> Tensor:
    """Resize an image to the network's input size, (1, 3, H, W) uint8."""
    return torch.from_numpy(cv2.resize(picture, None, fx=SCALE, fy=SCALE)).permute(2, 0, 1)[None]


def on_device(boxes: np.ndarray, device: torch.device) -> Tensor:
    """Convert half-open boxes (K, 4) to inclusive, scaled RoIs (K, 5)."""
    rois = torch.from_numpy(np.pad(boxes, ((0, 0), (1, 0)))).to(device)
    return scaled_rois(rois, "fast_rcnn", torch.tensor([SCALE], dtype=torch.float64, device=device))


@torch.no_grad()
def peer_of(model: FastRCNN) -> Peer:
    """Return a Peer with the weights of the model."""
    peer = Peer(1.0, False)
    for layer in peer.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.ceil_mode = True  # a map of 38 x 50 cells, like ours
    convs = [layer for layer in peer.features if isinstance(layer, torch.nn.Conv2d)]
    theirs = [*convs, peer.head[1], peer.head[4], peer.scores, peer.boxes]
    own = [*model.trunk.convs.values(), model.head.fc6, model.head.fc7, model.cls_score, model.bbox_pred]
    for a, b in zip(theirs, own, strict=True):
        a.load_state_dict({k: v.clone(memory_format=torch.contiguous_format) for k, v in b.state_dict().items()})
    return peer.to(model.delta_mean.device).eval()


def peer_outputs(logits: Tensor, deltas: Tensor, std: Tensor, boxes: Tensor) -> Detections:
    """Postprocess the outputs like torchvision's RoIHeads.postprocess_detections."""
    scores = logits.softmax(1)
    found = box_ops.decode(boxes, deltas.view(len(boxes), CLASSES + 1, 4) * std)
    found = torchvision.ops.clip_boxes_to_image(found, (HEIGHT, WIDTH))
    labels = torch.arange(CLASSES + 1, device=scores.device).expand_as(scores)
    found, scores, labels = found[:, 1:].reshape(-1, 4), scores[:, 1:].flatten(), labels[:, 1:].flatten()
    keep = torch.where(scores > 0.05)[0]
    found, scores, labels = found[keep], scores[keep], labels[keep]
    keep = torchvision.ops.remove_small_boxes(found, 1e-2)
    found, scores, labels = found[keep], scores[keep], labels[keep]
    keep = torchvision.ops.batched_nms(found, scores, labels, SETTINGS.nms_iou)[: SETTINGS.max_per_image]
    return Detections(found[keep].cpu(), scores[keep].cpu(), labels[keep].cpu())


def peer_detection(model: FastRCNN, dtype: torch.dtype) -> Detect:
    peer, std, device = peer_of(model), model.delta_std.clone(), model.delta_mean.device

    @torch.no_grad()
    def detect(picture: np.ndarray, boxes: np.ndarray) -> Detections:
        with autocast(device, dtype):
            logits, deltas = peer(scaled(picture).to(device), on_device(boxes, device))
        return peer_outputs(logits, deltas, std, torch.from_numpy(boxes).to(device))

    return detect


def peer_head(model: FastRCNN, dtype: torch.dtype) -> Callable[[Tensor, np.ndarray], Detections]:
    peer, std, device = peer_of(model), model.delta_std.clone(), model.delta_mean.device
    peer.features = torch.nn.Identity()

    @torch.no_grad()
    def detect(maps: Tensor, boxes: np.ndarray) -> Detections:
        with autocast(device, dtype):
            x = peer.head(torchvision.ops.roi_pool(maps, on_device(boxes, device), 7, 1 / 16))
            logits, deltas = peer.scores(x).float(), peer.boxes(x).float()
        return peer_outputs(logits, deltas, std, torch.from_numpy(boxes).to(device))

    return detect

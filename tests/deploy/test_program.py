"""Networks as programs of torch.export: loaded again, they give what the model gives at other sizes too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from slim_detectors import CLASSES, KINDS, boxes, described, picture, slim

from fastrcnn.deploy.program import LEAST_SIDE, write_program


@pytest.mark.parametrize("kind", ["class-agnostic", "M"])
def test_a_program_gives_what_the_network_does(kind: str, tmp_path: Path) -> None:
    """Scores and deltas are asked of FastRCNN.forward, boxes of the formulas of the paper."""
    model = slim(**KINDS[kind])
    write_program(model, described(model, **KINDS[kind]), True, tmp_path / "a.pt2")
    extra = {"classes": "", "config": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    assert tuple(json.loads(extra["classes"])) == CLASSES
    assert "somewhere" not in extra["config"]
    for height, width, number in ((LEAST_SIDE, 190, 1), (131, 88, 30)):
        rois, scale, size = boxes(number, 2 * height, 2 * width), 0.5, (2 * height, 2 * width)
        image = torch.from_numpy(picture(height, width))
        with torch.no_grad():
            scores, found = program(
                image=image, proposals=rois, scale=torch.tensor(scale, dtype=torch.float64), size=torch.tensor(size)
            )
            indexed = torch.cat((torch.zeros(number, 1), rois), dim=1)
            logits, deltas = model(image.permute(2, 0, 1)[None], indexed, scales=torch.tensor([scale]).double())
        torch.testing.assert_close(scores, logits.softmax(dim=1), rtol=0, atol=1e-6)
        d = (deltas * model.delta_std + model.delta_mean).double()
        side = (rois[:, 2:] - rois[:, :2]).double()[:, None]
        centre = rois[:, None, :2] + side / 2 + d[..., :2] * side
        corners = torch.cat((centre - side * d[..., 2:].exp() / 2, centre + side * d[..., 2:].exp() / 2), dim=-1)
        limit = torch.tensor([size[1], size[0]] * 2)
        torch.testing.assert_close(found.double(), corners.clamp(min=0).minimum(limit), rtol=0, atol=1e-3)
        assert not scores.requires_grad


def test_svm_margins_are_scores_and_boxes_may_stay(tmp_path: Path) -> None:
    model = slim(classifier="svm")
    write_program(model, described(model, classifier="svm"), False, tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    rois = boxes(20, 80, 90)
    with torch.no_grad():
        scores, found = program(
            image=torch.from_numpy(picture(80, 90)),
            proposals=rois,
            scale=torch.tensor(1.0, dtype=torch.float64),
            size=torch.tensor([80, 90]),
        )
    assert (scores.sum(dim=1) - 1).abs().max() > 0.1
    torch.testing.assert_close(found, rois[:, None].expand(-1, 4, -1), rtol=0, atol=1e-4)

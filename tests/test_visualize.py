"""Pictures with boxes: the right pixels in the right colours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn.structures import Batch, Detections, RoITargets, Sample
from fastrcnn.visualize import CAPTION, colour_of, draw_batch, draw_boxes, draw_detections, enlarge

GRAY = 77


def canvas(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def where(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(H, W) bool, the pixels of a colour."""
    return (image == np.array(colour, np.uint8)).all(axis=2)


def outline(height: int, width: int, x1: int, y1: int, x2: int, y2: int, line: int = 1) -> np.ndarray:
    """(H, W) bool, the border pixels of a half-open box, `line` thick inwards."""
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    mask[y1 + line : y2 - line, x1 + line : x2 - line] = False
    return mask


def test_colours_are_valid_and_far_apart() -> None:
    colours = [colour_of(label) for label in range(1, 21)]
    assert len(set(colours)) == 20
    assert all(0 <= v <= 255 for c in colours for v in c)
    steps = [np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)]
    assert min(steps) > 100


def test_the_border_of_a_half_open_box_is_coloured_and_nothing_else() -> None:
    drawn = draw_boxes(canvas(), np.array([[10.0, 20, 40, 50]]), [3])
    expected = outline(60, 80, 10, 20, 40, 50)
    np.testing.assert_array_equal(where(drawn, colour_of(3)), expected)
    np.testing.assert_array_equal(where(drawn, (GRAY, GRAY, GRAY)), ~expected)


def test_a_box_to_the_pictures_edge_shows_all_its_sides() -> None:
    drawn = draw_boxes(canvas(), np.array([[0.0, 0, 80, 60]]), [1])
    np.testing.assert_array_equal(where(drawn, colour_of(1)), outline(60, 80, 0, 0, 80, 60))


def test_lines_grow_with_the_picture() -> None:
    drawn = draw_boxes(canvas(100, 1200), np.array([[100.0, 20, 300, 80]]), [1])
    np.testing.assert_array_equal(where(drawn, colour_of(1)), outline(100, 1200, 100, 20, 300, 80, line=4))


def test_boxes_of_a_pixel_or_none_and_outside_are_survived() -> None:
    boxes = np.array([[5.0, 5, 6, 6], [9, 9, 9, 9], [-10, -10, 200, 200]])
    drawn = draw_boxes(canvas(), boxes, [1, 2, 3])
    for label, at in ((1, 5), (2, 9)):
        rows, columns = np.nonzero(where(drawn, colour_of(label)))
        assert where(drawn, colour_of(label))[at, at]
        assert np.abs(rows - at).max() <= 1, "Pillow may take a pixel more"
        assert np.abs(columns - at).max() <= 1
    assert not where(drawn, colour_of(3)).any(), "its border lies outside"
    np.testing.assert_array_equal(draw_boxes(canvas(), np.zeros((0, 4)), []), canvas())


def test_letters_are_half_as_high_above_low_boxes() -> None:
    """In an image of 1,800 pixels they are 40 high, above boxes of 140 pixels 20."""
    heights = []
    for bottom in (1200, 640):
        box = np.array([[100.0, 500, 700, bottom]])
        labelled = draw_boxes(canvas(1300, 1800), box, [1], ["cat"])
        plate = (labelled[:500] != GRAY).any(axis=2)
        heights.append(int(plate.any(axis=1).sum()))
    assert heights[0] == pytest.approx(2 * heights[1], abs=4)
    assert heights[1] > 15


def test_the_input_is_not_modified() -> None:
    image = canvas()
    draw_boxes(image, np.array([[10.0, 20, 40, 50]]), [3], ["thing"])
    np.testing.assert_array_equal(image, canvas())


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (70, 0, 80, 20), (0, 50, 20, 60), (78, 58, 80, 60), (30, 5, 50, 30), (-8, -9, 30, 30)]
)
def test_a_label_lies_wholly_in_the_picture(box: tuple[int, int, int, int]) -> None:
    """As many pixels of letters show there as in a picture with room all around."""

    def letters(at: tuple[int, ...]) -> int:
        drawn = draw_boxes(canvas(), np.array([at], np.float64), [2], ["cat"])
        return int((~where(drawn, colour_of(2)) & ~where(drawn, (GRAY, GRAY, GRAY))).sum())

    assert letters((30, 30, 50, 45)) > 20
    assert letters(box) == letters((30, 30, 50, 45))


def test_letters_are_readable_on_bright_and_on_dark_colours() -> None:
    seen = set()
    for label in range(1, 12):
        drawn = draw_boxes(canvas(60, 1200), np.array([[20.0, 30, 300, 50]]), [label], ["MMMM"])
        brightness = np.dot(colour_of(label), (0.299, 0.587, 0.114))
        letters = (0, 0, 0) if brightness > 140 else (255, 255, 255)
        assert where(drawn, letters).sum() > 50, label
        seen.add(letters)
    assert len(seen) == 2


def test_detections_below_the_threshold_are_left_out_and_the_best_is_on_top() -> None:
    found = Detections(
        boxes=torch.tensor([[10.0, 20, 40, 50], [10, 20, 40, 50], [50, 20, 70, 50]]),
        scores=torch.tensor([0.9, 0.5, 0.4]),
        labels=torch.tensor([1, 2, 3]),
    )
    drawn = draw_detections(canvas(), found, ["a", "b", "c"])
    assert where(drawn, colour_of(1))[49, 10:40].all(), "the bottom line of the best"
    assert not where(drawn, colour_of(2))[49].any()
    assert not where(drawn, colour_of(3)).any()
    np.testing.assert_array_equal(draw_detections(canvas(), found, ["a", "b", "c"], threshold=0.95), canvas())
    assert where(draw_detections(canvas(), found, ["a", "b", "c"], threshold=0.4), colour_of(3)).any()


def test_labels_of_boxes_at_one_place_do_not_hide_each_other() -> None:
    """Of three boxes on one another, each label has as much ground around its letters as if its box were alone."""
    boxes = np.array([[20.0, 30, 90, 70]] * 3)
    together = draw_boxes(canvas(100, 120), boxes, [1, 2, 3], ["cat", "cat", "cat"])
    for label in (1, 2, 3):
        alone = draw_boxes(canvas(100, 120), boxes[:1], [label], ["cat"])
        border = where(draw_boxes(canvas(100, 120), boxes[:1], [label]), colour_of(label))
        ground = where(alone, colour_of(label)) & ~border
        assert ground.sum() > 100
        assert (where(together, colour_of(label)) & ~border).sum() >= ground.sum() - 40, (
            label
        )  # less a line of the border


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    found = Detections(torch.tensor([[10.0, 20, 40, 30.5]]), torch.tensor([0.9]), torch.tensor([1]))
    larger, shown = enlarge(image, found, least=170)
    assert larger.shape == (120, 180, 3)
    np.testing.assert_array_equal(larger[1::3, 1::3], image)
    assert shown.boxes.tolist() == [[30.0, 60, 120, 91.5]]
    same, unchanged = enlarge(image, found, least=60)
    assert same is image
    assert unchanged is found


def batch() -> Batch:
    """A picture of 40 x 50 and one of 30 x 60, padded to 40 x 60, with one object each."""
    images = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
    images[0, :, :, :50] = GRAY
    images[1, :, :30, :] = GRAY
    boxes = torch.tensor([[5.0, 5, 25, 35]])
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Batch(
        images=images,
        sizes=torch.tensor([[40, 50], [30, 60]]),
        scales=torch.ones(2),
        proposals=[torch.zeros(0, 4)] * 2,
        boxes=[boxes, torch.zeros(0, 4)],
        labels=[torch.tensor([4]), torch.zeros(0, dtype=torch.long)],
        samples=[Sample(str(i), Path(str(i)), 60, 40, *nothing) for i in range(2)],
    )


def test_a_batch_is_drawn_side_by_side_without_its_padding() -> None:
    b = batch()
    rois = torch.tensor([[0.0, 30, 10, 45, 20], [1, 10, 5, 50, 25], [1, 2, 2, 8, 8]])
    targets = RoITargets(torch.tensor([0, 2, 0]), torch.zeros(3, 4))
    before = b.images.clone()
    sheet = draw_batch(b, rois, targets)
    assert torch.equal(b.images, before), "the batch is not drawn on"
    assert sheet.shape == (40 + CAPTION, 50 + 60, 3)
    images = sheet[:40].copy()
    images[30:, 50:] = 0  # the name of the second is below its smaller image
    background = outline(40, 110, 30, 10, 45, 20) | outline(40, 110, 52, 2, 58, 8)
    np.testing.assert_array_equal(where(images, (128, 128, 128)), background)
    np.testing.assert_array_equal(where(images, colour_of(2)), outline(40, 110, 60, 5, 100, 25))
    np.testing.assert_array_equal(where(images, colour_of(4)), outline(40, 110, 5, 5, 25, 35, line=3))
    assert sheet[40:, :50].any(), "its file's name"
    assert sheet[30 : 30 + CAPTION, 50:].any()
    assert not sheet[30 + CAPTION :, 50:].any(), "below the smaller picture is black"


def test_no_more_pictures_of_a_batch_than_asked_for() -> None:
    empty = RoITargets(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    assert draw_batch(batch(), torch.zeros(0, 5), empty, most=1).shape == (40 + CAPTION, 50, 3)

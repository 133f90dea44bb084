"""The picture and table of one RoI. Numbers by hand: 16 x 16 map, RoI 9.25..15.5 by 6..10.53 in cells."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastrcnn.cli.explain_roi import ExplainRoiConfig, question_of, run
from fastrcnn.config.compose import compose
from fastrcnn.errors import UserError
from fastrcnn.report.explain_roi import explain
from fastrcnn.report.roi_drawing import write_explanation


def test_16x16_example() -> None:
    question, _ = question_of(ExplainRoiConfig(example="16x16"))
    truncate = explain(question, "truncate")
    assert (truncate.x, truncate.y, truncate.width, truncate.height) == (9, 6, 6, 4)
    assert truncate.rows == [(6, 7), (7, 8), (8, 9)]
    assert truncate.columns == [(9, 11), (11, 13), (13, 15)]
    assert truncate.values.tolist() == [[106, 108, 110], [122, 124, 126], [138, 140, 142]]
    # (15 - 9.25) * 4 and (15 - 9.25) * 3 of 6.25 * 4.53125
    assert truncate.quantised_share == pytest.approx(23 / 28.3203125)
    assert truncate.pooled_share == pytest.approx(17.25 / 28.3203125)
    lost = np.zeros((16, 16), bool)
    lost[6:11, 9:16] = True  # what the real RoI touches
    lost[6:9, 9:15] = False  # what is pooled
    assert np.array_equal(truncate.lost, lost)
    assert not truncate.gained.any()

    fast = explain(question, "fast_rcnn")
    assert (fast.x, fast.y, fast.width, fast.height) == (9, 6, 8, 6)  # 15.5 rounds to 16, 10.53 to 11
    assert np.argwhere(fast.gained).tolist() == [[11, column] for column in range(9, 16)]
    assert np.argwhere(fast.uses > 1)[:, 1].tolist() == [11, 14] * 6  # 8 cells in 3 bins: two columns are shared
    assert fast.pooled_share == pytest.approx(1)


def test_writes_pictures_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ExplainRoiConfig(example="8x8", output=str(tmp_path))) == 0
    text = capsys.readouterr().out
    for words in ("fast_rcnn", "partition", "truncate", "35.00 cells", "columns of the bins: 0..2  3..6"):
        assert words in text
    root = ElementTree.parse(tmp_path / "8x8.svg").getroot()
    size = (float(root.attrib["width"]), float(root.attrib["height"]))
    words = [e for e in root.iter() if e.tag.endswith("text")]
    assert [e.text for e in words].count("0.88") == 2 * 3 + 1  # twice in each map, and once as truncate's result
    assert all(0 <= float(e.attrib["x"]) <= size[0] and 0 <= float(e.attrib["y"]) <= size[1] for e in words)
    with Image.open(tmp_path / "8x8.png") as picture:
        assert picture.size == (2 * size[0], 2 * size[1])
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("roi", [[0, 0, 0, 0], [-90, -90, -50, -50], [90, 90, 10, 10], [-500, 3, 900, 700]])
def test_any_roi_can_be_drawn(tmp_path: Path, roi: list[float]) -> None:
    question, name = question_of(ExplainRoiConfig(grid="12x20", roi=roi, output_size=[2, 3]))
    write_explanation(question, tmp_path, name)
    assert (tmp_path / "12x20.png").stat().st_size > 0


def test_an_image_and_a_file_of_numbers(tmp_path: Path) -> None:
    pixels = np.zeros((40, 64), np.uint8)
    pixels[16:32, 32:48] = 255  # one cell of stride 16; the last 8 rows fill no cell
    Image.fromarray(pixels).save(tmp_path / "dot.png")
    question, name = question_of(ExplainRoiConfig(image=str(tmp_path / "dot.png"), roi=[0, 0, 40, 40]))
    assert name == "dot"
    assert question.grid.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    (tmp_path / "map.txt").write_text("1 2\n3 4\n")
    question, _ = question_of(ExplainRoiConfig(grid=str(tmp_path / "map.txt"), roi=[0, 0, 16, 16]))
    assert question.grid.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExplainRoiConfig(example="8x8", grid="4x4"), "example and grid: set only one"),
        (ExplainRoiConfig(grid="4x4"), "roi="),
        (ExplainRoiConfig(grid="nowhere.txt", roi=[0, 0, 1, 1]), "grid=nowhere.txt"),
        (ExplainRoiConfig(image="nowhere.png", roi=[0, 0, 1, 1]), "image=nowhere.png"),
        (ExplainRoiConfig(grid="4x4", roi=[0, 0, 1, 1], output_size=[0, 2]), "output_size"),
        (ExplainRoiConfig(grid="0x4", roi=[0, 0, 1, 1]), "has no cell"),
        (ExplainRoiConfig(grid="4x4", roi=[0, 0, 1, 1], stride=0), "stride=0"),
    ],
)
def test_mistakes_are_named(config: ExplainRoiConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(config)


def test_an_example_that_there_is_none_of_is_named() -> None:
    with pytest.raises(UserError, match=r"example=16x61: .*Did you mean '16x16'"):
        compose("explain-roi", ["example=16x61"])

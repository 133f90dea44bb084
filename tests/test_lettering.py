"""Text as pixels: no letter is lost, in whatever script."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from fastrcnn import visualize as module
from fastrcnn.visualize import lettering


def test_plain_text_is_drawn_by_pillows_own_font() -> None:
    mask = lettering("cat 0.98", 20)
    expected = ImageFont.load_default(size=20).getmask("cat 0.98", mode="L")
    assert mask.shape == expected.size[::-1]
    assert bytes(mask.tobytes()) == bytes(expected)
    assert lettering("cat", 40).shape[0] > 1.7 * lettering("cat", 20).shape[0]


@pytest.mark.parametrize("system", [True, False], ids=["system fonts", "none"])
def test_letters_outside_ascii_differ_from_each_other_and_from_the_box_of_a_missing_one(
    system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not system:
        if not hasattr(cv2, "FontFace"):
            pytest.skip("OpenCV before 5 has no letters of its own")
        module._system_font.cache_clear()
        monkeypatch.setattr(module, "SYSTEM_FONTS", ())
    letters = ["é", "Ж", "λ", *(["猫", "あ"] if hasattr(cv2, "FontFace") else [])]
    absent = ImageFont.load_default(size=24).getmask(module.ABSENT)
    if not hasattr(cv2, "FontFace") and module._system_font("éЖλ", 24) is None:
        pytest.skip("no font here has these letters")
    masks = [lettering(letter, 24) for letter in letters]
    module._system_font.cache_clear()
    assert len({(m.shape, m.tobytes()) for m in masks}) == len(letters)
    for mask in masks:
        assert (mask > 128).sum() > 20
        assert mask.tobytes() != bytes(absent)


def test_nothing_is_drawn_of_nothing() -> None:
    assert lettering("", 20).size == 0
    assert not np.any(lettering("  ", 20))

"""Frames that go into a file and come out of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fastrcnn.data import video
from fastrcnn.errors import UserError


def shade(number: int) -> np.ndarray:
    """A frame whose colour tells its number."""
    return np.full((48, 64, 3), (20 * number, 250 - 20 * number, 90), np.uint8)


@pytest.mark.parametrize("writers", [video.WRITERS, (("none", ".none"), *video.WRITERS[1:])], ids=["usual", "fallback"])
def test_frames_come_back_in_their_order(
    tmp_path: Path, writers: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "WRITERS", writers)
    with video.video_file(tmp_path / "a", 10, 64, 48) as file:
        for number in range(8):
            file.write(shade(number))
    suffix = next(suffix for code, suffix in writers if code != "none")
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]
    read = video.Video(file.path)
    assert (read.rate, read.length) == (10, 8)
    frames = list(read.frames())
    assert [f.number for f in frames] == list(range(8))
    assert [f.time for f in frames] == pytest.approx([n / 10 for n in range(8)])
    for frame in frames:
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.mean(axis=(0, 1)) - shade(frame.number)[0, 0]).max() < 12, "RGB, compressed"


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(UserError, match=r"a.mp4: not a video that OpenCV can read"):
        video.Video(path)
    cv2.imwrite(str(tmp_path / "b.png"), shade(1))
    with pytest.raises(UserError, match="OpenCV can write no video there"):
        video.VideoFile(tmp_path / "no folder" / "c", 10, 64, 48)

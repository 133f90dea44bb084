"""Frames that go into a file and come out of it."""

from __future__ import annotations

import struct
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
    with video.VideoFile(tmp_path / "a", 10, 64, 48) as file:
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


def test_frames_of_a_telephone_held_upright_are_upright(tmp_path: Path) -> None:
    """The file says by the matrix of its track that frames are to be rotated by 90 degrees to the right."""
    frame = np.zeros((192, 256, 3), np.uint8)
    frame[:48, :64] = 255
    with video.VideoFile(tmp_path / "a", 10, 256, 192) as file:
        file.write(frame)
    data = bytearray(file.path.read_bytes())
    at = data.find(b"tkhd")
    if at < 0:
        pytest.skip("this OpenCV writes no MP4")
    assert data[at + 4] == 0, "version of the box"
    struct.pack_into(">9i", data, at + 44, 0, 1 << 16, 0, -1 << 16, 0, 0, 192 << 16, 0, 1 << 30)
    file.path.write_bytes(data)
    (upright,) = video.Video(file.path).frames()
    assert upright.image.shape == (256, 192, 3)
    assert upright.image[8:40, -40:-8].min() > 200
    assert upright.image[:, :120].max() < 50


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(UserError, match=r"a.mp4: OpenCV cannot read this video"):
        video.Video(path)
    cv2.imwrite(str(tmp_path / "b.png"), shade(1))
    with pytest.raises(UserError, match="c: OpenCV cannot create this video"):
        video.VideoFile(tmp_path / "no folder" / "c", 10, 64, 48)

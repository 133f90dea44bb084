"""Reading pictures of every kind, compared with Pillow and with the arrays they were made of."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrcnn.data import images
from fastrcnn.data.images import (
    MAX_PIXELS,
    Stored,
    _reaches_its_end,
    bits_used,
    inspect,
    pixels_key,
    read_header,
    read_image,
)
from fastrcnn.errors import UserError


def smooth(height: int = 32, width: int = 48) -> np.ndarray:
    """A picture without noise, (H, W, 3) uint8 RGB, which JPEG keeps nearly as it is; no symmetry in it."""
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)), axis=2).astype(np.uint8)


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_pixels_come_as_rgb_rows_from_the_top(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((32, 48, 3), np.uint8)
    np.testing.assert_array_equal(image, smooth())


@pytest.mark.parametrize(
    ("options", "suffix"),
    [({"quality": 95}, ".jpg"), ({"quality": 95, "progressive": True}, ".jpg"), ({"lossless": True}, ".webp")],
)
def test_compressed_pictures_are_as_pillow_has_them(tmp_path: Path, options: dict, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path, **options)
    np.testing.assert_allclose(read_image(path).astype(int), by_pillow(path), atol=3)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_other_kinds_of_png_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path), by_pillow(path))


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.dstack((smooth(), np.full((32, 48), 7, np.uint8)))).save(path)
    np.testing.assert_array_equal(read_image(path), smooth())


def test_gray_and_cmyk_jpeg_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(smooth()).convert(mode).save(path, quality=95)
        np.testing.assert_allclose(read_image(path).astype(int), by_pillow(path), atol=3)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    """Not cut off at 255, and not their low byte: 0x1234 becomes 0x12."""
    deep = smooth().astype(np.uint16) << 8 | 0x34
    path = tmp_path / "rgb.png"
    assert cv2.imwrite(str(path), deep[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path), smooth())
    path = tmp_path / "gray.png"
    Image.fromarray(deep[:, :, 0]).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(smooth()[:, :, :1], 3, axis=2))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    """A PNG of 16 bits a channel, `chunks` before its pixels; colour: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_fewer_bits_in_sixteen_are_as_bright_as_eight(tmp_path: Path, bits: int, colour: int, channels: int) -> None:
    """An 8-bit image times a power of two, with ones below, is that image again. Alpha does not count."""
    image = smooth() if channels > 2 else np.repeat(smooth()[:, :, :1], 3, axis=2)
    deep = (image.astype(np.uint16) << (bits - 8)) | ((1 << (bits - 8)) - 1)
    alpha = np.full((32, 48, 1), 0xFFFF, np.uint16)
    values = np.dstack([deep[:, :, : 3 if channels > 2 else 1], *([alpha] if channels in (2, 4) else [])])
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(values, colour))
    np.testing.assert_array_equal(read_image(path), image)
    assert inspect(path) == Stored(48, 32, bits=bits)
    if channels in (1, 3):
        path = tmp_path / "a.tif"
        assert cv2.imwrite(str(path), values[:, :, ::-1])
        np.testing.assert_array_equal(read_image(path), image)
        assert inspect(path).bits == bits


@pytest.mark.parametrize(
    ("named", "values", "used"),
    [
        (None, [900], 10),
        (None, [4095], 12),
        (None, [4096], 14),
        (None, [0], 8),
        (12, [900], 12),  # dark 12-bit values, which alone would be treated as 10 bits
        (12, [4095 << 4], 16),  # as the standard asks: scaled to 16 bits
        (12, [20 << 4, 7 << 4], 16),  # so too, in a dark image
        (12, [5000, 20], 16),
        (16, [900], 16),
        (5, [17], 8),
        (0, [900], 10),  # nonsense
        (17, [900], 10),
    ],
)
def test_a_png_may_name_the_bits_that_its_values_use(named: int | None, values: list[int], used: int) -> None:
    image = np.array([values], np.uint16)[:, :, None]
    data = deep_png(image, 0, *([chunk(b"sBIT", bytes([named]))] if named is not None else []))
    assert bits_used(image, data) == used


def test_floating_point_images_are_refused_by_name(tmp_path: Path) -> None:
    for suffix, values in (("gray", smooth()[:, :, 0]), ("rgb", smooth())):
        path = tmp_path / f"{suffix}.tif"
        assert cv2.imwrite(str(path), values.astype(np.float32) / 255)
        with pytest.raises(UserError, match=rf"{suffix}\.tif: .*8 or 16"):
            read_image(path)


# ------------------------------------------------------------------------------------------ EXIF's orientation


def write_turned(folder: Path, kind: str, orientation: int, image: np.ndarray | None = None) -> Path:
    """An image, stored as `smooth`, whose EXIF data ask for an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(kind, {})
    path = folder / f"a{orientation}.{kind}"
    Image.fromarray(smooth() if image is None else image).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
def test_images_come_upright_as_pillow_has_them_or_as_stored(tmp_path: Path, kind: str, orientation: int) -> None:
    path = write_turned(tmp_path, kind, orientation)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    atol = 14 if kind in ("jpg", "avif") else 0
    np.testing.assert_allclose(read_image(path).astype(int), upright, atol=atol)
    np.testing.assert_allclose(read_image(path, 1).astype(int), smooth(), atol=atol)
    assert read_header(path.read_bytes(), path) == inspect(path) == Stored(48, 32, orientation)
    assert inspect(path).upright == upright.shape[1::-1]
    keys = {pixels_key(path.read_bytes(), turn) for turn in range(1, 9)}
    assert len(keys) == 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_images_are_rotated_too(tmp_path: Path, orientation: int) -> None:
    gray = smooth()[:, :, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(write_turned(tmp_path, "png", orientation, gray)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    for path in (tmp_path / "deep.png", tmp_path / "deep.tif"):
        Image.fromarray(gray.astype(np.uint16) << 4 | 3).save(path, exif=exif)
        np.testing.assert_array_equal(read_image(path), np.repeat(upright[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(read_image(path, 1)[:, :, 0], gray)


def test_a_tiffs_own_tag_counts_and_not_its_xmp(tmp_path: Path) -> None:
    """OpenCV rotates by the tag, which is undone; what it did not do must not be."""
    path = tmp_path / "a.tif"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(smooth()).save(path, tiffinfo={700: xmp})
    assert inspect(path) == Stored(48, 32)
    np.testing.assert_array_equal(read_image(path), smooth())


def test_exif_data_after_a_pngs_pixels_count_and_broken_ones_do_not(tmp_path: Path) -> None:
    data = write_turned(tmp_path, "png", 6).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert read_header(late, Path("a.png")) == Stored(48, 32, 6)
    for broken in (b"Exif", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0"):
        spoiled = data[:start] + chunk(b"eXIf", broken) + data[end:]
        assert read_header(spoiled, Path("a.png")) == Stored(48, 32)


@pytest.mark.parametrize("name", ["été.png", "数据 1.jpg", "a b=[c],{d}'.png"])
def test_any_name_of_a_file_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ñ" / name
    path.parent.mkdir()
    Image.fromarray(smooth()).save(path)
    assert read_image(path).shape == (32, 48, 3)


# ------------------------------------------------------------------------------------------ what is refused


def test_missing_and_empty_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg: the file cannot be read \(No such file"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_image(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"a\.jpg: the file is empty"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "data", [b"not a picture\n", b"<html>404</html>", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\0" * 99]
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jpg: .*not an image"):
        read_image(path)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "bmp", "webp"])
def test_a_picture_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    options = {"progressive": True} if kind == "progressive" else {}
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "jpeg" if kind == "progressive" else kind, **options)
    data = buffer.getvalue()
    path = tmp_path / "a.jpg"
    cuts = [1, 20, len(data) // 2, len(data) * 9 // 10]
    for length in [*cuts, len(data) - 2] if kind != "png" else cuts:  # a PNG's last bytes hold nothing
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="truncated"):
            read_image(path)
        with pytest.raises(UserError, match="truncated"):
            inspect(path)
    path.write_bytes(data)
    assert inspect(path) == Stored(48, 32)


def jpeg(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def test_a_jpeg_with_a_thumbnail_and_a_film_after_its_end_is_whole(tmp_path: Path) -> None:
    """Telephones write such files: what follows the end marker may hold any bytes."""
    thumbnail = jpeg(smooth(8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = jpeg(smooth())
    data = whole[:2] + segment + whole[2:] + b"mp4 \xff\xda \xff\xda more"
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    np.testing.assert_allclose(read_image(path).astype(int), smooth(), atol=12)


def test_a_thumbnails_end_is_not_taken_for_the_pictures(tmp_path: Path) -> None:
    thumbnail = jpeg(smooth(8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = jpeg(smooth())
    path = tmp_path / "a.jpg"
    path.write_bytes((whole[:2] + segment + whole[2:])[:-9])
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


def test_restart_markers_and_odd_sizes_are_no_cuts(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    assert cv2.imwrite(str(path), smooth(37, 51)[:, :, ::-1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])
    assert b"\xff\xd0" in path.read_bytes()
    assert read_image(path).shape == (37, 51, 3)


def test_the_end_of_a_jpeg_is_found_without_a_decoder() -> None:
    """Some decoders fill what is missing with gray instead of failing."""
    thumbnail = jpeg(smooth(8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        whole = jpeg(smooth(), **options)
        data = whole[:2] + segment + whole[2:]
        assert _reaches_its_end(data)
        assert _reaches_its_end(data + b"film \xff\xda \xff\xda")
        for length in (len(data) - 1, len(data) - 2, len(data) - len(whole) // 3, len(segment) + 30, 20, 2):
            assert not _reaches_its_end(data[:length])


def test_a_cut_jpeg_is_refused_also_where_the_decoder_would_fill_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    monkeypatch.setattr(images.cv2, "imdecode", lambda data, flags: np.full((32, 48, 3), 128, np.uint8))
    path.write_bytes(jpeg(smooth()))
    assert read_image(path).shape == (32, 48, 3)
    path.write_bytes(jpeg(smooth())[:-9])
    with pytest.raises(UserError, match=r"a\.jpg: .*truncated"):
        read_image(path)


def test_the_limit_is_ours_whatever_pillows_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 48)
    assert read_image(path).shape == (32, 48, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(UserError, match="48 x 32 pixels, more than the maximum of 1,535"):
        read_image(path)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (MAX_PIXELS + 1, 1), (60_000, 3_000)])
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bomb(width, height))
    with pytest.raises(UserError, match=rf"a\.png: .*more.* than the maximum of {MAX_PIXELS:,}"):
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_as_many_pixels_as_are_allowed_pass_the_header_without_a_warning() -> None:
    assert read_header(bomb(MAX_PIXELS, 1), Path("a.png")).size == (MAX_PIXELS, 1)

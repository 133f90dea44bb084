"""Names of classes, splits and images where they become parts of files: what a file can hold, and how it is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath

from fastrcnn.errors import UserError

NAME_BYTES = 255  # of a file's name, on the usual file systems
SAME_FILES = "differ in letter case only; on macOS and Windows the comp4 file of one replaces the other's"
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of controls, lone surrogates, line separators


def refuse_stream(source: str | None) -> None:
    """Raises UserError for a `source=` that is a camera or an address."""
    if source is None or Path(source).expanduser().exists():
        return
    if re.fullmatch(r"\d{1,3}|/dev/video\d+", source):
        raise UserError(
            f"source={source}: cameras are not read. Record a video, as `ffmpeg -i /dev/video0 -t 10 clip.mp4`, and "
            "give its file."
        )
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        raise UserError(f"source={source[:100]}: addresses are not read. Download the file, and give its path.")


def file_of(image_id: str, path: PurePath) -> str:
    """An image's id with the suffix of its file; some ids have it already."""
    return image_id.removesuffix(path.suffix) + path.suffix


def comp4_name(split: str, name: str) -> str:
    """The name of the file of a class."""
    return f"comp4_det_{split}_{name}.txt"


def comp4_id(image_id: str) -> str:
    """An image id as comp4 files have it: whitespace and `%` are percent-encoded, "a b" as "a%20b", since a space ends
    the id. So are the bytes of a file's name that are not UTF-8. Ids of the VOC devkit hold none of these."""
    return re.sub(
        r"[\s%\ud800-\udfff]",
        lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode(errors="surrogatepass")),
        image_id,
    )


def class_fault(name: str, split: str) -> str | None:
    """Why the detections of a class on a split cannot have a file, in words that follow the class's name, or None."""
    if not name:
        return "is empty, and each class needs a name"
    if name != name.strip():
        return "begins or ends with a space, which annotations are read without"
    if unprintable := [c for c in name if unicodedata.category(c) in UNPRINTABLE]:
        return f"holds the character {unprintable[0]!a}, which cannot be part of a file's name or of a line"
    if "/" in name or "\\" in name:
        return "holds a slash, which cannot be part of a file's name, and the file of its detections is named so"
    length = len(comp4_name(split, name).encode())
    if length > NAME_BYTES:
        return (
            f"is too long: the name of the file with its detections on '{split[:80]}' would have {length} bytes, and "
            f"may have {NAME_BYTES}"
        )
    return None


def same_files(names: Iterable[str]) -> list[list[str]]:
    """The groups of names that a file system which ignores case, or how accents are encoded, does not tell apart."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]

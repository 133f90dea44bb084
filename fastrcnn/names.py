"""Rules for how the names of classes, splits and images are written in file names and in the content of files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath

from fastrcnn.errors import UserError

NAME_BYTES = 255  # maximum length of a file name on common file systems
SAME_FILES = "differ only in letter case or Unicode form; on macOS and Windows, their comp4 files overwrite each other"
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: controls, lone surrogates, line and paragraph separators

# Characters that Markdown interprets: some anywhere, others at the start of a line or after `www`. The second group is
# the character, and the first group is the text before it.
MARKDOWN = re.compile(r"(^\d+(?=[.)])|www(?=\.)|^(?=[-+#=])|(?=[\\`*_\[\]<>&~$@:]))(.)", re.IGNORECASE)


def refuse_stream(source: str | None) -> None:
    """Raise UserError if the value of the key `source` names a camera or a URL, and not an existing file."""
    if source is None or Path(source).expanduser().exists():
        return
    if re.fullmatch(r"\d{1,3}|/dev/video\d+", source):
        raise UserError(
            f"source={source}: cameras are not supported. Record a video, for example with "
            "`ffmpeg -i /dev/video0 -t 10 clip.mp4`, and give its path."
        )
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        raise UserError(f"source={source[:100]}: URLs are not supported. Download the file and give its path.")


def file_of(image_id: str, path: PurePath) -> str:
    """Return an image id with the suffix of the image file `path`. A suffix that the id already has is not repeated."""
    return image_id.removesuffix(path.suffix) + path.suffix


def comp4_name(split: str, name: str) -> str:
    """Return the name of the file, in the VOC devkit's comp4 format, for the detections of class `name` on a split."""
    return f"comp4_det_{split}_{name}.txt"


def comp4_id(image_id: str) -> str:
    """Encode an image id for comp4 files (result files of the VOC devkit), in which a space ends the id.

    Whitespace, `%` and surrogates (from file names that are not UTF-8) are percent-encoded: "a b" becomes "a%20b". Ids
    of the VOC data sets do not contain any of these characters.
    """
    return re.sub(
        r"[\s%\ud800-\udfff]",
        lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode(errors="surrogatepass")),
        image_id,
    )


def class_fault(name: str, split: str) -> str | None:
    """Return the reason why a class name cannot be part of the name of a comp4 file of the split, or None if it can.

    The text completes a sentence that begins with the class name, for example "contains a slash, which ...".
    """
    if not name:
        return "has an empty name"
    if name != name.strip():
        return "starts or ends with whitespace, which is removed when annotations are read"
    if unprintable := [c for c in name if unicodedata.category(c) in UNPRINTABLE]:
        return f"contains the character {unprintable[0]!a}, which is not allowed in a file name"
    if "/" in name or "\\" in name:
        return "contains a slash, which is not allowed in a file name"
    length = len(comp4_name(split, name).encode())
    if length > NAME_BYTES:
        return (
            f"is too long: the name of its detection file for '{split[:80]}' would have {length} bytes, and the limit "
            f"is {NAME_BYTES}"
        )
    return None


def csv_cell(text: str) -> str:
    """Return text for a CSV file, with an apostrophe before it if a spreadsheet would run it as a formula."""
    number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not number else text


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, on one line: without formatting, HTML, lists and links."""
    return MARKDOWN.sub(r"\1\\\2", " ".join(text.split()))


def code_span(text: str) -> str:
    """Return text as a code span of Markdown. Backticks would end the span, and are replaced."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def same_files(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of two or more names that differ only in letter case or Unicode normalisation form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]

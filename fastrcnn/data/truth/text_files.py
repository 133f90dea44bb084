"""Lines of a user's text file, in the encodings that editors write, and the paths in it."""

from __future__ import annotations

import codecs
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastrcnn.errors import UserError

MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}  # before UTF-16, whose mark begins one of these
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_lines(path: Path) -> list[str]:
    """Lines of a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; UserError for any other encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        if encoding == "utf-8-sig" and 3 * data.count(0) > len(data):
            raise UserError(f"{path}: looks like UTF-16 without a byte order mark. Save it as UTF-8.")
        return data.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not in {encoding.removesuffix('-sig').upper()}. Save it as UTF-8."
        ) from None


def leads_out(name: str) -> bool:
    """Whether a path is absolute, or has `..` or a null character in it; also as Windows reads it."""
    windows = [PureWindowsPath(name)] if re.search(r"\\|^[A-Za-z]:/", name) else []
    paths = [PurePosixPath(name), *windows]
    return "\0" in name or any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in paths)

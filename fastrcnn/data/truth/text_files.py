"""Read text files that users provide, in the encodings that editors write, and check the paths in them."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastrcnn.data.truth.problems import LEADS_OUT
from fastrcnn.errors import UserError

# Byte order marks. UTF-32 comes first, because one of its marks starts with a mark of UTF-16.
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# Surrogates that no file name contains. Those from \udc80 to \udcff stand for the bytes of invalid UTF-8.
LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises UserError if the file cannot be read or has another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        if encoding == "utf-8-sig" and 3 * data.count(0) > len(data):
            raise UserError(f"{path}: the file looks like UTF-16 without a byte order mark. Save it as UTF-8.")
        return data.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not valid {encoding.removesuffix('-sig').upper()}. Save the file as UTF-8."
        ) from None


def exists(path: Path) -> bool:
    """Return whether a file or folder exists. If a name is too long, return False instead of raising OSError."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Return whether a path is a file. If a name is too long, return False instead of raising OSError."""
    return os.path.isfile(path)  # noqa: PTH113


def refuse_link(path: Path, folder: Path) -> None:
    """Raise UserError if a file is a link that points outside `folder`, because messages can quote its content."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: {LEADS_OUT}")


def leads_out(name: str) -> bool:
    """Return whether a path is absolute or contains `..` or a null character, by the rules of POSIX or Windows."""
    windows = [PureWindowsPath(name)] if re.search(r"\\|^[A-Za-z]:/", name) else []
    paths = [PurePosixPath(name), *windows]
    return "\0" in name or any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in paths)

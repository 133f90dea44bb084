"""Find the folders, images, annotations and split lists of a data set with VOC XML files.

Supported layouts are the layout of the VOC devkit (`JPEGImages/ID.jpg`, `Annotations/ID.xml`,
`ImageSets/Main/SPLIT.txt`), `images/` with `annotations/`, and images next to their XML files. There can also be one
folder per split, with one of these layouts. Image ids then start with the folder's name, such as `train/ID`. Ids are in
Unicode's composed form (NFC), because some systems, such as macOS, decompose file names.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastrcnn.data.annotations.formats.listing import SPLIT_NAMES
from fastrcnn.data.annotations.formats.voc_xml import last_part, read_annotation
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.text_files import is_file, leads_out, read_lines, refuse_link
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError, nearest

# Folder names in any letter case, in order of preference. The first two are used even if they contain no images or XML.
IMAGE_FOLDERS = ("JPEGImages", "images", "imgs", "img")
ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "labels", "xml", "xmls")
HEAD_BYTES = 4096  # at the start of an XML file, searched for <filename>
FILENAME = re.compile(r"<filename>([^<]*)</filename>")
ORDER = ("trainval", "train", "val", "test")  # from training to testing


@dataclass(frozen=True)
class Listing:
    """The contents of a folder."""

    names: dict[str, tuple[str, ...]]  # file names by NFC name without suffix
    suffixes: frozenset[str]  # suffixes of the files, in lower case
    folders: dict[str, str]  # folder names by lower-case name


@read_once(1024)
def _list(folder: Path) -> Listing:
    """List the folder. The result is empty if the folder cannot be read."""
    names: dict[str, tuple[str, ...]] = {}
    folders: dict[str, str] = {}
    suffixes = set()
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError:
        entries = []
    for entry in entries:
        if entry.name.startswith("._"):  # macOS metadata of a file
            continue
        if entry.is_dir():
            folders.setdefault(entry.name.casefold(), entry.name)
            continue
        stem, dot, suffix = entry.name.rpartition(".")
        names[nfc(stem)] = (*names.get(nfc(stem), ()), entry.name)
        suffixes.add((dot + suffix).lower())
    return Listing(names, frozenset(suffixes), folders)


def nfc(name: str) -> str:
    """Return the name in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def picture_folder(root: Path) -> Path:
    """Return the folder of a data set's images: JPEGImages, `images` or a similar name, or the folder itself."""
    return _folder(root, IMAGE_FOLDERS, set(IMAGE_SUFFIXES))


def annotation_folder(root: Path) -> Path:
    """Return the folder of a data set's XML files: Annotations, `annots` or a similar name, or the folder itself."""
    return _folder(root, ANNOTATION_FOLDERS, {".xml"})


def _folder(root: Path, names: tuple[str, ...], suffixes: set[str]) -> Path:
    for name in names[:2]:
        if (root / name).is_dir():
            return root / name
    here = _list(root)
    found = [root / here.folders[name.casefold()] for name in names if name.casefold() in here.folders]
    if found and found[0].name.casefold() in [name.casefold() for name in names[:2]]:
        return found[0]
    if here.suffixes & suffixes:
        return root
    if holding := [folder for folder in found if _holds(folder, suffixes)]:
        return holding[0]
    holding = [root / name for name in here.folders.values() if _holds(root / name, suffixes)]
    return holding[0] if len(holding) == 1 and holding[0].name.casefold() not in SPLIT_NAMES else root


def _holds(folder: Path, suffixes: set[str]) -> bool:
    """Return whether a folder, or a split's folder in it, contains files with one of the suffixes."""
    here = _list(folder)
    within = [name for key, name in here.folders.items() if key in SPLIT_NAMES]
    return bool(here.suffixes & suffixes) or any(_list(folder / name).suffixes & suffixes for name in within)


def _places(root: Path, image_id: str) -> Iterator[tuple[Path, str]]:
    """Yield each folder (`root`, or a split's folder in it) that can contain an image, and the id relative to it."""
    yield root, image_id
    folder, _, rest = image_id.partition("/")
    if folder.casefold() in SPLIT_NAMES and rest:
        yield root / folder, rest


def _files(folder: Path, image_id: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Find the files `ID.*` with these suffixes in a folder, in the order of the suffixes."""
    path = PurePosixPath(image_id)
    for form in (str, nfc, lambda name: unicodedata.normalize("NFD", name)):
        parent = folder / form(str(path.parent))
        found = [parent / name for name in _list(parent).names.get(nfc(path.name), ())]
        found = [p for p in found if p.suffix.lower() in suffixes and p.is_file()]
        if found:
            return sorted(found, key=lambda p: (suffixes.index(p.suffix.lower()), p.stem != path.name))
    return []


def find_images(root: Path, image_id: str) -> list[Path]:
    """Find the images `ID.*` of a data set. The image that <filename> in the annotation names comes first.

    If there are no such images, find the image that <filename> names (see `named_image`).
    """
    for place, rest in _places(root, image_id):
        if found := _files(picture_folder(place), rest, IMAGE_SUFFIXES):
            if len(found) > 1:
                named = nfc(last_part(read_annotation(find_annotation(root, image_id)).filename))
                found.sort(key=lambda p: nfc(p.name) != named)
            return found
    return named_image(root, image_id)


def named_image(root: Path, image_id: str) -> list[Path]:
    """Return a list with the image that <filename> of an annotation names, in the data set's folder of images.

    The list is empty if the image does not exist, or if another annotation has the image's name.
    """
    name = PurePosixPath(last_part(_filename_in(find_annotation(root, image_id))))
    if name.suffix.lower() not in IMAGE_SUFFIXES:
        return []
    for place, rest in _places(root, image_id):
        stem = str(PurePosixPath(rest).parent / name.stem)
        here = _files(picture_folder(place), stem, (name.suffix.lower(),))
        if here and not _files(annotation_folder(place), stem, (".xml",)):
            return here[:1]
    return []


def _filename_in(path: Path) -> str:
    """Return <filename> from the start of an XML file without parsing the file, or an empty string."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""
    found = FILENAME.search(head)
    return html.unescape(found[1].strip()) if found else ""


def find_annotation(root: Path, image_id: str) -> Path:
    """Return the path of an image's XML file, or the expected path if the file does not exist."""
    for place, rest in _places(root, image_id):
        if found := _files(annotation_folder(place), rest, (".xml",)):
            return found[0]
    return annotation_folder(root) / f"{image_id}.xml"


def homes(root: Path) -> list[Path]:
    """Return a data set's folder, its split folders, and the image and annotation folders, with links resolved."""
    places = [root, *(root / name for key, name in _list(root).folders.items() if key in SPLIT_NAMES)]
    return [f.resolve() for p in places for f in dict.fromkeys((p, picture_folder(p), annotation_folder(p)))]


def annotated_ids(root: Path) -> list[str]:
    """Return the sorted ids of all XML files (paths below the annotation folder without suffix)."""
    return sorted(image_id for image_id, _ in _all_files(annotation_folder(root), (".xml",)))


def _all_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield the id (the relative path without suffix) and the path of each file with one of `suffixes` below a folder.

    Metadata files of macOS are skipped.
    """
    for path in folder.rglob("*"):
        if path.suffix.lower() in suffixes and not path.name.startswith("._") and "__MACOSX" not in path.parts:
            yield nfc(path.relative_to(folder).with_suffix("").as_posix()), path


def split_folders(root: Path) -> dict[str, list[str]]:
    """Return the image ids in each subfolder of the annotation folder that is named after a split, such as `valid`.

    The result is empty if there are fewer than two such folders, because one folder does not define the other splits.
    """
    base = annotation_folder(root)
    found = {}
    for name in sorted(_list(base).folders.values()):
        if name.casefold() in SPLIT_NAMES and (ids := annotated_ids(base / name)):
            found[name] = [f"{name}/{image_id}" for image_id in ids]
    return found if len(found) > 1 else {}


def pictures_without_annotation(root: Path) -> list[Path]:
    """Find the images of a data set that have no XML file, sorted by path."""
    splits = split_folders(root) if annotation_folder(root) == root else {}
    found = [path for name in splits for path in pictures_without_annotation(root / name)]
    annotated, elsewhere = set(annotated_ids(root)), tuple(f"{name}/" for name in splits)
    for image_id, path in _all_files(picture_folder(root), IMAGE_SUFFIXES):
        if image_id not in annotated and not image_id.startswith(elsewhere):
            found.append(path)
    if annotated and found:  # some can belong to XML files with other names
        named = {path for image_id in annotated for path in find_images(root, image_id)[:1]}
        found = [path for path in found if path not in named]
    return sorted(found)


def missing_image(root: Path, image_id: str) -> str:
    """Return the error message about a missing image, with the suffixes of unsupported files that have its name."""
    read = ", ".join(IMAGE_SUFFIXES)
    path = PurePosixPath(image_id)
    for place, rest in _places(root, image_id):
        names = _list(picture_folder(place) / PurePosixPath(rest).parent).names.get(nfc(path.name), ())
        others = sorted({Path(n).suffix.lower() for n in names} - {".xml", ".txt", ".json", ""})
        if others:
            return f"no such image ({read}). Convert the file with the unsupported suffix {' or '.join(others)}."
    return f"no such image ({read})."


def where_files_are(root: Path) -> str:
    """Return a message that names the folder with the most images and the folder with the most XML files.

    The result is "" if there are no images or no XML files.
    """
    found = []
    for suffixes in (IMAGE_SUFFIXES, (".xml",)):
        files = sorted(path for _, path in _all_files(root, suffixes))
        if not files:
            return ""
        folder = Counter(p.parent for p in files).most_common(1)[0][0]
        name = f"{folder.relative_to(root).as_posix()}/" if folder != root else "the data set's folder"
        found.append((folder, f"{name} (such as {next(p.name for p in files if p.parent == folder)})"))
    (images, images_text), (annotations, annotations_text) = found
    advice = "Give each image and its XML file the same name."
    if (images, annotations) != (picture_folder(root), annotation_folder(root)):
        advice = "Rename these folders to JPEGImages and Annotations."
    return f"images are in {images_text}, and XML files are in {annotations_text}. {advice}"


def split_lists(root: Path) -> list[str]:
    """Return the names of the lists in `ImageSets/Main`, without `.txt`, sorted."""
    return sorted(p.stem for p in (root / "ImageSets" / "Main").glob("*.txt"))


def whole_lists(root: Path) -> list[str]:
    """Return the names of the lists in `ImageSets/Main`, except lists of a single class (CLASS_SPLIT next to SPLIT)."""
    lists = split_lists(root)
    return [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]


def read_split(root: Path, split: str) -> list[str]:
    """Return the image ids in `ImageSets/Main/SPLIT.txt` below `root`, in the order of the lines.

    A line contains an id, or an id and -1, 0 or 1 (ignored), as in the devkit's lists of a single class. An id can end
    with the suffix of its file. It can contain spaces if an image or annotation with this id exists. It can be in
    double quotes, which are not part of the id.

    Raises UserError if the list is missing or empty, has an invalid or duplicate line, or is a link out of `root`.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not is_file(path):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder. Check data.root and the names of the splits.")
        present = split_lists(root)
        there = f"Available lists: {', '.join(present[:20])}." if present else f"{path.parent} contains no lists."
        whole = sorted(whole_lists(root), key=lambda name: ORDER.index(SPLIT_NAMES.get(name.casefold(), "val")))
        example = f" For example, set data.train=[{whole[0]}] data.test=[{whole[-1]}]." if len(whole) > 1 else ""
        raise UserError(f"{path}: no image list for the split '{split}'. {there}{nearest(split, present)}{example}")
    refuse_link(path, root)
    ids: dict[str, int] = {}
    for number, raw in enumerate(read_lines(path), 1):
        if not (line := raw.strip()):
            continue
        if leads_out(line):
            raise UserError(
                f"{path}, line {number}: the id '{line.split()[0]}' points outside the folder of the data set. "
                "Fix the id."
            )
        image_id = _id_of(root, line.replace("\\", "/"))
        if image_id is None:
            raise UserError(
                f"{path}, line {number}: no image or annotation has the id '{line[:80]}'. A line must contain an id, "
                "or an id and -1, 0 or 1."
            )
        if nfc(image_id) in ids:
            raise UserError(
                f"{path}, line {number}: '{image_id}' is already in line {ids[nfc(image_id)]}. Delete one of "
                "the two lines."
            )
        ids[nfc(image_id)] = number
    if not ids:
        raise UserError(f"{path}: the list is empty.")
    return list(ids)


def _id_of(root: Path, line: str) -> str | None:
    """Return the id in a line of a list, or None if it contains spaces and no image or annotation has this id."""
    id_and_flag = line.rsplit(maxsplit=1)
    texts = [line, id_and_flag[0]] if id_and_flag[1:] in (["-1"], ["0"], ["1"]) else [line]
    texts += [text[1:-1] for text in texts if len(text) > 2 and text[0] == text[-1] == '"']
    for text in texts:
        stem, dot, suffix = text.rpartition(".")
        has_suffix = (dot + suffix).lower() in (*IMAGE_SUFFIXES, ".xml")
        if len(text.split()) == 1 and not has_suffix:
            continue  # the usual case, which does not need to search for files
        for image_id in (text, stem) if has_suffix else (text,):
            if find_images(root, image_id) or is_file(find_annotation(root, image_id)):
                return image_id
    return None if len(texts[-1].split()) > 1 else texts[-1]

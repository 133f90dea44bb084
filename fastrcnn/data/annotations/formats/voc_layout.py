"""Where a data set with XML files keeps what: folders, images, annotations, split lists.

The layout is the devkit's: `JPEGImages/ID.jpg`, `Annotations/ID.xml`, `ImageSets/Main/SPLIT.txt`; or `images/` and
`annotations/`, or images and XML files side by side; and each of these below a folder for each split, whose name then
begins the id: `train/ID`. Ids are in Unicode's composed form, since the files may be in either: macOS decomposes.
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
from fastrcnn.data.truth.text_files import leads_out, read_lines
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError, nearest

# Names of folders in any letter case, the better ones first; the first two do not need to hold a file themselves.
IMAGE_FOLDERS = ("JPEGImages", "images", "imgs", "img")
ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "labels", "xml", "xmls")
HEAD_BYTES = 4096  # of an XML file, in which its <filename> is
FILENAME = re.compile(r"<filename>([^<]*)</filename>")
ORDER = ("trainval", "train", "val", "test")  # from training to testing


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    names: dict[str, tuple[str, ...]]  # of files, by the name without its suffix, composed
    suffixes: frozenset[str]  # of the files, in lower case
    folders: dict[str, str]  # names of folders, by the name in lower case


@read_once(1024)
def _list(folder: Path) -> Listing:
    """What the folder holds; nothing if it is not there."""
    names: dict[str, tuple[str, ...]] = {}
    folders: dict[str, str] = {}
    suffixes = set()
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError:
        entries = []
    for entry in entries:
        if entry.name.startswith("._"):  # macOS's notes about a file
            continue
        if entry.is_dir():
            folders.setdefault(entry.name.casefold(), entry.name)
            continue
        stem, dot, suffix = entry.name.rpartition(".")
        names[nfc(stem)] = (*names.get(nfc(stem), ()), entry.name)
        suffixes.add((dot + suffix).lower())
    return Listing(names, frozenset(suffixes), folders)


def nfc(name: str) -> str:
    """The name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def picture_folder(root: Path) -> Path:
    """Where a data set keeps its images: JPEGImages as in VOC, else `images` and the like, else the folder."""
    return _folder(root, IMAGE_FOLDERS, set(IMAGE_SUFFIXES))


def annotation_folder(root: Path) -> Path:
    """Where a data set keeps its XML files: Annotations as in VOC, else `annots` and the like, else the folder."""
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
    """Whether a folder, or one for a split in it, has such files."""
    here = _list(folder)
    within = [name for key, name in here.folders.items() if key in SPLIT_NAMES]
    return bool(here.suffixes & suffixes) or any(_list(folder / name).suffixes & suffixes for name in within)


def _places(root: Path, image_id: str) -> Iterator[tuple[Path, str]]:
    """The folders whose images and annotations an id may belong to, and the id there."""
    yield root, image_id
    folder, _, rest = image_id.partition("/")
    if folder.casefold() in SPLIT_NAMES and rest:
        yield root / folder, rest


def _files(folder: Path, image_id: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files `ID.*` of these suffixes in a folder, in their order."""
    path = PurePosixPath(image_id)
    for form in (str, nfc, lambda name: unicodedata.normalize("NFD", name)):
        parent = folder / form(str(path.parent))
        found = [parent / name for name in _list(parent).names.get(nfc(path.name), ())]
        found = [p for p in found if p.suffix.lower() in suffixes and p.is_file()]
        if found:
            return sorted(found, key=lambda p: (suffixes.index(p.suffix.lower()), p.stem != path.name))
    return []


def find_images(root: Path, image_id: str) -> list[Path]:
    """The images `ID.*` of a data set; the one that the annotation names comes first. Without any it is the image that
    the annotation names."""
    for place, rest in _places(root, image_id):
        if found := _files(picture_folder(place), rest, IMAGE_SUFFIXES):
            if len(found) > 1:
                named = nfc(last_part(read_annotation(find_annotation(root, image_id)).filename))
                found.sort(key=lambda p: nfc(p.name) != named)
            return found
    return named_image(root, image_id)


def named_image(root: Path, image_id: str) -> list[Path]:
    """The image that <filename> of an annotation names, in the folder of the images; none if it is not there, or has an
    annotation of its own name."""
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
    """What <filename> at the beginning of an XML file says, without reading all of it; empty if it is not there."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""
    found = FILENAME.search(head)
    return html.unescape(found[1].strip()) if found else ""


def find_annotation(root: Path, image_id: str) -> Path:
    """The XML file of an image, or where it should be."""
    for place, rest in _places(root, image_id):
        if found := _files(annotation_folder(place), rest, (".xml",)):
            return found[0]
    return annotation_folder(root) / f"{image_id}.xml"


def homes(root: Path) -> list[Path]:
    """The folders, links followed, that the files of a data set must be in."""
    places = [root, *(root / name for key, name in _list(root).folders.items() if key in SPLIT_NAMES)]
    return [f.resolve() for p in places for f in dict.fromkeys((p, picture_folder(p), annotation_folder(p)))]


def annotated_ids(root: Path) -> list[str]:
    """Ids of all annotations, sorted."""
    return sorted(image_id for image_id, _ in _all_files(annotation_folder(root), (".xml",)))


def _all_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """The files below a folder, with the ids that their places mean."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in suffixes and not path.name.startswith("._") and "__MACOSX" not in path.parts:
            yield nfc(path.relative_to(folder).with_suffix("").as_posix()), path


def split_folders(root: Path) -> dict[str, list[str]]:
    """The ids of each folder that has a split's name and holds XML files: train, valid, test, below the annotations.

    Empty where there are fewer than two such folders, since one alone says nothing about the others' images.
    """
    base = annotation_folder(root)
    found = {}
    for name in sorted(_list(base).folders.values()):
        if name.casefold() in SPLIT_NAMES and (ids := annotated_ids(base / name)):
            found[name] = [f"{name}/{image_id}" for image_id in ids]
    return found if len(found) > 1 else {}


def pictures_without_annotation(root: Path) -> list[Path]:
    """Images of a data set that no XML file belongs to."""
    splits = split_folders(root) if annotation_folder(root) == root else {}
    found = [path for name in splits for path in pictures_without_annotation(root / name)]
    annotated, elsewhere = set(annotated_ids(root)), tuple(f"{name}/" for name in splits)
    for image_id, path in _all_files(picture_folder(root), IMAGE_SUFFIXES):
        if image_id not in annotated and not image_id.startswith(elsewhere):
            found.append(path)
    if annotated and found:  # some may belong to XML files of other names
        named = {path for image_id in annotated for path in find_images(root, image_id)[:1]}
        found = [path for path in found if path not in named]
    return sorted(found)


def missing_image(root: Path, image_id: str) -> str:
    """What to say about an image that is not there."""
    read = ", ".join(IMAGE_SUFFIXES)
    path = PurePosixPath(image_id)
    for place, rest in _places(root, image_id):
        names = _list(picture_folder(place) / PurePosixPath(rest).parent).names.get(nfc(path.name), ())
        others = sorted({Path(n).suffix.lower() for n in names} - {".xml", ".txt", ".json", ""})
        if others:
            return f"no such image ({read}). There is one in {' and '.join(others)}, which is not read: convert it."
    return f"no such image ({read})."


def where_files_are(root: Path) -> str:
    """Where most images and XML files of a data set are, and what to do if they do not match; empty if it lacks one."""
    found = []
    for suffixes in (IMAGE_SUFFIXES, (".xml",)):
        files = sorted(path for _, path in _all_files(root, suffixes))
        if not files:
            return ""
        folder = Counter(p.parent for p in files).most_common(1)[0][0]
        name = f"{folder.relative_to(root).as_posix()}/" if folder != root else "the data set's folder"
        found.append((folder, f"{name} (as {next(p.name for p in files if p.parent == folder)})"))
    (images, images_text), (annotations, annotations_text) = found
    advice = "give an image and its XML file the same name."
    if (images, annotations) != (picture_folder(root), annotation_folder(root)):
        advice = "rename these folders to JPEGImages and Annotations."
    return f"images are in {images_text}, XML files in {annotations_text}: {advice}"


def split_lists(root: Path) -> list[str]:
    """Names of the lists in `ImageSets/Main`."""
    return sorted(p.stem for p in (root / "ImageSets" / "Main").glob("*.txt"))


def whole_lists(root: Path) -> list[str]:
    """Names of the split lists that are not of one class, as CLASS_SPLIT beside SPLIT."""
    lists = split_lists(root)
    return [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]


def read_split(root: Path, split: str) -> list[str]:
    """Image ids in `ImageSets/Main/SPLIT.txt` below `root`.

    A line holds an id, or as in the devkit's lists of one class an id and -1, 0 or 1, which is not used. An id may end
    in the suffix of its file, and may hold spaces if there is an image or an annotation of it; CVAT quotes such ids.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}.")
        present = split_lists(root)
        there = f"There are: {', '.join(present[:20])}." if present else f"{path.parent} has none."
        whole = sorted(whole_lists(root), key=lambda name: ORDER.index(SPLIT_NAMES.get(name.casefold(), "val")))
        example = f" Name the lists, as data.train=[{whole[0]}] data.test=[{whole[-1]}]." if len(whole) > 1 else ""
        raise UserError(f"{path}: no list of images for the split '{split}'. {there}{nearest(split, present)}{example}")
    ids: dict[str, int] = {}
    for number, raw in enumerate(read_lines(path), 1):
        if not (line := raw.strip()):
            continue
        if leads_out(line):
            raise UserError(f"{path}, line {number}: the id '{line.split()[0]}' leads out of the data set; refused.")
        image_id = _id_of(root, line.replace("\\", "/"))
        if image_id is None:
            raise UserError(
                f"{path}, line {number}: no image or annotation has the id '{line[:80]}'. A line should hold an id, or "
                "an id and -1, 0 or 1."
            )
        if nfc(image_id) in ids:
            raise UserError(f"{path}, line {number}: '{image_id}' stands in line {ids[nfc(image_id)]} already.")
        ids[nfc(image_id)] = number
    if not ids:
        raise UserError(f"{path}: the list is empty.")
    return list(ids)


def _id_of(root: Path, line: str) -> str | None:
    """The id in a line of a list; None if it holds spaces and there is no such image."""
    id_and_flag = line.rsplit(maxsplit=1)
    texts = [line, id_and_flag[0]] if id_and_flag[1:] in (["-1"], ["0"], ["1"]) else [line]
    texts += [text[1:-1] for text in texts if len(text) > 2 and text[0] == text[-1] == '"']
    for text in texts:
        stem, dot, suffix = text.rpartition(".")
        has_suffix = (dot + suffix).lower() in (*IMAGE_SUFFIXES, ".xml")
        if len(text.split()) == 1 and not has_suffix:
            continue  # the usual case, without a look at the files
        for image_id in (text, stem) if has_suffix else (text,):
            if find_images(root, image_id) or find_annotation(root, image_id).is_file():
                return image_id
    return None if len(texts[-1].split()) > 1 else texts[-1]

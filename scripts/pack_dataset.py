#!/usr/bin/env python3
"""Pack a data set in Pascal VOC's layout into a few small files, for a machine that cannot download it.

    python scripts/pack_dataset.py pack VOCdevkit/VOC2007 PACK --proposals trainval.proposals test.proposals \\
        --weights VGG16.safetensors --megabytes 250
    python scripts/pack_dataset.py unpack PACK FOLDER

Packing is lossy: images are encoded again as AVIF, with the highest quality that fits into --megabytes. The boxes of
proposals are rounded to integers and sorted, their scores are omitted, and weights are converted to float16. The
section "Packed images" of docs/notes.md shows what this costs. Without --proposals, more space is left for the images,
and training generates the proposals. The pack consists of zip files of at most --part megabytes and of parts.json with
their SHA-256 digests. A megabyte is 1,000,000 bytes.

`unpack` checks the digests and writes FOLDER/VOCdevkit/VOC2007 with the images as BMP files (5.4 GB for VOC2007),
FOLDER/VOC2007.proposals (a store with the proposals of all images) and FOLDER/VGG16.safetensors.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from fastrcnn.data.annotations.formats.voc_layout import find_annotation, find_images, read_split
from fastrcnn.data.images import decode_stored, read_bytes
from fastrcnn.errors import UserError
from fastrcnn.files import digest, replace_file, write_folder
from fastrcnn.parallel.ahead import ahead
from fastrcnn.progress import progress
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.weights import safetensors_files

Item = TypeVar("Item")
Member = tuple[str, bytes]  # name and content of a file in a part

MB = 1_000_000
HEADERS, END = 76, 22  # bytes that a zip file adds to a member, besides its name, twice; and at the end of the file
LISTS = "lists-and-annotations.tar.xz"
INDEX = "parts.json"
CHUNK = 500  # images per member with proposals
TRIED = 200  # images on which the quality is chosen
AHEAD = 16  # images that are encoded or decoded ahead, per group
SPEED = 6  # of the AVIF encoder, 0 (slowest) to 10. 5 takes four times as long for 0.3 dB


def pack(root: Path, out: Path, options: argparse.Namespace) -> str:
    """Pack the data set at `root`, and return a summary.

    Raises UserError if an image or a proposal is missing, or if the pack cannot be as small as required.
    """
    refuse_without_avif()
    splits = {name: spaced(read_split(root, name), options.limit) for name in options.splits}
    ids = list(dict.fromkeys(i for of_split in splits.values() for i in of_split))
    small = [(LISTS, lists_and_annotations(root, splits))]
    small += [half_precision(path) for path in options.weights]
    if options.proposals:
        small += packed_proposals(options.proposals, ids, options.max_proposals)
    budget = options.megabytes * MB - sum(map(size_in_part, small))
    if budget <= 0:
        raise UserError(
            f"--megabytes {options.megabytes}: the lists, proposals and weights alone need more. Increase it."
        )
    images, quality = within(budget, root, ids)
    with write_folder(out, replace=False) as folder:
        written = write_parts([*small, *images], folder, int(options.part * MB))
        index = {
            "name": root.name,
            "splits": options.splits,
            "images": len(ids),
            "avif_quality": quality,
            "parts": written,
        }
        replace_file(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    sizes = [part["bytes"] for part in written.values()]
    return (
        f"{out}: {len(ids)} images (AVIF, quality {quality}) in {len(sizes)} part(s) of at most {max(sizes) / MB:.1f} "
        f"MB, {sum(sizes) / MB:.1f} MB in total. Unpack with: python scripts/pack_dataset.py unpack {out} FOLDER"
    )


def spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` items, at equal distances in the list."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[n * len(items) // count] for n in range(count)]


def lists_and_annotations(root: Path, splits: dict[str, list[str]]) -> bytes:
    """Return a compressed tar file with the lists of the splits and the annotations of their images."""
    files = {f"ImageSets/Main/{name}.txt": "".join(f"{i}\n" for i in ids).encode() for name, ids in splits.items()}
    for image_id in dict.fromkeys(i for ids in splits.values() for i in ids):
        path = find_annotation(root, image_id)
        if path.is_file():  # test images of a challenge have no annotations
            files[f"Annotations/{image_id}.xml"] = path.read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def half_precision(path: Path) -> Member:
    """Return the weights of a .safetensors file as a .safetensors file with float16 instead of float32."""
    from safetensors.torch import save  # an optional package; `read` explains how to install it

    state, metadata = safetensors_files.read(path)
    halves = {name: w.half() if w.dtype == torch.float32 else w for name, w in state.items()}
    for name, w in halves.items():
        if not w.isfinite().all():
            raise UserError(f"{path}: the values of {name} are not finite in float16. This file cannot be packed.")
    return f"weights/{path.name}", save(halves, metadata)


def packed_proposals(paths: Sequence[Path], ids: Sequence[str], limit: int) -> Iterator[Member]:
    """Yield at most `limit` proposals of each image as compressed integers. Every image must be in a store.

    Of more proposals, those at equal distances in the store's order are taken, because detectors that were trained on
    the best ones had a lower AP. The boxes are sorted, and x1 is stored as the difference from the previous box, and x2
    and y2 as width and height. With the bytes arranged by their position in a box, they need 2.9 KB per image instead
    of 3.9.
    """
    stores = [ProposalStore(path) for path in paths]
    owners = {i: store for store in stores for i in ids if i in store}
    if missing := [i for i in ids if i not in owners]:
        raise UserError(f"The stores have no proposals for {len(missing)} image(s), such as '{missing[0]}'.")
    for n in range(0, len(ids), CHUNK):
        chunk = ids[n : n + CHUNK]
        boxes = [differences(np.rint(taken(owners[i].boxes(i), limit)).astype(np.int64)) for i in chunk]
        arrays = {
            "ids": np.array([i.encode() for i in chunk]),
            "sizes": np.array([owners[i].size(i) for i in chunk], "<i4"),  # (N, 2) height and width
            "counts": np.array([len(b) for b in boxes], "<i4"),
            "boxes": np.concatenate(boxes).astype("<u2").view(np.uint8).T.copy(),  # (8, K)
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        yield f"proposals/{n:06d}.npz.xz", lzma.compress(buffer.getvalue(), preset=9)


def taken(boxes: np.ndarray, limit: int) -> np.ndarray:
    return boxes[spaced(range(len(boxes)), limit)]


def differences(boxes: np.ndarray) -> np.ndarray:
    """Sort boxes (P, 4) and return x1 minus the x1 of the previous box, y1, width and height. See `restored`."""
    ordered = boxes[np.lexsort(boxes.T[::-1])]
    return np.stack([np.diff(ordered[:, 0], prepend=0), ordered[:, 1], *(ordered[:, 2:] - ordered[:, :2]).T], axis=1)


def restored(rows: np.ndarray) -> np.ndarray:
    """Return the sorted boxes (P, 4) of which `differences` returned the rows (P, 4)."""
    corners = np.stack([rows[:, 0].cumsum(), rows[:, 1]], axis=1)
    return np.concatenate([corners, corners + rows[:, 2:]], axis=1)


def within(budget: float, root: Path, ids: Sequence[str]) -> tuple[list[Member], int]:
    """Return all images, encoded with the highest quality for which they fit into `budget` bytes, and the quality."""
    tried = random.Random(0).sample(list(ids), min(TRIED, len(ids)))
    low, high = 1, 95  # low is assumed to fit
    while low < high:
        middle = (low + high + 1) // 2
        images = list(progress(encoded(root, tried, middle), len(tried), f"Trying quality {middle}"))
        size = sum(map(size_in_part, images))
        low, high = (middle, high) if size / len(tried) * len(ids) <= budget else (low, middle - 1)
    for quality in range(low, 0, -1):
        work = progress(encoded(root, ids, quality), len(ids), f"Encoding with quality {quality}")
        images = list(work)
        if sum(map(size_in_part, images)) <= budget:
            return images, quality
    raise UserError(f"The images do not fit into {budget / MB:.1f} MB, even with AVIF quality 1. Increase --megabytes.")


def encoded(root: Path, ids: Iterable[str], quality: int) -> Iterator[Member]:
    """Yield the images as AVIF files, in the order of the ids."""
    for future in ahead(partial(_encode, root, quality), ids, AHEAD):
        yield future.result()


def _encode(root: Path, quality: int, image_id: str) -> Member:
    paths = find_images(root, image_id)
    if not paths:
        raise UserError(f"{root}: image '{image_id}' has no image file.")
    image, stored = decode_stored(read_bytes(paths[0]), paths[0])
    if stored.orientation != 1:
        raise UserError(f"{paths[0]}: the image has EXIF orientation {stored.orientation}, which AVIF would lose.")
    settings = [cv2.IMWRITE_AVIF_QUALITY, quality, cv2.IMWRITE_AVIF_SPEED, SPEED]
    _, content = cv2.imencode(".avif", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return f"JPEGImages/{image_id}.avif", content.tobytes()


def size_in_part(member: Member) -> int:
    """Return the number of bytes that a member adds to a part."""
    return len(member[1]) + 2 * len(member[0]) + HEADERS


def write_parts(members: Iterable[Member], folder: Path, limit: int) -> dict[str, dict[str, str | int]]:
    """Write the members to zip files of at most `limit` bytes. Return the size and the digest of each file."""
    groups: list[list[Member]] = [[]]
    size = END
    for member in members:
        needed = size_in_part(member)
        if END + needed > limit:
            raise UserError(f"{member[0]}: {needed / MB:.1f} MB do not fit into a part. Increase --part.")
        if size + needed > limit:
            groups.append([])
            size = END
        groups[-1].append(member)
        size += needed
    written: dict[str, dict[str, str | int]] = {}
    for number, group in enumerate(groups, 1):
        path = folder / f"part-{number:02d}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in group:
                archive.writestr(name, content)
        written[path.name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    return written


def unpack(packed: Path, folder: Path) -> str:
    """Unpack a pack into a new folder, and return a summary. Raises UserError if a part is missing or damaged."""
    index = json.loads(read_bytes(packed / INDEX))
    for name, part in index["parts"].items():
        path = packed / name
        if not path.is_file():
            raise UserError(f"{path}: this part is missing. Copy all parts that {INDEX} lists to {packed}.")
        if digest(path) != part["sha256"]:
            raise UserError(f"{path}: the part is damaged, because its SHA-256 digest is wrong. Copy it again.")
    refuse_without_avif()
    proposals: list[bytes] = []
    files: list[str] = []
    with write_folder(folder, replace=False) as out:
        root = out / "VOCdevkit" / index["name"]

        def images() -> Iterator[Member]:
            for member, content in members(packed / name for name in index["parts"]):
                kind, _, rest = member.partition("/")
                if kind == "proposals":
                    proposals.append(content)
                elif kind == "weights":
                    files.append(rest)
                    (out / Path(rest).name).write_bytes(content)
                elif member == LISTS:
                    with tarfile.open(fileobj=io.BytesIO(content)) as lists:
                        lists.extractall(root, filter="data")
                else:
                    yield member, content

        for written in progress(ahead(partial(_decode, root), images(), AHEAD), index["images"], "Decoding"):
            written.result()
        if proposals:
            files.append(f"{index['name']}.proposals")
            write_store(out / files[-1], unpacked_proposals(proposals), "unpacked", {"rounded": True})
    return f"{folder / 'VOCdevkit'}: {index['name']}, splits {', '.join(index['splits'])}; {', '.join(files)}"


def members(parts: Iterable[Path]) -> Iterator[Member]:
    for part in parts:
        with zipfile.ZipFile(part) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)


def _decode(root: Path, image: Member) -> None:
    """Write an AVIF image as a BMP file, because a data set cannot contain AVIF files and BMP is fastest to write."""
    name, content = image
    path = (root / name).with_suffix(".bmp")
    if ".." in path.parts or root not in path.parents:
        raise UserError(f"{name}: the pack is damaged, because this path is outside the data set.")
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"{name}: OpenCV {cv2.__version__} cannot decode this AVIF file. Install a later release.")
    _, bitmap = cv2.imencode(".bmp", pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bitmap.tobytes())


def refuse_without_avif() -> None:
    """Raise UserError if OpenCV cannot read and write AVIF files."""
    if not cv2.haveImageWriter("image.avif"):
        raise UserError(
            f"OpenCV {cv2.__version__} was built without AVIF. Install opencv-contrib-python-headless 4.12 or later "
            "from PyPI."
        )


def unpacked_proposals(chunks: Iterable[bytes]) -> Iterator[ImageProposals]:
    for chunk in chunks:
        with np.load(io.BytesIO(lzma.decompress(chunk))) as arrays:
            ids, sizes, counts, planes = (arrays[name] for name in ("ids", "sizes", "counts", "boxes"))
        rows = np.ascontiguousarray(planes.T).view("<u2").astype(np.float32)
        ends = np.cumsum(counts)
        for image_id, (height, width), end, count in zip(ids, sizes.tolist(), ends, counts, strict=True):
            yield ImageProposals(image_id.decode(), height, width, restored(rows[end - count : end]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="pack a data set")
    packing.add_argument("root", type=Path, help="folder with JPEGImages, Annotations and ImageSets")
    packing.add_argument("out", type=Path, help="new folder for the parts")
    packing.add_argument("--splits", nargs="+", default=["trainval", "test"], help="lists in ImageSets/Main")
    packing.add_argument("--limit", type=int, help="maximum number of images of each split")
    packing.add_argument("--proposals", type=Path, nargs="*", default=[], metavar="STORE")
    packing.add_argument("--max-proposals", type=int, default=1000, help="per image (default: 1000)")
    packing.add_argument("--weights", type=Path, nargs="*", default=[], metavar="FILE", help=".safetensors files")
    packing.add_argument("--megabytes", type=float, default=250, help="maximum size of the pack (default: 250)")
    packing.add_argument("--part", type=float, default=50, help="maximum size of a part in megabytes (default: 50)")
    unpacking = commands.add_parser("unpack", help="unpack a data set")
    unpacking.add_argument("packed", type=Path, help="folder with the parts")
    unpacking.add_argument("folder", type=Path, help="new folder")
    options = parser.parse_args()
    run: Callable[[], str] = (
        partial(pack, options.root, options.out, options)
        if options.command == "pack"
        else partial(unpack, options.packed, options.folder)
    )
    try:
        print(run())
    except UserError as error:
        sys.exit(f"pack_dataset.py: {error}")


if __name__ == "__main__":
    main()

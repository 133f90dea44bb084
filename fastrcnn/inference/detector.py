"""A trained detector for images in memory: proposals, the network, and what follows it, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import numpy as np
from PIL import Image
from torch import Tensor

from fastrcnn.data.dataset import Example
from fastrcnn.data.images import apply_orientation, orientation_of, read_image
from fastrcnn.data.loader import collate_pyramids
from fastrcnn.data.transforms import Augmentation, boxes_in, show
from fastrcnn.inference.detect import Stopwatch, detect
from fastrcnn.inference.found import Found
from fastrcnn.inference.network import Network
from fastrcnn.parallel.ahead import ahead, chunks_of, threads
from fastrcnn.proposals.clean import clean
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections, Sample

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Boxes: TypeAlias = np.ndarray | Tensor
Key = TypeVar("Key")
Chunk: TypeAlias = list[tuple[Key, np.ndarray]]  # an image to look at, and those after it that are not looked at
SCALE = "of 0 to 1 multiply by 255 and round"


@dataclass(eq=False, repr=False)
class Detector:
    """Finds objects in images. `fastrcnn.load` makes one.

    classes: names; label k of a detection is classes[k - 1], as 0 is the background.
    network: the network alone. settings: thresholds; see DetectionSettings. scaling: the sizes at which images are
    shown to the network. propose: makes proposals (P, 4) of an image (H, W, 3) where none are given; it is called in
    several threads at once. watch: how long the stages have taken so far.
    """

    network: Network
    classes: Sequence[str]
    settings: DetectionSettings
    scaling: Augmentation
    propose: Callable[[np.ndarray], np.ndarray]
    draw_threshold: float = 0.5  # of what it finds, the score from which on it is drawn

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        self.watch = Stopwatch(self.network.device)

    @overload
    def detect(  # type: ignore[overload-overlap]  # a str is one picture, though it is a sequence of str
        self, images: Picture, proposals: Boxes | None = None, batch: int = 1
    ) -> Found: ...
    @overload
    def detect(
        self, images: Sequence[Picture], proposals: Sequence[Boxes] | None = None, batch: int = 1
    ) -> list[Found]: ...
    def detect(
        self,
        images: Picture | Sequence[Picture],
        proposals: Boxes | Sequence[Boxes] | None = None,
        batch: int = 1,
    ) -> Found | list[Found]:
        """Objects in an image, or in each of a list of images, best first, on the CPU.

        images: of any size, each one of: the path of a file; a PIL image; an array (H, W, 3) uint8, RGB (OpenCV's BGR
            must be turned round: `image[..., ::-1]`); a tensor (3, H, W) uint8, RGB. Files and PIL images are rotated
            upright as their EXIF data ask; `np.array(image)` keeps a PIL image as it is stored. 16-bit files are scaled
            as `fastrcnn.data.images.bits_used` says; give their paths, as Pillow keeps the high bytes of colour alone.
        proposals: (P, 4) float, half-open x1 y1 x2 y2 in pixels of the upright image, for a list of images a list of
            such. What reaches over the image's edge is cut off. None: selective search makes them, in about .04 s of a
            core for a photograph of 500 x 375; those of the next images while the network looks at this one.
        batch: images that go through the network together, padded to one size. More is faster on a GPU, and changes
            scores a little at padded edges.

        Boxes of the detections are half-open x1 y1 x2 y2 in pixels of the upright image, whatever the network saw.
        Raises TypeError or ValueError, beginning with the argument's name, for what is no image or no proposals, and
        UserError for a file that cannot be read.
        """
        several = isinstance(images, (list, tuple))
        pictures: Sequence[Picture] = images if several else [images]  # type: ignore[assignment,list-item]
        given: list[Boxes] | None = None
        if proposals is not None:
            given = list(proposals) if several else [proposals]  # type: ignore[list-item]
            if len(given) != len(pictures):
                raise ValueError(f"proposals: expected one array for each of {len(pictures)} images, got {len(given)}")
        # Only files are left to the threads: two of them must not load the same PIL image, which a list may repeat.
        sources = (image if isinstance(image, (str, Path)) else as_array(image) for image in pictures)
        with closing(ahead(as_array, sources, max(1, threads() // 2))) as arrays:
            numbered = enumerate(array.result() for array in arrays)
            with closing(self.detect_each(numbered, None if given is None else given.__getitem__, batch)) as each:
                found = [
                    Found(**vars(of_image), pixels=partial(as_array, image), draw_threshold=self.draw_threshold)
                    for image, (*_, of_image, _) in zip(pictures, each, strict=True)
                ]
        return found if several else found[0]

    def detect_each(
        self,
        images: Iterable[tuple[Key, np.ndarray]],
        proposals: Callable[[Key], Boxes] | None = None,
        batch: int = 1,
        every: int = 1,
    ) -> Generator[tuple[Key, np.ndarray, Detections, bool], None, None]:
        """Each key and image (H, W, 3) uint8 RGB with the detections of the last one that was looked at, and whether
        that is this one.

        Images 0, `every`, 2 `every`, ... are looked at. Proposals of the next ones are made in other threads while the
        network looks at these, which takes images from `images` ahead; see `ahead`. Close the generator to end early.
        proposals, batch: see detect.
        """
        size = max(batch, threads() // every)  # of a video, all frames between are kept as well
        with closing(self._with_boxes(chunks_of(images, every), proposals, size)) as pairs:
            for together in chunks_of(pairs, batch):
                pyramid = collate_pyramids([self._pyramid(chunk[0][1], boxes) for chunk, boxes in together])
                found = detect(self.network, [pyramid], self.settings, self.watch)
                for (chunk, _), (_, of_image) in zip(together, found, strict=True):
                    named = replace(of_image, classes=tuple(self.classes))
                    for i, (key, image) in enumerate(chunk):
                        yield key, image, named, i == 0

    def _with_boxes(
        self, chunks: Iterable[Chunk], proposals: Callable[[Key], Boxes] | None, size: int
    ) -> Generator[tuple[Chunk, np.ndarray], None, None]:
        """Each chunk with the proposals of its first image; they are made for `size` chunks at a time."""
        if proposals is not None:
            for chunk in chunks:
                key, image = chunk[0]
                yield chunk, as_boxes(proposals(key), image.shape)
            return

        def propose(chunk: Chunk) -> tuple[Chunk, np.ndarray, float]:
            begin = time.thread_time()
            boxes = self.propose(chunk[0][1])
            return chunk, boxes, time.thread_time() - begin

        with closing(ahead(propose, chunks, size)) as made:
            for future in made:
                with self.watch.stage("proposals"):
                    chunk, boxes, spent = future.result()
                self.watch.add_work("proposals", spent)
                yield chunk, boxes

    def _pyramid(self, image: np.ndarray, boxes: np.ndarray) -> list[Example]:
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        sample = Sample("", Path(), image.shape[1], image.shape[0], *nothing)
        views = self.scaling.levels()
        shown = [(*show(image, view), boxes_in(view, boxes, sample.width, sample.height), view) for view in views]
        truth, labels = sample.training_boxes, sample.labels
        return [Example(level, own, truth, labels, scale, sample, view) for level, scale, own, view in shown]

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return (
            f"Detector({len(self.classes)} classes: {shown}; {type(self.network).__name__} on {self.network.runs_on})"
        )


def as_array(image: Picture) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB. Raises as Detector.detect says."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise TypeError(
                f"image: expected a PIL image of 8 bits a channel, got the mode {image.mode}; give its file's path"
            )
        pixels = np.array(image.convert("RGB"))
        return apply_orientation(pixels, orientation_of(image))  # asked later: Pillow rotates a TIFF when it loads it
    if not isinstance(image, (np.ndarray, Tensor)):
        raise TypeError(f"image: expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"image: expected a tensor of the shape (3, H, W), got {tuple(image.shape)}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if image.dtype != np.uint8:
        how = "shift 12-bit values by 4 and 16-bit ones by 8" if image.dtype == np.uint16 else SCALE
        raise TypeError(f"image: expected uint8, 0 to 255, got {image.dtype}; {how}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected an array of the shape (H, W, 3), got {tuple(image.shape)}")
    return np.ascontiguousarray(image)


def as_boxes(proposals: Boxes, shape: Sequence[int]) -> np.ndarray:
    """Proposals (P, 4) float32, cut off at the edge of an image of a shape (H, W, ...); those beyond it are left out.

    Raises as Detector.detect says.
    """
    array = proposals.detach().cpu().numpy() if isinstance(proposals, Tensor) else np.asarray(proposals)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"proposals: expected numbers, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"proposals: expected the shape (P, 4), got {array.shape}")
    array = array.astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(array).all(axis=1) & (array[:, 2:] > array[:, :2]).all(axis=1)))
    if len(bad):
        raise ValueError(
            f"proposals: row {bad[0]} is no box x1 y1 x2 y2 with x1 < x2 and y1 < y2: {array[bad[0]].tolist()} "
            f"({len(bad)} such rows)"
        )
    return clean(array, shape[0], shape[1])[0]

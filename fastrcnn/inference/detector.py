"""A trained detector that runs proposal generation, the network and postprocessing in one call."""

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
Chunk: TypeAlias = list[tuple[Key, np.ndarray]]  # an image to detect in, followed by images that are skipped


@dataclass(eq=False, repr=False)
class Detector:
    """A detector that finds objects in images. `fastrcnn.load` returns one.

    classes: names; label k of a detection is classes[k - 1], because 0 is the background.
    network: the network. settings: thresholds; see DetectionSettings. scaling: the sizes of the images that the network
    processes. propose: generates proposals (P, 4) for an image (H, W, 3) if the caller passes none; it is called from
    several threads. watch: accumulated times of the stages.
    """

    network: Network
    classes: Sequence[str]
    settings: DetectionSettings
    scaling: Augmentation
    propose: Callable[[np.ndarray], np.ndarray]
    draw_threshold: float = 0.5  # minimum score of detections that are drawn

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        self.watch = Stopwatch(self.network.device)

    @overload
    def detect(  # type: ignore[overload-overlap]  # a str is one image, although it is also a sequence of str
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
        """Detect objects in an image or in each image of a list. Detections are on the CPU, sorted by score.

        images: of any size. Each is a file path, a PIL image, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W) uint8
            RGB. Convert OpenCV's BGR images with `image[..., ::-1]`. Files and PIL images are rotated according to
            their EXIF orientation; pass `np.array(image)` to prevent this. 16-bit files are scaled according to
            `fastrcnn.data.images.bits_used`. Pass their paths, because Pillow keeps only the high bytes of colour.
        proposals: (P, 4) float, half-open x1 y1 x2 y2 in pixels of the upright image; for a list of images, a list of
            such arrays. Boxes are clipped to the image. None: generate proposals by selective search (about 0.04 s on
            one core for a 500 x 375 image). This runs in other threads, ahead of the network.
        batch: number of images per forward pass, padded to the same size. Larger batches are faster on a GPU. The
            padding changes scores slightly.

        Boxes of the detections are half-open x1 y1 x2 y2 in pixels of the upright image.
        Raises TypeError or ValueError, starting with the argument's name, for invalid images or proposals, and
        UserError for a file that cannot be read.
        """
        several = isinstance(images, (list, tuple))
        pictures: Sequence[Picture] = images if several else [images]  # type: ignore[assignment,list-item]
        given: list[Boxes] | None = None
        if proposals is not None:
            given = list(proposals) if several else [proposals]  # type: ignore[list-item]
            if len(given) != len(pictures):
                raise ValueError(
                    f"proposals: expected one array per image ({len(pictures)} images), got {len(given)} arrays"
                )
        # Threads only read files: two threads must not load the same PIL image, and a list can contain it twice.
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
        """Detect in every `every`-th image. Yield each key, its image (H, W, 3) uint8 RGB, detections, and a flag.

        The detections are those of the last image that the network processed, and the flag is true if that is this
        image. Other threads generate proposals ahead of the network, so images are also read ahead; see `ahead`. Close
        the generator to stop early. proposals, batch: see detect.
        """
        size = max(batch, threads() // every)  # for a video, the frames in between are also in memory
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
        """Yield each chunk with the proposals of its first image, generated for up to `size` chunks in parallel."""
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
    """Convert an image to (H, W, 3) uint8 RGB. For the errors raised, see Detector.detect."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise TypeError(
                f"image: expected a PIL image with 8 bits per channel, got mode {image.mode}. Pass the file's path "
                "instead."
            )
        pixels = np.array(image.convert("RGB"))
        # Read the orientation after loading, because Pillow rotates a TIFF when it loads the pixels.
        return apply_orientation(pixels, orientation_of(image))
    if not isinstance(image, (np.ndarray, Tensor)):
        raise TypeError(f"image: expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"image: expected a tensor with shape (3, H, W), got {tuple(image.shape)}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if image.dtype != np.uint8:
        if image.dtype == np.uint16:
            how = "Shift 12-bit values right by 4 bits, 16-bit values by 8 bits."
        else:
            how = "If the values are in the range 0 to 1, multiply them by 255 and round."
        raise TypeError(f"image: expected dtype uint8, values 0 to 255, got {image.dtype}. {how}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected a non-empty array with shape (H, W, 3), got {tuple(image.shape)}")
    return np.ascontiguousarray(image)


def as_boxes(proposals: Boxes, shape: Sequence[int]) -> np.ndarray:
    """Convert proposals to (P, 4) float32, clip them to an image of shape (H, W, ...), and drop those outside it.

    For the errors raised, see Detector.detect.
    """
    array = proposals.detach().cpu().numpy() if isinstance(proposals, Tensor) else np.asarray(proposals)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"proposals: expected a numeric dtype, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"proposals: expected shape (P, 4), got {array.shape}")
    array = array.astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(array).all(axis=1) & (array[:, 2:] > array[:, :2]).all(axis=1)))
    if len(bad):
        raise ValueError(
            f"proposals: row {bad[0]} is {array[bad[0]].tolist()}, which is not a finite box x1 y1 x2 y2 with x1 < x2 "
            f"and y1 < y2. Number of such rows: {len(bad)}."
        )
    return clean(array, shape[0], shape[1])[0]

"""Problems of a data set: the kinds of errors and notes, with a title and advice for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

SKIP = "or set data.skip_bad=true to skip it."
# Kinds of errors: training stops, or skips the image or object. Each kind has a title and advice.
ERRORS = {
    "split": ("Unusable split", "Fix the split. Its images were not checked."),
    "duplicate_id": (
        "Duplicate image id",
        "Rename one of the images, or remove the id from one of the splits. Ids must be unique across all folders.",
    ),
    "missing_image": ("Missing image", f"Add the image, remove its id from the split, {SKIP}"),
    "bad_image": ("Unreadable image", f"Download or export the file again, {SKIP}"),
    "link": ("Link to a file outside the data set", "Replace the link with the file itself."),
    "missing_annotation": ("Missing annotation", f"Add the file, remove the id from the split, {SKIP}"),
    "normalised": (
        "Boxes normalised to 0..1",
        "Multiply the coordinates by the image's size, or export the boxes in pixels.",
    ),
    "annotation": ("Unusable annotation", "Fix the file, or export it again."),
    "no_objects": ("No objects to train on", "Add objects that training uses. The notes list ignored objects."),
    "box": ("Unusable box", f"Fix the box, delete the object, {SKIP}"),
    "unknown_class": (
        "Unknown class",
        "Fix the name, add the class to data.classes, or set data.other_classes=leave_out to skip its objects.",
    ),
    "classes": ("Invalid class names", "Fix data.classes, or the names in the annotations."),
    "image_size": ("Image and annotation differ in size", "Fix the size and the boxes in the annotation."),
    "no_proposals": ("Image without proposals", "Generate proposals for all images with `fastrcnn propose`."),
    "proposal_size": (
        "Proposals for an image of another size",
        "Generate the proposals again with `fastrcnn propose`.",
    ),
    "bad_proposals": ("Damaged proposals", "Generate or convert the proposals again with `fastrcnn propose`."),
}
# Kinds of notes: training continues.
NOTES = {
    "crowd": (
        "Annotations with iscrowd or ignore, excluded from training",
        "No action needed if the flags are correct. If the annotation is a single object, set `iscrowd` to 0.",
    ),
    "ignored": (
        "Annotations with ignore, which evaluation counts",
        "No action needed if this is intended. To exclude them from evaluation, set `iscrowd`.",
    ),
    "other_classes": ("Objects of other classes", "No action needed: data.other_classes=leave_out skips them."),
    "left_out": (
        "Images skipped because they have no proposals",
        "No action needed: data.missing_proposals=leave_out skips them.",
    ),
    "unused_file": (
        "Unused annotations",
        "No action needed if this is intended. Otherwise name the file or split in data.train or data.test.",
    ),
    "lone": ("Images without annotation", "Annotate them. For images without objects, add empty annotations."),
    "leak": ("Training and test data overlap", "Keep each image in only one of the splits."),
    "copies": ("Duplicate images", "Keep only one of them, unless this is intended."),
    "zero_based": (
        "Boxes look zero-based",
        "If all boxes of the data set are zero-based, set data.first_pixel=0. Otherwise fix these boxes.",
    ),
    "rotated": ("Rotated boxes", "No action needed: the axis-aligned bounding box of each is used."),
    "unlabelled": (
        "Images without a label file",
        "No action needed if they contain no objects. Otherwise add the label files.",
    ),
    "polygons": ("Polygons and other outlines", "No action needed: the axis-aligned bounding box of each is used."),
    "scores": ("Detection scores in label files", "No action needed if you have checked the boxes."),
    "several": ("Several annotations of one image", "To use an older annotation, delete the newer ones."),
    "flags": (
        "Objects marked deleted or ignore",
        "No action needed if this is intended. Each note says how the object is treated.",
    ),
    "same_id": ("Images with the same id", "Give each image its own name and its own XML file."),
    "filename": ("<filename> names another file", "Fix <filename>, or rename the XML file."),
    "elements": ("Unused elements", "No action needed, unless one of them contains ground truth."),
    "letter_case": ("Class names that differ only in case", "If they are the same class, use one spelling."),
    "escaped_id": (
        "Ids with spaces",
        "These ids are percent-encoded in comp4 files. To use VOC's devkit or server, rename the images.",
    ),
    "no_truth": ("No ground truth to test on", "Choose another test split, or set data.test=[]."),
    "test_only": ("Class without training objects", "Add training images of the class, or remove the class."),
    "few_objects": ("Few training objects", "Classes with so few objects are rarely detected reliably. Add images."),
    "clipped": ("Clipped boxes", "No action needed: the boxes extend beyond the image by at most one pixel."),
    "negative": ("Images without objects", "No action needed if this is correct: training uses them as background."),
    "colours": (
        "Images that are not stored as 8-bit RGB",
        "No action needed: images are converted when they are read.",
    ),
    "turned": ("Images rotated upright", "No action needed: their annotations have the size of the upright image."),
    "either_way": (
        "EXIF rotation not applied because both orientations fit",
        "If the boxes do not fit the objects, store the images upright, without an EXIF orientation.",
    ),
    "as_stored": (
        "EXIF rotation not applied because the stored size fits",
        "If the boxes do not fit the objects, fix the size in the annotation.",
    ),
    "bits": (
        "16-bit images that use fewer bits",
        "If images use different numbers of bits, convert them to the same number, or add an sBIT chunk to PNG files.",
    ),
    "small_boxes": ("Boxes smaller than a cell of the feature map", "Increase data.short_sides and data.long_side."),
    "missed": (
        "Objects without an overlapping proposal",
        "These objects are unlikely to be detected. See docs/proposals.md.",
    ),
    "zero_proposals": ("Images with an empty list of proposals", "Training uses only their ground-truth boxes."),
    "foreign_proposals": ("Proposals for images that are not in the splits", "No action needed: they are not used."),
    "dropped_proposals": (
        "Proposals dropped when the proposal store was written",
        "If there are many, check the original proposals.",
    ),
    "few_rois": (
        "Few background RoIs",
        "Some batches have fewer RoIs than configured. solver.bg_iou=[0,0.5] accepts all RoIs with an IoU below 0.5.",
    ),
}
KINDS = ERRORS | NOTES  # in the order in which they are shown
ROUTINE = ("clipped", "other_classes", "turned", "polygons")  # notes that are logged as information, not as warnings
# Kinds that can hide objects, because an annotation or image was not read.
UNREAD = ("split", "missing_image", "link", "missing_annotation", "normalised", "annotation", "box", "unknown_class")
LEADS_OUT = "the link points outside the folder of the data set and is not followed. Replace it with the file itself."
FEW, NEARLY_ALL = 5, 0.9  # a problem in at least this number and fraction of the images is reported once


@dataclass(frozen=True)
class Problem:
    """An error in a data set, or a note about the data set. As text, it is `FILE, line 3, object 2 (cat): WHAT`.

    kind: a key of KINDS. what: the message. object: the number of the object in the file, from 1. name: the class of
    the object. unit: the format's term for an object, such as `row`.
    """

    kind: str
    file: str
    what: str
    line: int | None = None
    object: int | None = None
    name: str | None = None
    unit: str = "object"

    @property
    def error(self) -> bool:
        """Return whether training stops because of the problem, or has to skip an image or object."""
        return self.kind in ERRORS

    @property
    def title(self) -> str:
        return KINDS[self.kind][0]

    @property
    def advice(self) -> str:
        """Return advice on how to solve the problem."""
        return KINDS[self.kind][1]

    @property
    def place(self) -> str:
        """Return the line (`line 3`) or the object (`2 cat`) that the problem concerns, or an empty string."""
        return f"line {self.line}" if self.line else f"{self.object} {self.name or ''}" if self.object else ""

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        name = f" ({self.name})" if self.name else ""
        return f"{self.file}{line}{f', {self.unit} {self.object}{name}' if self.object else ''}: {self.what}"


@dataclass
class Problems:
    """The problems found while reading annotations, collected in order to report them together."""

    found: list[Problem] = field(default_factory=list)  # errors and notes
    images: int = 0  # number of images requested; 0 if unknown

    @property
    def errors(self) -> list[Problem]:
        return by_cause([p for p in self.found if p.error], self.images)

    @property
    def notes(self) -> list[Problem]:
        return [p for p in self.found if not p.error]

    @property
    def lines(self) -> list[str]:
        """Return each error as text."""
        return [str(problem) for problem in self.errors]


def by_kind(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """Group problems by kind, in the order of KINDS."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}


def nearly_all(number: int, images: int) -> bool:
    """Return whether a problem in `number` of `images` images is so frequent that a common cause is likely."""
    return images > 0 and number >= max(FEW, NEARLY_ALL * images)


def by_cause(problems: Sequence[Problem], images: int) -> list[Problem]:
    """Merge problems with the same kind and message if nearly all images have them. Merged problems come first.

    images: number of images. If one file annotates several images, only errors are merged, not notes.
    """
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.what), []).append(problem)
    summaries, merged = [], set[tuple[str, str]]()
    for key, group in groups.items():
        first, files = group[0], len({problem.file for problem in group})
        of_one = first.unit not in ("object", "line")
        alike = nearly_all(len(group) if of_one else files, images) and (first.error or not of_one)
        if alike or (first.kind == "normalised" and len(group) > 1):
            objects = f"{len(group)} {first.unit}s in " if first.object else ""
            where = f"{objects}{files} file{'s' if files > 1 else ''}"
            what = f"{first.what} The same problem occurs in {where}. This is the first."
            summaries.append(replace(first, what=what))
            merged.add(key)
    return summaries + [problem for problem in problems if (problem.kind, problem.what) not in merged]


def shorten(lines: Sequence[str], most: int = 20) -> str:
    """Indent and join the first `most` lines, and append the number of remaining lines, if any."""
    more = len(lines) - most
    return "\n".join(f"  {line}" for line in lines[:most]) + (f"\n  and {more} more" if more > 0 else "")

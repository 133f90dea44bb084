"""What can be wrong with a data set, or worth knowing about it: the kinds of problems, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

SKIP = "data.skip_bad=true leaves it out."
# Errors: training refuses them, or leaves something out. Each kind has a title and what to do.
ERRORS = {
    "split": ("List of images", "Fix the list; its images were not checked."),
    "duplicate_id": ("Id in two lists", "Rename one of the images: all is kept by id, between folders too."),
    "missing_picture": ("Missing image", f"Put the image there, or take its id out of the list; {SKIP}"),
    "bad_picture": ("Unreadable image", f"Fetch or export the file again; {SKIP}"),
    "link": ("Link out of the data set", "Put the file itself there instead of the link."),
    "missing_annotation": ("Missing annotation", f"Put the file there, or take its id out of the list; {SKIP}"),
    "normalised": ("Boxes normalised to 0..1", "Multiply them by the image's size, or export them in pixels."),
    "annotation": ("Unusable annotation", "Correct the file, or export it again."),
    "no_objects": ("No object to train on", "Add objects that training uses; the notes say what it does not."),
    "box": ("Unusable box", f"Correct the box or delete the object; {SKIP}"),
    "unknown_class": ("Unknown class", "Correct it, add it to data.classes, or say data.other_classes=leave_out."),
    "classes": ("Names of the classes", "Correct data.classes, or the names in the annotations."),
    "picture_size": ("Image and annotation differ in size", "Correct the size and the boxes in the annotation."),
    "no_proposals": ("Image without proposals", "Make proposals for all images with `fastrcnn propose`."),
    "proposal_size": ("Proposals of another image", "Make them again with `fastrcnn propose`."),
    "bad_proposals": ("Damaged proposals", "Make or convert them again with `fastrcnn propose`."),
}
# Notes: nothing stops for them.
NOTES = {
    "crowd": (
        "Annotations marked as crowds, not trained on",
        "Nothing, if real crowds; masks of objects need `iscrowd` 0.",
    ),
    "ignored": ("Annotations marked ignore, which evaluation counts", "Nothing, if intended; `iscrowd` exempts them."),
    "other_classes": ("Objects of other classes", "Nothing: data.other_classes leaves them out."),
    "left_out": ("Images left out because they have no proposals", "Nothing: data.missing_proposals leaves them out."),
    "unused_file": ("Annotations not used", "Nothing, if it is so; else name it in data.train or data.test."),
    "lone": ("Images without annotation", "Annotate them, with no object in them if there is none."),
    "leak": ("Trained on what is tested", "Take the image out of one of the lists."),
    "copies": ("The same image twice", "Keep one of them, unless it is meant."),
    "zero_based": (
        "Boxes look zero-based",
        "If the whole data set counts from 0, say data.first_pixel=0; if not, fix these.",
    ),
    "rotated": ("Rotated boxes", "Nothing: the upright box around each is used."),
    "unlabelled": ("Images without a label file", "Nothing, if no object is in them; else put the files there."),
    "polygons": ("Polygons and other outlines", "Nothing: the upright box around each is used."),
    "scores": ("Scores of detections in label files", "Nothing, if you have checked the boxes."),
    "several": ("Several annotations of an image", "Keep one of them, if the newest is not the one that you mean."),
    "flags": ("Objects marked deleted or ignore", "Nothing, if intended: each note says what was done."),
    "same_id": ("Images that share an id with others", "Give each image its own name and its own XML file."),
    "filename": ("<filename> names another file", "Correct <filename>, or the name of the XML file."),
    "elements": ("XML elements that are not used", "Nothing, unless one of them holds truth."),
    "letter_case": ("Classes that differ in letter case", "Write the name in one way if they are one class."),
    "escaped_id": ("Ids with spaces", "comp4 files percent-encode them: rename images for VOC's devkit or server."),
    "no_truth": ("Nothing to test on", "Choose other test lists, or data.test=[]."),
    "test_only": ("Class without training objects", "Add training images of it, or leave the class out."),
    "few_objects": ("Few training objects", "A class with so few can hardly be learned; add images."),
    "clipped": ("Boxes clipped", "Nothing needs to be done: they were at most a pixel out of the image."),
    "negative": ("Images without objects", "Nothing, if it is so: they are trained on as background."),
    "colours": ("Images stored in another way", "Nothing: they become RGB with 8 bits when they are read."),
    "turned": ("Images rotated upright", "Nothing: their annotations have the size of the upright image."),
    "either_way": ("EXIF rotation not applied, as both ways fit", "If boxes do not fit so, rotate the pixels."),
    "as_stored": ("EXIF rotation not applied, as the stored size fits", "If boxes do not fit so, correct the size."),
    "bits": ("16-bit images that use fewer bits", "If they differ, convert them alike, or give PNGs an sBIT chunk."),
    "small_boxes": ("Boxes smaller than a cell", "Larger data.short_sides and data.long_side help."),
    "missed": ("Objects without a proposal", "They can hardly be found; make proposals of a finer search."),
    "zero_proposals": ("Images with an empty list of proposals", "Training uses their truth boxes alone."),
    "foreign_proposals": ("Proposals of images not in the lists", "Nothing: they are not used."),
    "dropped_proposals": ("Proposals dropped when the store was made", "See where they came from if there are many."),
    "few_rois": ("Few background RoIs", "Steps are not full; solver.bg_iou=[0,0.5] takes all RoIs of low overlap."),
}
KINDS = ERRORS | NOTES  # in the order in which they are shown
ROUTINE = ("clipped", "other_classes", "turned", "polygons")  # notes about what is done as a rule, no warnings
# Kinds that leave objects unread.
UNREAD = ("split", "missing_picture", "link", "missing_annotation", "normalised", "annotation", "box", "unknown_class")
LEADS_OUT = "a link leads out of the data set; refused. Put the file itself there."
FEW, NEARLY_ALL = 5, 0.9  # images, and share of them, from which on one cause is one problem


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, or worth knowing; reads `FILE, line 3, object 2 (cat): WHAT`.

    kind: one of KINDS. object: its number in the file, from 1; unit: what the file calls it; name: of its class.
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
        """Whether training refuses it, or would leave something out."""
        return self.kind in ERRORS

    @property
    def title(self) -> str:
        return KINDS[self.kind][0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return KINDS[self.kind][1]

    @property
    def place(self) -> str:
        """Its line or object in the file, if it is about one."""
        return f"line {self.line}" if self.line else f"{self.object} {self.name or ''}" if self.object else ""

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        name = f" ({self.name})" if self.name else ""
        return f"{self.file}{line}{f', {self.unit} {self.object}{name}' if self.object else ''}: {self.what}"


@dataclass
class Problems:
    """What was found when annotations were read, so that everything can be reported at once."""

    found: list[Problem] = field(default_factory=list)  # errors and notes
    images: int = 0  # images that were asked for; 0 where nobody counted

    @property
    def errors(self) -> list[Problem]:
        return by_cause([p for p in self.found if p.error], self.images)

    @property
    def notes(self) -> list[Problem]:
        return [p for p in self.found if not p.error]

    @property
    def lines(self) -> list[str]:
        """The errors as text."""
        return [str(problem) for problem in self.errors]


def by_kind(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """The problems grouped, kinds in the order of KINDS."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}


def nearly_all(number: int, images: int) -> bool:
    """Whether so many of the images have a problem that it is likely to have one cause."""
    return images > 0 and number >= max(FEW, NEARLY_ALL * images)


def by_cause(problems: Sequence[Problem], images: int) -> list[Problem]:
    """The problems; those that nearly all images have for the same cause become one, and come first.

    Notes about objects of a file that has all images are kept apart: they all name the same file.
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
            summaries.append(replace(first, what=f"{first.what} The same holds for {where}; this is the first."))
            merged.add(key)
    return summaries + [problem for problem in problems if (problem.kind, problem.what) not in merged]


def shorten(lines: Sequence[str], most: int = 20) -> str:
    """The lines, indented; of more than `most` the number."""
    more = len(lines) - most
    return "\n".join(f"  {line}" for line in lines[:most]) + (f"\n  and {more} more" if more > 0 else "")

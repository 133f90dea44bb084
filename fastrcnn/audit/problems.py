"""What can be wrong with a data set, or worth knowing about it, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastrcnn.data.annotations.truth import Problem


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    error: training refuses it, or would leave something out. The rest is worth knowing.
    """

    error: bool
    title: str
    mend: str


KINDS = {
    # Errors
    "split": Kind(True, "List of images", "Mend the list; its pictures were not checked."),
    "duplicate_id": Kind(
        True, "Id in two lists", "Rename one of the pictures: all is kept by id, between folders too."
    ),
    "missing_picture": Kind(
        True,
        "Missing picture",
        "Put the picture there, or take its id out of the list; data.skip_bad=true leaves it out.",
    ),
    "bad_picture": Kind(
        True, "Unreadable picture", "Fetch or export the file again; data.skip_bad=true leaves it out."
    ),
    "link": Kind(True, "Link out of the data set", "Put the file itself there instead of the link."),
    "missing_annotation": Kind(
        True,
        "Missing annotation",
        "Put the file there, or take its id out of the list; data.skip_bad=true leaves it out.",
    ),
    "normalised": Kind(
        True, "Boxes normalised to 0..1", "Multiply them by the image's size, or export them in pixels."
    ),
    "annotation": Kind(True, "Unusable annotation", "Correct the file, or export it again."),
    "no_objects": Kind(
        True, "No object to train on", "Add objects that training uses; the notes say what it does not."
    ),
    "box": Kind(True, "Unusable box", "Correct the box or delete the object; data.skip_bad=true leaves it out."),
    "unknown_class": Kind(
        True, "Unknown class", "Correct the name, add it to data.classes, or say data.other_classes=leave_out."
    ),
    "classes": Kind(True, "Names of the classes", "Correct data.classes, or the names in the annotations."),
    "picture_size": Kind(
        True,
        "Picture and annotation differ in size",
        "Correct the size and the boxes in the annotation; an EXIF rotation is applied where the sizes then agree.",
    ),
    "no_proposals": Kind(True, "Picture without proposals", "Make proposals for all pictures with `fastrcnn propose`."),
    "proposal_size": Kind(True, "Proposals of another picture", "Make them again with `fastrcnn propose`."),
    "bad_proposals": Kind(True, "Damaged proposals", "Make or convert them again with `fastrcnn propose`."),
    # Notes
    "crowd": Kind(
        False,
        "Annotations not trained on, since they are marked as crowds",
        "Nothing for real crowds. Masks of single objects, as SAM and CVAT's brush export them, need `iscrowd` 0.",
    ),
    "ignored": Kind(
        False,
        "Annotations marked ignore, which evaluation counts",
        "Nothing, if intended; mark them with `iscrowd` if a detector should not be charged for missing them.",
    ),
    "other_classes": Kind(False, "Objects of other classes", "Nothing: data.other_classes leaves them out."),
    "left_out": Kind(
        False, "Pictures left out for want of proposals", "Nothing: data.missing_proposals leaves them out."
    ),
    "unused_file": Kind(
        False, "Annotations not used", "Nothing, if it is so; else name it in data.train or data.test."
    ),
    "lone": Kind(False, "Pictures without annotation", "Annotate them, with no object in them if there is none."),
    "leak": Kind(False, "Trained on what is tested", "Take the picture out of one of the lists."),
    "copies": Kind(False, "The same picture twice", "Keep one of them, unless it is meant."),
    "zero_based": Kind(
        False,
        "Boxes look zero-based",
        "Where the whole data set counts from 0, say data.first_pixel=0; otherwise the boxes are a pixel off.",
    ),
    "rotated": Kind(False, "Rotated boxes", "Nothing: the upright box around each is used."),
    "flags": Kind(False, "Objects marked deleted or ignore", "Nothing, if intended: each note says what was done."),
    "same_id": Kind(
        False, "Images that share an id with others", "Give each image a name, and an XML file, of its own."
    ),
    "filename": Kind(False, "<filename> names another file", "Correct <filename>, or the name of the XML file."),
    "elements": Kind(False, "XML elements that are not used", "Nothing, unless one of them holds truth."),
    "letter_case": Kind(
        False, "Classes that differ in letter case", "Write the name in one way if they are one class."
    ),
    "escaped_id": Kind(
        False,
        "Ids with spaces",
        "comp4 files have them percent-encoded. Rename the images if the VOC devkit or a server is to read the files.",
    ),
    "no_truth": Kind(False, "Nothing to test on", "Choose other test lists, or data.test=[]."),
    "test_only": Kind(False, "Class without training objects", "Add training pictures of it, or leave the class out."),
    "few_objects": Kind(False, "Few training objects", "A class with so few can hardly be learned; add pictures."),
    "clipped": Kind(False, "Boxes clipped", "Nothing needs to be done: they were at most a pixel out of the picture."),
    "negative": Kind(False, "Pictures without objects", "Nothing, if it is so: they are trained on as background."),
    "colours": Kind(
        False, "Pictures stored in another way", "Nothing: they become RGB with 8 bits when they are read."
    ),
    "turned": Kind(False, "Images rotated upright", "Nothing: their annotations have the size of the upright image."),
    "either_way": Kind(
        False,
        "EXIF rotation not applied, as both ways fit",
        "Look whether the boxes fit the image as stored; if not, rotate its pixels and drop the tag.",
    ),
    "as_stored": Kind(
        False,
        "EXIF rotation not applied, as the stored size fits",
        "Nothing if the boxes fit the image as stored; else correct the annotation's size.",
    ),
    "bits": Kind(
        False,
        "16-bit images that use fewer bits",
        "Nothing where all use the same; else convert them to 8 bits alike, or name their bits in PNG's sBIT chunk.",
    ),
    "small_boxes": Kind(False, "Boxes smaller than a cell", "Larger data.short_sides and data.long_side help."),
    "missed": Kind(False, "Objects without a proposal", "They can hardly be found; make proposals of a finer search."),
    "zero_proposals": Kind(False, "Pictures with an empty list of proposals", "Training uses their truth boxes alone."),
    "foreign_proposals": Kind(False, "Proposals of pictures not in the lists", "Nothing: they are not used."),
    "dropped_proposals": Kind(
        False, "Proposals dropped when the store was written", "See where they came from if there are many."
    ),
    "few_rois": Kind(
        False,
        "Few background RoIs",
        "Steps are smaller than asked for. solver.bg_iou=[0,0.5] takes every RoI of low overlap as background.",
    ),
}

# Kinds that leave objects unread.
UNREAD = ("split", "missing_picture", "link", "missing_annotation", "normalised", "annotation", "box", "unknown_class")


def is_error(problem: Problem) -> bool:
    """Whether training refuses it, or would leave something out."""
    return KINDS[problem.kind].error


def by_kind(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """The problems grouped, kinds in the order of KINDS."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}

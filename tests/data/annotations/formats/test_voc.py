"""VOC files to samples: exact boxes, and an answer to every kind of bad input."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from voc_folder import VocFolder, fingerprint, voc_xml

from fastrcnn.build.annotations import load_unannotated
from fastrcnn.data.annotations.formats.voc_layout import (
    annotated_ids,
    find_images,
    pictures_without_annotation,
    read_split,
)
from fastrcnn.data.annotations.formats.voc_xml import MAX_XML_BYTES, read_annotation
from fastrcnn.data.annotations.splits import annotated, class_names, find_split, load
from fastrcnn.errors import UserError

CLASSES = ["cat", "dog"]
ONE = ("cat", (2, 3, 20, 30), False)


def refused(voc: VocFolder, *ids: str, classes: list[str] = CLASSES) -> str:
    with pytest.raises(UserError) as error:
        load(voc.root, ids, classes)
    return str(error.value)


# ------------------------------------------------------------------------------------------ what is read

REAL = """<annotation>
	<folder>VOC2007</folder>
	<filename>000005.jpg</filename>
	<source>
		<database>The VOC2007 Database</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
		<flickrid>325991873</flickrid>
	</source>
	<owner>
		<flickrid>archintent louisville</flickrid>
		<name>?</name>
	</owner>
	<size>
		<width>64</width>
		<height>48</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
	<object>
		<name>cat</name>
		<pose>Rear</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>1</xmin>
			<ymin>1</ymin>
			<xmax>64</xmax>
			<ymax>48</ymax>
		</bndbox>
	</object>
	<object>
		<name>dog</name>
		<bndbox>
			<ymax>40.5</ymax>
			<xmax>33</xmax>
			<ymin>7</ymin>
			<xmin>3.25</xmin>
		</bndbox>
		<part>
			<name>head</name>
			<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
		</part>
	</object>
	<object>
		<name> dog </name>
		<difficult>1</difficult>
		<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>10</xmax><ymax>21</ymax></bndbox>
	</object>
</annotation>
"""


def test_one_based_inclusive_boxes_become_half_open(voc: VocFolder) -> None:
    """The whole picture; floats in any order, without pose, truncated and difficult; a column one pixel wide."""
    path = voc.picture("000005")
    voc.annotation("000005", REAL)
    (sample,), problems = load(voc.root, ["000005"], CLASSES)
    assert (sample.image_id, sample.path, sample.width, sample.height) == ("000005", path, 64, 48)
    np.testing.assert_array_equal(sample.boxes, [[0, 0, 64, 48], [2.25, 6, 33, 40.5], [9, 19, 10, 21]])
    assert (sample.boxes.dtype, sample.training_boxes.dtype) == (np.float64, np.float32)
    assert sample.labels.tolist() == [1, 2, 2]
    assert sample.labels.dtype == np.int64
    assert sample.difficult.tolist() == [False, False, True]
    assert (problems.lines, problems.notes) == ([], [])


def test_difficult_objects_are_left_out_where_not_wanted(tiny: VocFolder) -> None:
    (a, b), _ = load(tiny.root, ["a", "b"], CLASSES, training=True, use_difficult=False)
    assert a.labels.tolist() == [1, 2]
    assert b.labels.tolist() == []


def test_a_picture_without_objects_is_kept_as_a_negative(voc: VocFolder) -> None:
    voc.add("empty")
    (sample,), problems = load(voc.root, ["empty"], CLASSES)
    assert sample.boxes.shape == (0, 4)
    assert (sample.labels.shape, sample.difficult.dtype, problems.lines) == ((0,), bool, [])


def test_samples_come_in_the_order_of_the_ids(tiny: VocFolder) -> None:
    samples, _ = load(tiny.root, ["c", "a", "b"], CLASSES)
    assert [s.image_id for s in samples] == ["c", "a", "b"]


def test_labels_follow_the_list_of_classes(tiny: VocFolder) -> None:
    (a,), _ = load(tiny.root, ["a"], ["dog", "x", "cat"])
    assert a.labels.tolist() == [3, 1]


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".webp", ".PNG"])
def test_pictures_are_found_by_id_with_any_suffix(voc: VocFolder, suffix: str) -> None:
    path = voc.picture("x.y-é 1", suffix=suffix)
    assert find_images(voc.root, "x.y-é 1") == [path]
    assert find_images(voc.root, "x") == []


def test_classes_are_found_in_the_annotations_sorted_and_with_their_letter_case(voc: VocFolder) -> None:
    voc.add("a", ("zebra", (1, 1, 9, 9), False), ("Cat", (1, 1, 9, 9), True))
    voc.add("b", ("cat", (1, 1, 9, 9), False))
    voc.annotation("c", "<annotation>")
    names, problems = class_names(voc.root, ["a", "b", "c"])
    assert names == ["Cat", "cat", "zebra"]
    assert len(problems.lines) == 1
    assert "c.xml, line 1" in problems.lines[0]


def test_truth_can_be_had_without_pictures(voc: VocFolder) -> None:
    voc.annotation("a", voc_xml([ONE]))
    (sample,), _ = load(voc.root, ["a"], CLASSES, need_pictures=False)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 20, 30]])
    assert "no such image" in refused(voc, "a")


# ------------------------------------------------------------------------------------------ boxes that do not fit


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 1, 10, 10), (0, 0, 10, 10)),  # zero-based
        ((1, 0, 10, 10), (0, 0, 10, 10)),
        ((1, 1, 65, 10), (0, 0, 64, 10)),
        ((1, 1, 10, 49), (0, 0, 10, 48)),
        ((0, 0, 65, 49), (0, 0, 64, 48)),
        ((0.5, 0.5, 64.5, 48.5), (0, 0, 64, 48)),
    ],
)
def test_a_box_out_by_a_pixel_is_clipped_and_counted(voc: VocFolder, box: tuple, expected: tuple) -> None:
    voc.add("a", ONE, ("dog", box, False))
    (sample,), problems = load(voc.root, ["a"], CLASSES)
    np.testing.assert_array_equal(sample.training_boxes[1], expected)
    xmin, ymin, xmax, ymax = box
    np.testing.assert_array_equal(sample.boxes[1], [xmin - 1, ymin - 1, xmax, ymax])  # as evaluation has it
    (note,) = [p for p in problems.notes if p.kind == "clipped"]
    assert (note.object, note.what.startswith("1 box(es) that extend beyond"), problems.lines) == (2, True, [])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((-1, 1, 10, 10), "(-1, 1, 10, 10) extends beyond the image of 64 x 48 pixels"),
        ((1, -0.5, 10, 10), "extends beyond"),
        ((1, 1, 66, 10), "extends beyond"),
        ((1, 1, 10, 49.5), "extends beyond"),
        ((20, 1, 10, 10), "(20, 1, 10, 10) is inverted: xmax < xmin or ymax < ymin"),
        ((1, 20, 10, 10), "inverted"),
        ((10, 10, 10, 10), "(10, 10, 10, 10) is a single point"),
        ((0, 1, 0, 10), "is outside the image"),  # out by a pixel, and clipping would leave nothing of it
        ((65, 1, 65, 10), "is outside the image"),
        ((1, 49, 10, 49), "is outside the image"),
    ],
)
def test_a_box_that_cannot_be_is_an_error_with_its_number(voc: VocFolder, box: tuple, said: str) -> None:
    voc.add("a", ONE, ("dog", box, False))
    text = refused(voc, "a")
    assert f"{voc.root / 'Annotations' / 'a.xml'}, object 2 (dog): the box" in text
    assert said in text
    (sample,), problems = load(voc.root, ["a"], CLASSES, skip_bad=True)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 20, 30]])
    assert len(problems.lines) == 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "ten", "", "1,5", "0x10", "1_0"])
def test_a_coordinate_that_is_no_number_of_pixels_is_refused(voc: VocFolder, value: str) -> None:
    voc.add("a", ONE, ("dog", (1, 1, value, 10), False))
    assert f"a.xml, object 2: <bndbox/xmax> must be a number of pixels, but is '{value}'." in refused(voc, "a")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("<name>cat</name>", "object 1: <name> is missing or empty"),
        ("<xmin>2</xmin>", "object 1: <bndbox/xmin> must be a number of pixels, but is ''"),
        ("<width>64</width>", "a.xml: <size/width> must be a number of pixels, but is ''"),
    ],
)
def test_a_field_that_is_missing_is_named(voc: VocFolder, what: str, said: str) -> None:
    voc.add("a")
    text = voc_xml([ONE])
    assert text.count(what) == 1
    voc.annotation("a", text.replace(what, ""))
    assert said in refused(voc, "a")


BNDBOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "</bndbox>",
            f"</bndbox>{BNDBOX}",
            "object 1: found 2 <bndbox> elements, but only one is allowed. Give each box its own <object>",
        ),
        (
            "</bndbox>",
            "<xmin>5</xmin></bndbox>",
            "object 1: found 2 <xmin> elements, but only one is allowed. Keep one",
        ),
        ("</name>", "</name><name>dog</name>", "object 1: found 2 <name> elements"),
        ("</size>", "</size><size><width>9</width><height>9</height></size>", "a.xml: found 2 <size> elements"),
        ("object>", "Object>", "a.xml: <Object> is not allowed in <annotation>. VOC's paths"),
        (
            "\t<object>",
            "<objects><object>",
            "a.xml: <objects>, which contains <object>, is not allowed in <annotation>",
        ),
        ("\t<object>", "<item><x><object>", "a.xml: <item>, which contains <object>, is not allowed"),
        ("object>", "o:object>", "a.xml: <{urn:o}object>"),
        ("bndbox>", "Bndbox>", "object 1: <Bndbox> is not allowed in <object>"),
        ("bndbox>", "box>", "object 1: <box>, which contains <xmin>, is not allowed in <object>"),
        ("xmin>", "XMin>", "object 1: <XMin> is not allowed in <bndbox>"),
        ("name>", "Name>", "object 1: <Name> is not allowed in <object>"),
        ("difficult>", "Difficult>", "object 1: <Difficult> is not allowed in <object>"),
        (
            "</name>",
            "</name><flags><difficult>1</difficult></flags>",
            "<flags>, which contains <difficult>, is not allowed",
        ),
        (
            "bndbox>",
            "polygon>",
            "object 1: <bndbox> is missing, found only <name>, <pose>, <truncated>, <difficult>, <polygon>",
        ),
        ("<width>64<", "<width>64.5<", "a.xml: <size/width> must be an integer number of pixels, but is '64.5'"),
    ],
)
def test_what_would_be_dropped_is_refused_with_file_and_object(voc: VocFolder, old: str, new: str, said: str) -> None:
    """With `skip_bad` the image is left out, and not trained on as background."""
    voc.picture("a")
    text = voc_xml([ONE])
    assert old in text
    text = text.replace(old, new)
    for tag in ("objects", "x", "item"):  # close in reverse order what was opened
        text = text.replace("</annotation>", f"</{tag}></annotation>") if f"<{tag}>" in text else text
    if "o:" in text:
        text = text.replace("<annotation>", "<annotation xmlns:o='urn:o'>")
    voc.annotation("a", text)
    assert said in refused(voc, "a")
    assert load(voc.root, ["a"], CLASSES, skip_bad=True)[0] == []


def test_all_faults_of_a_file_are_said_at_once(voc: VocFolder) -> None:
    text = voc_xml([("", (1, "x", 9, 9), False), ("dog", (1, 1, 9, ""), False)], width="wide")
    voc.annotation("a", text.replace("<difficult>0<", "<difficult>maybe<", 1))
    problems = read_annotation(voc.root / "Annotations" / "a.xml").problems
    assert [(p.object, p.what.split()[0]) for p in problems] == [
        (None, "<size/width>"),
        *((1, field) for field in ("<name>", "<difficult>", "<bndbox/ymin>")),
        (2, "<bndbox/ymax>"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("true", True), ("1.0", True), ("yes", True), (" True ", True), ("Y", True)]
    + [("0", False), ("", False), ("false", False), ("0.0", False), ("No", False)]
    + [(text, None) for text in ("2", "-1", "maybe", "nan", "0.5", "Unspecified")],
)
@pytest.mark.parametrize("tag", ["difficult", "truncated"])
def test_flags_in_the_usual_spellings(voc: VocFolder, tag: str, text: str, expected: bool | None) -> None:
    path = voc.annotation("a", voc_xml([ONE]).replace(f"<{tag}>{int(tag == 'truncated')}<", f"<{tag}>{text}<"))
    if expected is None and (tag, text) != ("truncated", "0.5"):  # KITTI gives the share that is cut off
        (problem,) = read_annotation(path).problems
        assert re.search(rf"a\.xml, object 1: <{tag}> must be 0 or 1 .*, but is '{text}'", str(problem))
        return
    said = read_annotation(path)
    found = said.objects[0].difficult if tag == "difficult" else bool(said.truncated)
    assert found == (expected is not False)


def cvat(degrees: object) -> str:
    return f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"


@pytest.mark.parametrize(
    ("box", "degrees", "expected"),
    [
        ((11, 11, 30, 20), 90, (15, 5, 25, 25)),  # half-open (10, 10, 30, 20), 20 x 10 about (20, 15)
        ((11, 11, 30, 20), -270.0, (15, 5, 25, 25)),
        ((11, 11, 30, 20), 180, (10, 10, 30, 20)),
        ((11, 11, 30, 30), 45, (20 - 200**0.5, 20 - 200**0.5, 20 + 200**0.5, 20 + 200**0.5)),  # half a diagonal of 20
        ((1, 20, 64, 29), 90, (27, 0, 37, 48)),  # 64 x 10 about (32, 24) stands out above and below
    ],
)
def test_a_box_that_cvat_rotated_becomes_the_upright_one_around_it(
    voc: VocFolder, box: tuple, degrees: float, expected: tuple
) -> None:
    voc.add("a")
    voc.annotation("a", voc_xml([("cat", box, False)]).replace("</bndbox>", f"</bndbox>{cvat(degrees)}"))
    (sample,), problems = load(voc.root, ["a"], CLASSES)
    np.testing.assert_allclose(sample.boxes, [expected], rtol=1e-6)
    assert [(p.kind, p.object, p.name) for p in problems.notes] == [("rotated", 1, "cat")] * (degrees != 180)


def test_a_box_of_rolabelimg_becomes_the_upright_one_around_it(voc: VocFolder) -> None:
    """A box of 20 x 10 about (20, 15), rotated by a quarter of a turn; coordinates from the image's edge."""
    voc.add("a")
    fields = "<cx>20</cx><cy>15</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle>"
    head, _, tail = voc_xml([ONE]).partition("<bndbox>")
    text = f"{head}<robndbox>{fields}</robndbox>{tail.partition('</bndbox>')[2]}"
    voc.annotation("a", text)
    for first_pixel in (0, 1):
        (sample,), problems = load(voc.root, ["a"], CLASSES, first_pixel=first_pixel)
        np.testing.assert_allclose(sample.boxes, [[15, 5, 25, 25]], rtol=1e-6)
        assert [p.kind for p in problems.notes] == ["rotated"]
    voc.annotation("a", text.replace("<w>20</w>", "<w>0</w>"))
    assert "object 1 (cat): the box (cx 20, cy 15, w 0, h 10) has no area" in refused(voc, "a")


def test_flags_and_elements_that_voc_does_not_have_are_noted(voc: VocFolder) -> None:
    voc.add("a")
    text = voc_xml([ONE, ("", ("", 1, 9, 9), False), ("dog", (1, 1, 9, 9), False)])
    first, second, third, end = text.split("</object>")
    first, second = f"{first}<weather>rain</weather>", f"{second}<deleted>1</deleted>"
    voc.annotation("a", "</object>".join((first, second, f"{third}<ignore>1</ignore>{cvat(0)}", f"<tool/>{end}")))
    (sample,), problems = load(voc.root, ["a"], CLASSES)
    assert (sample.labels.tolist(), sample.difficult.tolist()) == ([1, 2], [False, True])
    assert [(p.kind, p.object) for p in problems.notes] == [
        ("elements", None),
        ("elements", 1),
        ("flags", 2),
        ("flags", 3),
    ]
    assert "unused elements: <weather>" in problems.notes[1].what


@pytest.mark.parametrize(
    ("box", "size", "refuses"),
    [
        ((0.1, 0.2, 0.5, 0.75), 64, True),
        ((0, 0, 1, 1), 64, True),
        ((0.5, 0.5, 0.2, 0.1), 64, True),  # centre, width and height
        ((0, 0, 1, 1), 10, False),  # in so small an image it may be one in pixels
        ((0, 0, 1, 1.5), 64, False),
    ],
)
def test_boxes_normalised_to_one_are_refused(voc: VocFolder, box: tuple, size: int, refuses: bool) -> None:
    voc.add("a", ("cat", box, False), width=size, height=size)
    voc.add("b", ("cat", box, False), ("cat", box, False), width=size, height=size)
    if refuses:
        lines = refused(voc, "a", "b").splitlines()
        assert len(lines) == 3  # once for the data set
        assert "a.xml, object 1: boxes look normalised to 0..1, but must be in pixels." in lines[1]
        assert "in 3 objects in 2 files" in lines[1]
    else:
        assert len(load(voc.root, ["a", "b"], CLASSES)[0]) == 2


def test_a_picture_of_no_size_is_refused(voc: VocFolder) -> None:
    voc.add("a", width=0)
    assert "the image size 0 x 48 is not positive" in refused(voc, "a")


def test_an_unknown_class_is_answered_with_the_nearest_and_all_names(voc: VocFolder) -> None:
    voc.add("a", ONE, ("Cat", (1, 1, 9, 9), False), ("dogs", (1, 1, 9, 9), False), ("bus", (1, 1, 9, 9), False))
    text = refused(voc, "a")
    assert "a.xml, object 2: unknown class 'Cat'. Did you mean 'cat'? Known classes: cat, dog." in text
    assert "object 3: unknown class 'dogs'. Did you mean 'dog'?" in text
    assert "object 4: unknown class 'bus'. Known classes" in text
    (sample,), _ = load(voc.root, ["a"], CLASSES, skip_bad=True)
    assert sample.labels.tolist() == [1]


# ------------------------------------------------------------------------------------------ files


def test_malformed_xml_is_refused_with_its_line(voc: VocFolder) -> None:
    voc.add("a")
    text = voc_xml([ONE])
    assert text.splitlines()[6] == "\t<object>"
    voc.annotation("a", text.replace("\t<object>", "\t<object", 1))
    assert "a.xml, line 8: not well-formed XML at column" in refused(voc, "a")  # where the next tag begins


@pytest.mark.parametrize("text", ["", "cat 1 2 3 4\n", "<annotation><object></annotation>", "<annotation>"])
def test_what_is_not_xml_is_refused(voc: VocFolder, text: str) -> None:
    voc.add("a")
    voc.annotation("a", text)
    assert "not well-formed XML" in refused(voc, "a")


def test_other_xml_is_refused(voc: VocFolder) -> None:
    voc.add("a")
    voc.annotation("a", "<html></html>")
    assert "the root element is not <annotation>" in refused(voc, "a")


@pytest.mark.parametrize(
    "declaration",
    [
        "<!DOCTYPE a [\n"
        + "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">\n' for i in range(9))
        + '<!ENTITY e0 "ha">]>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "SECRET">]>',
        '<!DOCTYPE a SYSTEM "http://localhost:1/a.dtd">',
    ],
    ids=["bomb", "external", "dtd"],
)
def test_entities_are_refused_with_the_line_and_nothing_is_fetched(voc: VocFolder, declaration: str) -> None:
    secret = voc.root / "secret.txt"
    secret.write_text("cat")
    voc.add("a")
    declaration = declaration.replace("SECRET", secret.as_uri())
    voc.annotation("a", f"<?xml version='1.0'?>\n{declaration}\n{voc_xml([('&e;', (1, 1, 9, 9), False)])}")
    text = refused(voc, "a")
    assert "a.xml, line 2: a DOCTYPE declaration is not allowed" in text


def test_a_huge_annotation_is_refused_unread(voc: VocFolder) -> None:
    voc.add("a")
    with (voc.root / "Annotations" / "a.xml").open("wb") as file:
        file.truncate(MAX_XML_BYTES + 1)
    assert "a.xml: the file is larger than the limit of 4 MB" in refused(voc, "a")


def test_elements_nested_without_end_are_refused(voc: VocFolder) -> None:
    voc.add("a")
    voc.annotation("a", "<annotation>" + "<object>" * 200_000)
    assert "not well-formed XML" in refused(voc, "a")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "a.xml"),
        (
            b"<annotation><object><name>\xff\xfe</name></object></annotation>",
            "a.xml, line 1: not well-formed XML at column",
        ),
    ],
)
def test_a_text_in_no_known_encoding_is_refused(voc: VocFolder, data: bytes, said: str) -> None:
    voc.picture("a")
    (voc.root / "Annotations" / "a.xml").write_bytes(data)
    assert said in refused(voc, "a")


def test_a_class_in_utf16_is_read(voc: VocFolder) -> None:
    voc.picture("a")
    text = "<?xml version='1.0' encoding='UTF-16'?>" + voc_xml([("été", (1, 1, 9, 9), False)])
    (voc.root / "Annotations" / "a.xml").write_bytes(text.encode("utf-16"))
    assert read_annotation(voc.root / "Annotations" / "a.xml").objects[0].name == "été"


def test_all_that_is_wrong_is_said_at_once_and_skip_bad_leaves_out_exactly_that(tiny: VocFolder) -> None:
    tiny.picture("no-xml")
    tiny.annotation("no-picture", voc_xml([ONE]))
    tiny.add("broken")
    tiny.annotation("broken", "<annotation>")
    tiny.add("objects", ONE, ("cow", (1, 1, 9, 9), False), ("dog", (9, 9, 1, 1), False), ("dog", (1, 1, 9, 9), False))
    tiny.annotation("neither", "<annotation>")
    ids = ["a", "no-xml", "no-picture", "b", "broken", "objects", "neither"]
    text = refused(tiny, *ids)
    assert f"7 problem(s) in the data set {tiny.root}:\n" in text
    for said in (
        "no-xml.xml: no such annotation.",
        "JPEGImages/no-picture: no such image (.jpg, .jpeg, .png, .bmp, .webp)",
        "broken.xml, line 1",
        "objects.xml, object 2: unknown class 'cow'",
        "objects.xml, object 3 (dog): the box (9, 9, 1, 1) is inverted",
        "JPEGImages/neither: no such image",
        "neither.xml, line 1",
        "data.skip_bad=true",
    ):
        assert said in text
    samples, problems = load(tiny.root, ids, CLASSES, skip_bad=True)
    assert [(s.image_id, s.labels.tolist()) for s in samples] == [("a", [1, 2]), ("b", [2]), ("objects", [1, 2])]
    assert len(problems.lines) == 7


def test_of_many_problems_the_first_twenty_are_listed_and_the_rest_counted(voc: VocFolder) -> None:
    for n in range(15, 20):
        voc.add(f"{n}", ONE)
    text = refused(voc, *(f"{n:02}" for n in range(20)))  # of fifteen neither picture nor annotation: two each
    assert "30 problem(s)" in text
    assert text.count("\n  ") == 21
    assert "and 10 more" in text


def test_the_data_set_is_never_changed(tiny: VocFolder) -> None:
    tiny.add("bad", ("cow", (0, 0, 99, 99), False))
    before = fingerprint(tiny.root)
    read_split(tiny.root, "trainval")
    class_names(tiny.root, ["a", "bad"])
    load(tiny.root, ["a", "b", "c", "bad"], CLASSES, skip_bad=True)
    assert fingerprint(tiny.root) == before


# ------------------------------------------------------------------------------------------ lists and links


def test_a_list_is_read_in_its_order_with_or_without_a_second_column(voc: VocFolder) -> None:
    voc.split("train", "b", "", "a", "sub/c", "été")
    assert read_split(voc.root, "train") == ["b", "a", "sub/c", "été"]
    voc.split("cat_train", "b -1", "a  1", "c  0")
    assert read_split(voc.root, "cat_train") == ["b", "a", "c"]


def test_a_list_that_windows_wrote_is_read(voc: VocFolder) -> None:
    voc.split("train").write_bytes(b"\xef\xbb\xbf000001\r\n000002\r\n")
    assert read_split(voc.root, "train") == ["000001", "000002"]


@pytest.mark.parametrize("image_id", ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\b", "C:\\x", "a\0b"])
def test_an_id_that_leads_out_of_the_data_set_is_refused(voc: VocFolder, image_id: str) -> None:
    voc.split("train", "a", image_id)
    with pytest.raises(UserError, match=r"train\.txt, line 2: the id '.*' points outside the folder of the data set"):
        read_split(voc.root, "train")


def test_dots_within_a_name_are_no_way_out(voc: VocFolder) -> None:
    voc.split("train", "a..b", "...", "x.1")
    assert read_split(voc.root, "train") == ["a..b", "...", "x.1"]


def test_ids_with_spaces_and_with_suffixes_are_those_of_files(voc: VocFolder) -> None:
    """Without a file of such an id the line is refused rather than cut."""
    ids = ["Screenshot (578)", "Screenshot (579)", "s 1", "b.jpg", "c", "at 9.41.00\u202fAM", "sub/d", "e 1 1"]
    for image_id in ids:
        voc.add(image_id, ONE)
    lines = ["Screenshot (578)", "Screenshot (579).JPG", "s 1", "s 1 -1", "b.jpg", "c.png  1", "at 9.41.00\u202fAM"]
    voc.split("train", *(line for line in lines if line != "s 1 -1"), "sub\\d", "e 1 1", "000012  1", "x.jpg")
    assert read_split(voc.root, "train") == [*ids, "000012", "x.jpg"]
    voc.split("train", "s 1 -1", "a  0", '"Screenshot (578)"', '"Screenshot (579)" 1')
    assert read_split(voc.root, "train") == ["s 1", "a", "Screenshot (578)", "Screenshot (579)"]
    for line in ("my photo", "my photo 1", "a.jpg a.xml", "a 2"):
        voc.split("train", "a", line)
        with pytest.raises(UserError, match=rf"train\.txt, line 2: no image or annotation has the id '{line}'"):
            read_split(voc.root, "train")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\né\n".encode("utf-16"), ""),
        (b"\xfe\xff" + "a\né\n".encode("utf-16-be"), ""),
        ("a\né\n".encode("utf-32"), ""),
        ("a\né\n".encode("utf-16-le"), "the file looks like UTF-16 without a byte order mark. Save it as UTF-8"),
        ("a\né\n".encode("latin-1"), "line 2: not valid UTF-8. Save the file as UTF-8"),
    ],
)
def test_the_encoding_of_a_list(voc: VocFolder, data: bytes, said: str) -> None:
    voc.split("train").write_bytes(data)
    if not said:
        assert read_split(voc.root, "train") == ["a", "é"]
        return
    with pytest.raises(UserError, match=rf"train\.txt(: |, ){said}"):
        read_split(voc.root, "train")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
def test_names_are_found_in_either_form_of_unicode(voc: VocFolder, on_disk: str, in_list: str) -> None:
    voc.add(unicodedata.normalize(on_disk, "é/ü"), ONE)
    voc.split("train", unicodedata.normalize(in_list, "é/ü"))
    ids = read_split(voc.root, "train")
    assert ids == annotated_ids(voc.root) == [unicodedata.normalize("NFC", "é/ü")]  # the same id on every system
    assert len(load(voc.root, ids, CLASSES)[0]) == 1
    assert pictures_without_annotation(voc.root) == []


def test_suffixes_count_in_any_letter_case_and_others_are_named(voc: VocFolder) -> None:
    for image_id, image, annotation in (("a", ".Jpg", ".XML"), ("b", ".JPEG", ".Xml"), ("c", ".tif", ".xml")):
        voc.add(image_id, ONE)
        (voc.root / f"JPEGImages/{image_id}.jpg").rename(voc.root / f"JPEGImages/{image_id}{image}")
        (voc.root / f"Annotations/{image_id}.xml").rename(voc.root / f"Annotations/{image_id}{annotation}")
    voc.picture("d").rename(voc.root / "JPEGImages/d.jPg")
    assert annotated_ids(voc.root) == ["a", "b", "c"]
    assert [s.path.name for s in load(voc.root, ["a", "b"], CLASSES)[0]] == ["a.Jpg", "b.JPEG"]
    assert pictures_without_annotation(voc.root) == [voc.root / "JPEGImages/d.jPg"]
    said = "no such image (.jpg, .jpeg, .png, .bmp, .webp). Convert the file with the unsupported suffix .tif"
    assert f"JPEGImages/c: {said}" in refused(voc, "c")


@pytest.mark.parametrize(
    ("images", "annotations", "usable"),
    [
        ("images", "annots", True),
        ("images", "labels", True),
        ("Images", "XML", True),
        ("imgs", "xmls", True),
        ("JPEGImages", "truth", True),
        ("pixels", "Annotations", True),
        ("photos", "boxes", True),
        ("photos/2024", "boxes", False),
    ],
)
def test_folders_of_other_names_are_found_or_said_to_be_the_cause(
    voc: VocFolder, images: str, annotations: str, usable: bool
) -> None:
    for n in range(20):
        voc.add(f"{n}", ONE)
    (voc.root / images).parent.mkdir(exist_ok=True)
    (voc.root / "JPEGImages").rename(voc.root / images)
    (voc.root / "Annotations").rename(voc.root / annotations)
    ids = annotated_ids(voc.root)
    if usable:
        assert len(load(voc.root, ids, CLASSES)[0]) == 20
        return
    lines = refused(voc, *ids).splitlines()
    assert len(lines) == 3  # a header, one cause, and what to do
    where = f"images are in {images}/ (such as 0.jpg), and XML files are in {annotations}/ (such as 0.xml)."
    assert f": {where} Rename" in lines[1]
    assert "20 files. This is the first." in lines[1]
    samples, _, faults = load_unannotated([(voc.root, ids)], voc.root)
    assert (samples, len(faults)) == ([], 1)
    assert "The same problem occurs in 20 files" in faults[0]


def test_an_id_twice_is_refused_with_both_lines(voc: VocFolder) -> None:
    voc.split("train", "a", "b", "", "a")
    with pytest.raises(UserError, match=r"line 4: 'a' is already in line 1"):
        read_split(voc.root, "train")


def test_an_empty_list_is_refused(voc: VocFolder) -> None:
    voc.split("train", "", " ")
    with pytest.raises(UserError, match=r"train\.txt: the list is empty"):
        read_split(voc.root, "train")


def test_a_list_that_is_not_there_is_answered_with_those_that_are(tiny: VocFolder) -> None:
    with pytest.raises(UserError, match=r"'tset'\. Available lists: test, trainval\. Did you mean 'test'\?"):
        read_split(tiny.root, "tset")
    with pytest.raises(UserError, match="no such folder"):
        read_split(tiny.root / "VOC2008", "test")


@pytest.mark.parametrize(
    ("filename", "used", "said"),
    [
        ("/home/me/a.png", "a.png", ""),  # of a path the name alone counts
        ("C:\\imgs\\a.jpg", "a.jpg", ""),
        ("a.bmp", "a.jpg", "is none of the images with this id: 'a.jpg', 'a.png'. 'a.jpg' is used"),
        ("b.jpg", "a.jpg", "is 'b.jpg', another image of the data set. 'a.jpg', which has"),
        ("../../a.png", "a.png", ""),
        ("../../x.jpg", "a.jpg", "is '../../x.jpg', which points outside the folder of the data set. 'a.jpg' is used"),
    ],
)
def test_filename_decides_between_images_of_one_id_and_contradictions_are_noted(
    voc: VocFolder, filename: str, used: str, said: str
) -> None:
    for path in ("a.png", "a.jpg", "b.jpg"):
        voc.picture(path[0], suffix=path[1:])
    voc.annotation("a", voc_xml([ONE], filename=filename))
    (sample,), problems = load(voc.root, ["a"], CLASSES)
    assert sample.path == find_images(voc.root, "a")[0] == voc.root / "JPEGImages" / used
    assert [f"<filename> {said}" in str(p) for p in problems.notes if p.kind == "filename"] == [True] * bool(said)
    other = voc.root / "JPEGImages" / {"a.jpg": "a.png", "a.png": "a.jpg"}[used]
    what = f"the image is not used, because '{used}' has the same id."
    assert [str(p) for p in problems.notes if p.kind == "same_id"] == [f"{other}: {what}"]


@pytest.mark.parametrize("kind", ["JPEGImages/a.jpg", "Annotations/a.xml"])
def test_a_file_that_is_a_link_out_of_the_data_set_is_refused(voc: VocFolder, tmp_path: Path, kind: str) -> None:
    voc.add("a", ONE)
    inside, outside = voc.root / kind, tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert f"{inside}: the link points outside the folder of the data set" in refused(voc, "a")


def test_a_folder_within_that_is_a_link_out_of_the_data_set_is_refused(voc: VocFolder, tmp_path: Path) -> None:
    voc.add("sub/a", ONE)
    (voc.root / "JPEGImages" / "sub").rename(tmp_path / "outside")
    (voc.root / "JPEGImages" / "sub").symlink_to(tmp_path / "outside")
    assert "sub/a.jpg: the link points outside the folder of the data set" in refused(voc, "sub/a")


def test_links_within_the_data_set_and_a_folder_of_pictures_elsewhere_are_fine(voc: VocFolder, tmp_path: Path) -> None:
    voc.add("a", ONE)
    (voc.root / "JPEGImages" / "b.jpg").symlink_to("a.jpg")
    voc.annotation("b", voc_xml([ONE]))
    (voc.root / "JPEGImages").rename(tmp_path / "big-disk")
    (voc.root / "JPEGImages").symlink_to(tmp_path / "big-disk")
    (tmp_path / "link").symlink_to(voc.root)
    samples, _ = load(tmp_path / "link", ["a", "b"], CLASSES)
    assert len(samples) == 2


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            "other {}.jpg",
            "images are in JPEGImages/ (such as other 0.jpg), and XML files are in Annotations/ (such as 0.xml).",
        ),
        (
            "{}.tif",
            "no such image (.jpg, .jpeg, .png, .bmp, .webp). Convert the file with the unsupported suffix .tif.",
        ),
    ],
)
def test_one_cause_of_all_missing_images_is_said_once(voc: VocFolder, image: str, said: str) -> None:
    for n in range(9):
        voc.add(f"{n}", ONE)
        (voc.root / f"JPEGImages/{n}.jpg").rename(voc.root / "JPEGImages" / image.format(n))
    lines = refused(voc, *map(str, range(9))).splitlines()
    assert len(lines) == 3
    assert f"/JPEGImages/0: {said}" in lines[1]
    assert len(refused(voc, *map(str, range(4))).splitlines()) == 6  # of few images each is named


# ------------------------------------------------------------------------------------------ real data


def test_bccd_has_exactly_two_bad_boxes(test_data: Path) -> None:
    root = test_data / "BCCD"
    ids = read_split(root, "trainval") + read_split(root, "test")
    classes, problems = class_names(root, ids)
    assert (classes, problems.lines) == (["Platelets", "RBC", "WBC"], [])
    with pytest.raises(UserError, match="2 problem"):
        load(root, ids, classes)
    samples, problems = load(root, ids, classes, skip_bad=True)
    assert (len(samples), problems.notes) == (364, [])
    assert sum(len(s.boxes) for s in samples) == 4888 - 2
    assert sorted(os.path.basename(line.partition(",")[0]) for line in problems.lines) == [  # noqa: PTH119
        "BloodImage_00338.xml",
        "BloodImage_00343.xml",
    ]
    for s in samples:
        assert (s.boxes[:, :2] >= 0).all()
        assert (s.boxes[:, 2:] <= [s.width, s.height]).all()
        assert (s.boxes[:, 2:] > s.boxes[:, :2]).all()


def test_real_voc2007_pictures_load_and_have_difficult_objects(test_data: Path) -> None:
    root = test_data / "VOCdevkit" / "VOC2007"
    trainval, test = read_split(root, "trainval"), read_split(root, "test")
    assert (len(trainval), len(test)) == (279, 130)
    classes, _ = class_names(root, trainval + test)
    assert len(classes) == 20
    samples, problems = load(root, trainval + test, classes)
    assert (len(samples), problems.notes) == (409, [])
    assert (problems.lines, problems.notes) == ([], [])
    assert sum(s.difficult.sum() for s in samples[279:]) > 0
    easy, _ = load(root, test, classes, training=True, use_difficult=False)
    for s, all_of_it in zip(easy, samples[279:], strict=True):
        np.testing.assert_array_equal(s.boxes, all_of_it.boxes[~all_of_it.difficult])


@pytest.mark.parametrize("line", ["x" * 300, "x" * 300 + ".png", "x/" * 3000 + "a"])
def test_a_line_that_no_file_name_can_have_is_a_missing_image(tiny: VocFolder, line: str) -> None:
    tiny.split("trainval", "a", line)
    ids = find_split(tiny.root, "trainval")[1]
    assert annotated(tiny.root, ids, tiny.root) == [True, False]
    said = refused(tiny, *ids)
    assert "no such image" in said
    assert "no such annotation" in said or "File name too long" in said
    samples, problems = load(tiny.root, ids, CLASSES, skip_bad=True)
    assert ([s.image_id for s in samples], len(problems.errors)) == (["a"], 2)


def test_a_line_of_300_letters_with_spaces_names_no_image(tiny: VocFolder) -> None:
    tiny.split("trainval", "a", "x " * 150)
    with pytest.raises(UserError, match="line 2: no image or annotation has the id 'x x"):
        find_split(tiny.root, "trainval")


def test_a_filename_of_300_letters_is_no_other_image(tiny: VocFolder) -> None:
    tiny.annotation("a", voc_xml([("cat", (1, 1, 32, 24), False)], filename="x" * 300 + ".jpg"))
    samples, problems = load(tiny.root, ["a"], CLASSES)
    assert (len(samples), problems.errors) == (1, [])


def test_a_list_that_is_a_link_out_of_the_data_set_is_not_read(tiny: VocFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:secret")
    main = tiny.root / "ImageSets" / "Main"
    (main / "val.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"val\.txt: the link points outside the folder of the data set") as caught:
        find_split(tiny.root, "val")
    assert "root:x" not in str(caught.value)
    (main / "train.txt").symlink_to("trainval.txt")
    assert find_split(tiny.root, "train")[1] == ["a", "b"]
    (tmp_path / "link").symlink_to(tiny.root)
    assert find_split(tmp_path / "link", "train")[1] == ["a", "b"], "the data set itself can be a link"

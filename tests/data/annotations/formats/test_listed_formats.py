"""Files of YOLO, CSV, CVAT and Label Studio: what is wrong in them, and shapes that become boxes. Values by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import exports
import numpy as np
import pytest
from exports import label_studio_region, picture, write, yolo_line
from limits import Compared, calls, in_bounds
from PIL import Image

from fastrcnn.data.annotations.formats import yolo as yolo_format
from fastrcnn.data.annotations.layouts import read_listing
from fastrcnn.data.annotations.splits import find_split, load
from fastrcnn.data.annotations.unused import unused
from fastrcnn.data.truth.annotated import Annotated
from fastrcnn.data.truth.problems import Problems
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample


def one(root: Path, file: Path) -> Annotated:
    """What the only image of a file is read as."""
    listing = read_listing(file, root)
    (image,) = listing.read(list(listing.images), root)
    return image


def training(root: Path, **how: bool) -> tuple[list[Sample], Problems]:
    """The samples to train on, and all problems."""
    source, ids, _ = find_split(root, "trainval")
    return load(source, ids, ["cat", "dog"], root=root, training=True, **how)  # type: ignore[arg-type]


def boxes(image: Annotated) -> list[tuple[str, list[float]]]:
    return [(o.name, np.round(o.box, 3).tolist()) for o in image.objects or ()]


# ------------------------------------------------------------------------------------------------ YOLO


def yolo(root: Path, *lines: str) -> Annotated:
    """The image a of 100 x 80 pixels with these lines in its label file."""
    picture(root / "a.jpg")
    write(root / "a.txt", "\n".join(lines))
    return one(root, write(root / "classes.txt", "cat\ndog\n"))


def test_polygons_become_the_boxes_around_them(tmp_path: Path) -> None:
    image = yolo(tmp_path, "0 0.1 0.5 0.3 0.25 0.5 0.75", "1 0.2 0.2 0.6 0.2 0.6 0.4 0.2 0.4")
    assert boxes(image) == [("cat", [10, 20, 50, 60]), ("dog", [20, 16, 60, 32])]
    assert [(p.kind, p.what) for p in image.problems] == [
        ("polygons", "only the axis-aligned bounding box of each of 2 polygon(s) is used.")
    ]


def test_a_score_after_the_box_is_reported_and_not_used(tmp_path: Path) -> None:
    image = yolo(tmp_path, yolo_line("cat", exports.CAT) + " 0.87")
    assert boxes(image) == [("cat", [10, 20, 50, 60])]
    assert [p.kind for p in image.problems] == ["scores"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0 30 40 40 40", r"a\.txt, line 2: 40 is not a fraction of the image"),
        ("cat 0.3 0.5 0.4 0.5", r"a\.txt, line 2: 'cat 0\.3 .*' is not a class number"),
        ("0.5 0.3 0.5 0.4 0.5", r"a\.txt, line 2: '0\.5 .*' is not a class number"),
        ("-1 0.3 0.5 0.4 0.5", r"a\.txt, line 2: '-1 .*' is not a class number"),
        ("0 0.3 0.5 0.4", r"a\.txt, line 2: found 3 number\(s\) after the class\. A box needs 4"),
        ("0 0.3 0.5 0.4 0.5 0.1 0.1 0.1", r"a\.txt, line 2: found 7 number\(s\) after the class"),
        ("0 0.3 0.5 nan 0.5", r"a\.txt, line 2: '0 0\.3 0\.5 nan 0\.5' is not"),
    ],
)
def test_a_line_that_is_no_label_is_an_error_with_its_number(tmp_path: Path, line: str, what: str) -> None:
    image = yolo(tmp_path, yolo_line("cat", exports.CAT), line)
    assert image.objects is None
    assert [bool(re.search(what, str(p))) for p in image.problems] == [True]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("7 0.3 0.5 0.4 0.5", "unknown class '7': the list of class names has no such number"),
        ("0 0.3 0.5 0 0.5", "has no area"),
        ("0 0.9 0.5 0.4 0.5", "extends beyond the image"),
    ],
)
def test_a_box_that_cannot_be_used_is_an_error_of_its_line(tmp_path: Path, line: str, what: str) -> None:
    image = yolo(tmp_path, line)
    assert image.objects is not None
    error = image.objects[0].error()
    assert error is not None
    assert what in error.what
    assert str(error).startswith(f"{tmp_path / 'a.txt'}, line 1")


def test_a_box_that_rounding_puts_out_of_the_image_ends_at_the_border(tmp_path: Path) -> None:
    # 0.950001 + 0.1 / 2 is 1.000001, which would be 4e-5 pixels out of the image
    assert boxes(yolo(tmp_path, "0 0.950001 0.5 0.1 0.5")) == [("cat", [90, 20, 100, 60])]
    assert one(tmp_path, tmp_path / "classes.txt").objects[0].box[2] == 100  # type: ignore[index]


def test_boxes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    """The stored image is 100 x 80 and has to be turned: upright it is 80 x 100."""
    yolo(tmp_path, "0 0.5 0.5 0.5 0.2")
    image, exif = Image.open(tmp_path / "a.jpg"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    found = one(tmp_path, tmp_path / "classes.txt")
    assert (found.width, found.height) == (80, 100)
    assert boxes(found) == [("cat", [20, 40, 60, 60])]


def test_keypoints_after_the_box_are_not_a_polygon(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/a.jpg")
    write(tmp_path / "train/labels/a.txt", "0 0.3 0.5 0.4 0.5 0.1 0.1 2 0.9 0.9 2")
    file = write(tmp_path / "data.yaml", "train: train/images\nval: train/images\nkpt_shape: [2, 3]\nnames: {0: cat}\n")
    assert boxes(one(tmp_path, file)) == [("cat", [10, 20, 50, 60])]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("names: [cat, dog]\nnc: 3\ntrain: images", r"`nc` is 3, but `names` has 2 name\(s\)"),
        (
            "names: {0: cat, 2: dog}\ntrain: images",
            r"must number classes from 0 without gaps, but its keys are \[0, 2\]",
        ),
        ("names: [cat, cat]\ntrain: images", r"classes 0 and 1 have the same name 'cat'"),
        ("names: [cat, '']\ntrain: images", r"class 1 has no name"),
        ("names: []\ntrain: images", r"the list of class names is empty"),
        ("names: [cat]\ntrain: pixels\nval: images", r"`train`: pixels"),
        ("names: [cat]\ntrain: 5", r"`train` must be a path or a list of paths, but is \[?5"),
        ("names: [cat\ntrain: images", r"data\.yaml, line 2: not valid YAML"),
    ],
)
def test_a_data_yaml_that_does_not_fit_is_refused(tmp_path: Path, text: str, what: str) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", yolo_line("cat", exports.CAT))
    write(tmp_path / "data.yaml", text)
    with pytest.raises(UserError, match=what):
        find_split(tmp_path, "trainval")


def test_labels_without_names_of_classes_say_what_to_write(tmp_path: Path) -> None:
    exports.labelimg_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=rf"Write the names to {tmp_path / 'classes.txt'}, one per line"):
        find_split(tmp_path, "trainval")


def test_thousands_of_classes_are_kept_once_and_not_for_each_image(tmp_path: Path) -> None:
    """10,000 names are 80 kB of references, and 300 images with a copy each would take 24 MB."""
    write(tmp_path / "classes.txt", "".join(f"class{n}\n" for n in range(10_000)))
    for n in range(300):
        write(tmp_path / f"{n}.jpg", "")
    write(tmp_path / "0.txt", "9999 0.5 0.5 0.5 0.5\n")
    with in_bounds(most_bytes=8_000_000):
        listing = read_listing(tmp_path / "classes.txt", tmp_path)
    assert len(listing.images) == 300
    assert [o.name for o in listing.images["0.jpg"].objects((64, 48))[0]] == ["class9999"]


def test_names_of_classes_are_compared_with_few_others() -> None:
    names: list[str] = [Compared(f"class{n}") for n in range(1000)]
    assert calls(lambda: yolo_format._checked_names(Path("data.yaml"), names)) < 10_000
    with pytest.raises(UserError, match="classes 7 and 1000 have the same name 'class7'"):
        yolo_format._checked_names(Path("data.yaml"), [*names, "class7"])


def test_images_without_labels_and_labels_without_images_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "set"
    exports.ultralytics(root)
    write(root / "labels/train/gone.txt", yolo_line("dog", exports.DOG))
    notes = {p.kind: p for p in read_listing(root / "set.yaml", root).problems}
    assert notes["unlabelled"].what.startswith("images without a label file: 1 of 6.")
    assert notes["unused_file"].file == str(root / "labels/train/gone.txt")
    (root / "labels").rename(root / "boxes")
    with pytest.raises(UserError, match=r"found 6 image\(s\), but none has a label file.*labels/train/a\.txt"):
        find_split(root, "trainval")


def test_a_split_that_is_not_used_and_images_in_none_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "set"
    exports.roboflow_yolo(root)
    picture(root / "more" / "x.jpg")
    used = [find_split(root, split)[:2] for split in ("trainval", "test")]
    notes = [(p.kind, p.what) for p in unused(root, used)]
    assert notes == [
        ("unused_file", "1 image(s) of 'val' are not in any used split. To test on them, set data.test=[val]."),
        ("lone", "1 image(s) are not in any annotation file and are not used."),
    ]


def test_paths_that_lead_out_of_the_data_set_are_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    root = tmp_path / "set"
    exports.cvat_yolo(root)
    write(root / "train.txt", "../secret.jpg\n/etc/hosts.jpg\ndata/obj_train_data/a.jpg\n")
    samples, problems = training(root, skip_bad=True)
    assert [s.path.name for s in samples] == ["a.jpg"]
    assert {p.file for p in problems.errors} == {str(root / "secret.jpg"), str(root / "hosts.jpg")}
    (root / "obj_train_data/a.jpg").unlink()
    (root / "obj_train_data/a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: the link points outside the folder of the data set"):
        training(root)


def test_a_split_that_is_not_there_is_no_other_folder(tmp_path: Path) -> None:
    """`../test/images` must not become `images`, which holds what is trained on."""
    root = tmp_path / "set"
    exports.ultralytics(root)
    lines = ["train: images/train", "val: images/valid", "test: ../test/images", "names: [cat, dog]"]
    write(root / "set.yaml", "\n".join(lines))
    listing = read_listing(root / "set.yaml", root)
    assert {name: len(ids) for name, ids in listing.splits.items()} == {"train": 4, "val": 1}
    assert "`test`: ../test/images does not exist and is ignored." in [p.what for p in listing.problems]


def test_other_yaml_files_and_lists_that_are_not_used_do_not_matter(tmp_path: Path) -> None:
    exports.coco(tmp_path)
    write(tmp_path / "mkdocs.yml", "a: !!python/name:x.y\n---\nb: 1\n")
    write(tmp_path / "x.data", "\x00\xff")
    assert find_split(tmp_path, "trainval")[0].name == "_annotations.coco.json"


def test_xml_files_come_before_yolo_labels_which_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "set"
    exports.voc_of_other_names(root)
    write(root / "labels/a.txt", yolo_line("cat", exports.CAT))
    write(root / "data.yaml", "train: photos\nnames: [cat, dog]\n")
    source, ids, _ = find_split(root, "trainval")
    assert source == root
    assert all(i.isdigit() for i in ids)


def test_images_without_labels_are_no_test_set_without_truth(tmp_path: Path) -> None:
    from fastrcnn.build import annotations
    from fastrcnn.config.schema import DataConfig

    root = tmp_path / "set"
    exports.ultralytics(root)
    for name in "xyz":
        picture(root / f"images/test/{name}.jpg")
    found = annotations.samples(DataConfig(root=str(root)), ["test"], ["cat", "dog"])
    assert sorted(len(s.labels) for s in found) == [0, 0, 0, 1]


def test_darknets_lists_that_are_not_there_say_how_to_read_the_labels_alone(tmp_path: Path) -> None:
    exports.labelimg_yolo(tmp_path)
    write(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/test.txt\nnames = classes.txt\n")
    alone = f"To read the labels without these splits, set data.root={tmp_path / 'classes.txt'}."
    with pytest.raises(UserError, match=r"`train`: data/train\.txt") as raised:
        find_split(tmp_path, "trainval")
    assert str(raised.value).endswith(alone)
    ids = [i for split in ("trainval", "test") for i in find_split(tmp_path / "classes.txt", split)[1]]
    assert sorted(ids) == [f"{name}.jpg" for name in "abcdef"]


@pytest.mark.parametrize("place", ["labels/train", "train/labels"])
def test_labelimgs_list_of_classes_is_found_beside_the_labels(tmp_path: Path, place: str) -> None:
    images = place.replace("labels", "images")
    for name in ("a", "b"):
        picture(tmp_path / images / f"{name}.jpg")
        write(tmp_path / place / f"{name}.txt", yolo_line("dog", exports.DOG))
    write(tmp_path / place / "classes.txt", "cat\ndog\n")
    source, ids, _ = find_split(tmp_path, "trainval")
    assert (source, len(ids)) == (tmp_path / place / "classes.txt", 1)


# ------------------------------------------------------------------------------------------------ CSV


def table(root: Path, *rows: str, header: str = "filename,width,height,class,xmin,ymin,xmax,ymax") -> Annotated:
    picture(root / "a.jpg")
    return one(root, write(root / "a.csv", "\n".join([header, *rows, ""])))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a.jpg,100,80,cat,50,20,10,60", "row 2 (cat): the box (50, 20, 10, 60) is inverted"),
        ("a.jpg,100,80,cat,10,20,10,60", "row 2 (cat): the box (10, 20, 10, 60) has no area"),
        ("a.jpg,100,80,cat,10,20,150,60", "row 2 (cat): the box (10, 20, 150, 60) extends beyond the image"),
    ],
)
def test_a_row_with_an_unusable_box_is_named(tmp_path: Path, row: str, what: str) -> None:
    (found,) = table(tmp_path, row).objects or ()
    assert what in str(found.error())


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            "a.jpg,100,80,cat,x,20,50,60",
            "line 2: the row needs a class and four coordinates in pixels, but contains 'cat' and (x, 20",
        ),
        ("a.jpg,100,80,,10,20,50,60", "line 2: the row needs a class and four coordinates"),
        ("a.jpg,100,80,cat,0.1,0.25,0.5,0.75", "line 2: the box (0.1, 0.25, 0.5, 0.75) looks normalised to 0..1"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, row: str, what: str) -> None:
    image = table(tmp_path, row)
    assert image.objects is None
    assert what in str(image.problems[0])


def test_a_line_number_is_that_of_the_file_even_after_a_cell_of_several_lines(tmp_path: Path) -> None:
    header = "filename,class,xmin,ymin,xmax,ymax,comment"
    image = table(tmp_path, 'a.jpg,cat,1,2,3,4,"two', 'lines"', "a.jpg,cat,x,2,3,4,", header=header)
    assert "line 4: the row needs a class" in str(image.problems[0])


def test_the_size_of_the_image_is_compared_with_the_table(tmp_path: Path) -> None:
    from fastrcnn.data.frames import look_at

    table(tmp_path, "a.jpg,90,80,cat,10,20,50,60")
    samples, _ = load(tmp_path / "a.csv", ["a.jpg"], ["cat"], root=tmp_path)
    assert "the image has 100 x 80 pixels, but its annotation has size 90 x 80" in look_at(samples)[2][0]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (
            ["a.jpg,100,80,cat,1,2,3,4", "a.jpg,90,80,cat,1,2,3,4"],
            r"line 3: image a\.jpg has a different size or split in line 2",
        ),
        (
            ["a.jpg,100,80,cat,1,2,3,4", "x/a.jpg,100,80,cat,1,2,3,4"],
            r"line 3: image a\.jpg also occurs with a different path",
        ),
        ([",100,80,cat,1,2,3,4"], r"line 2: the row contains no image path"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, rows: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        table(tmp_path, *rows)


@pytest.mark.parametrize("images", ["images/train", "train"])
def test_images_in_the_folder_of_the_split_are_found(tmp_path: Path, images: str) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        picture(tmp_path / images.replace("train", split) / f"{name}.jpg")
        header = "filename,width,height,class,xmin,ymin,xmax,ymax"
        write(tmp_path / f"{split}_labels.csv", f"{header}\n{name}.jpg,100,80,cat,10,20,50,60\n")
    assert find_split(tmp_path, "trainval")[1] == [f"{images}/a.jpg"]
    assert find_split(tmp_path, "test")[1] == [f"{images.replace('train', 'test')}/b.jpg"]


def test_a_table_beside_the_folder_of_the_images_finds_them(tmp_path: Path) -> None:
    """`data/boxes.csv` and `images/a.jpg`, as in TensorFlow's tutorials; but not where it has images of its own."""
    rows = "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,10,20,50,60\n"
    for name in ("data/boxes.csv", "own/boxes.csv", "own/part/boxes.csv"):
        write(tmp_path / name, rows + rows.splitlines()[1].replace("a", "b", 1))
    for name in ("images/a.jpg", "images/b.jpg", "own/part/a.jpg", "own/part/b.jpg"):
        picture(tmp_path / name)
    for file, images in (("data/boxes.csv", "images"), ("own/boxes.csv", None), ("own/part/boxes.csv", "own/part")):
        root = tmp_path / file
        found = [find_split(root, split)[1] for split in ("trainval", "test")]
        samples, problems = load(root, [i for ids in found for i in ids], ["cat"], root=root, skip_bad=True)
        if images:
            assert sorted(s.path for s in samples) == [tmp_path / images / f"{n}.jpg" for n in "ab"]
            assert samples[0].boxes.tolist() == [[10, 20, 50, 60]]
        else:
            assert {p.kind for p in problems.errors} == {"missing_image"}


def test_a_table_outside_the_data_set_is_refused_and_one_inside_may_be_named_in_full(tmp_path: Path) -> None:
    root = tmp_path / "set"
    exports.tensorflow_csv(root)
    whole = str(root / "train/_annotations.csv")
    assert find_split(root, whole)[1] == ["train/a.jpg", "train/b.jpg", "train/c.jpg", "train/d.jpg"]
    other = write(tmp_path / "other.csv", "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n")
    with pytest.raises(UserError, match=r"other\.csv: the file is not inside data\.root="):
        find_split(root, str(other))


def test_tables_that_are_named_do_not_mind_labels_of_another_format(tmp_path: Path) -> None:
    exports.labelimg_yolo(tmp_path)
    for name in "ab":
        write(tmp_path / f"{name}.csv", f"filename,class,xmin,ymin,xmax,ymax\n{name}.jpg,cat,1,2,30,40\n")
    used = [find_split(tmp_path, f"{name}.csv")[:2] for name in "ab"]
    notes = unused(tmp_path, used)
    assert [Path(p.file).name for p in notes if p.kind == "unused_file"] == ["classes.txt"]


def test_a_table_of_something_else_is_none_of_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    write(tmp_path / "prices.csv", "name,price\ncat,3\n")
    with pytest.raises(UserError, match=r"no supported annotations found\. Found 1 image\(s\)"):
        find_split(tmp_path, "trainval")


# ------------------------------------------------------------------------------------------------ CVAT


def cvat(root: Path, *shapes: str) -> Annotated:
    picture(root / "images/a.jpg")
    image = f'<image id="0" name="a.jpg" width="100" height="80">{"".join(shapes)}</image>'
    return one(root, write(root / "annotations.xml", f"<annotations><version>1.1</version>{image}</annotations>"))


def test_shapes_of_cvat_become_boxes_and_others_are_reported(tmp_path: Path) -> None:
    box = '<box label="cat" xtl="10.0" ytl="20.0" xbr="50.0" ybr="60.0" {}></box>'
    image = cvat(
        tmp_path,
        box.format('rotation="90.0"'),
        '<polygon label="dog" points="40.0,8.0;90.0,30.0;60.0,72.0" z_order="0"></polygon>',
        '<ellipse label="cat" cx="50" cy="40" rx="20" ry="10"></ellipse>',
        '<mask label="cat" rle="1" left="5" top="6" width="7" height="8"></mask>',
        '<points label="cat" points="1,2"></points>',
        box.replace("></box>", '><attribute name="difficult">true</attribute></box>').format(""),
    )
    assert boxes(image) == [
        ("cat", [10, 20, 50, 60]),  # a square turned by 90 degrees is itself
        ("dog", [40, 8, 90, 72]),
        ("cat", [30, 30, 70, 50]),
        ("cat", [5, 6, 12, 14]),
        ("cat", [10, 20, 50, 60]),
    ]
    assert [o.difficult for o in image.objects or ()] == [False] * 4 + [True]
    assert [p.kind for p in image.problems] == ["rotated", "polygons", "elements"]


def test_an_annotation_of_voc_is_no_file_of_cvat(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", "<annotation><filename>a.jpg</filename></annotation>")
    with pytest.raises(UserError, match=r"a\.xml: not a CVAT file.* set data\.root to the folder"):
        find_split(tmp_path / "a.xml", "trainval")


def test_a_video_of_cvat_says_how_to_export_it(tmp_path: Path) -> None:
    write(tmp_path / "annotations.xml", '<annotations><track id="0" label="cat"></track></annotations>')
    with pytest.raises(UserError, match=r"contains tracks .*\. Export the task, .* as 'CVAT for images'"):
        find_split(tmp_path, "trainval")


def test_a_rotated_ellipse_has_the_box_of_the_ellipse(tmp_path: Path) -> None:
    shape = '<ellipse label="cat" cx="50" cy="40" rx="{}" ry="{}" rotation="{}"></ellipse>'
    image = cvat(tmp_path, shape.format(20, 20, 45), shape.format(30, 10, 90))
    assert boxes(image) == [("cat", [30, 20, 70, 60]), ("cat", [40, 10, 60, 70])]


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        (
            '<box label="cat" xtl="a" ytl="20" xbr="50" ybr="60"/>',
            "label, coordinates '(a, 20, 50, 60)' or `difficult` of <box> is missing or invalid",
        ),
        ('<box xtl="10" ytl="20" xbr="50" ybr="60"/>', "or `difficult` of <box> is missing or invalid"),
        ('<polygon label="cat" points="1,2;3"/>', "coordinates '1,2;3' or `difficult` of <polygon> is missing"),
    ],
)
def test_a_shape_that_cannot_be_read_is_an_error(tmp_path: Path, shape: str, what: str) -> None:
    image = cvat(tmp_path, shape)
    assert image.objects is None
    assert what in str(image.problems[0])


# ------------------------------------------------------------------------------------------------ Label Studio


def label_studio(root: Path, *regions: dict, kind: str = "rectanglelabels", **more: object) -> Annotated:
    picture(root / "images/a.jpg")
    results = [
        {"original_width": 100, "original_height": 80, "type": kind, "image_rotation": 0} | more | {"value": region}
        for region in regions
    ]
    done = {"result": results, "was_cancelled": False, "updated_at": "2024-02"}
    cancelled = {"result": [], "was_cancelled": True, "updated_at": "2024-03"}
    task = {"id": 9, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [done, cancelled]}
    return one(root, write(root / "tasks.json", json.dumps([task])))


def test_a_rectangle_is_rotated_about_its_first_corner_in_pixels(tmp_path: Path) -> None:
    """(10, 20) to (50, 60) pixels, turned clockwise by 90 degrees about (10, 20): x from -30 to 10, y from 20 to 60."""
    turned = label_studio_region("cat", exports.CAT) | {"x": 60.0, "rotation": 90}
    image = label_studio(tmp_path, turned)
    assert boxes(image) == [("cat", [20, 20, 60, 60])]
    # by 45 degrees the square of 40 pixels reaches 40 / sqrt(2) = 28.284 to the left and right, 56.569 down
    image = label_studio(tmp_path, turned | {"y": 0.0, "rotation": 45})
    assert boxes(image) == [("cat", [31.716, 0, 88.284, 56.569])]
    assert [p.kind for p in image.problems] == ["rotated"]


def test_polygons_and_ellipses_of_label_studio_become_boxes(tmp_path: Path) -> None:
    points = {"points": [[10, 25], [50, 50], [20, 75]], "polygonlabels": ["cat"]}
    assert boxes(label_studio(tmp_path, points)) == [("cat", [10, 20, 50, 60])]
    ellipse = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 25, "rotation": 90, "ellipselabels": ["cat"]}
    # 20 pixels across and 20 down, so that turning it changes nothing
    assert boxes(label_studio(tmp_path, ellipse)) == [("cat", [30, 20, 70, 60])]


def test_a_rotated_rectangle_ends_at_the_border(tmp_path: Path) -> None:
    image = label_studio(tmp_path, label_studio_region("cat", (80, 10, 100, 30)) | {"rotation": 30})
    (box,) = [o.box for o in image.objects or ()]
    assert (box[2] <= 100, image.objects and image.objects[0].fault) == (True, "")


def test_text_and_choices_of_a_region_are_no_regions(tmp_path: Path) -> None:
    """They repeat its id and coordinates; so does `Labels` beside a `Rectangle`."""
    region = label_studio_region("cat", exports.CAT)
    plain = {key: value for key, value in region.items() if key != "rectanglelabels"}
    picture(tmp_path / "images/a.jpg")
    size = {"original_width": 100, "original_height": 80}
    results = [
        size | {"id": "r1", "type": "rectanglelabels", "value": region},
        size | {"id": "r1", "type": "choices", "value": plain | {"choices": ["large"]}},
        size | {"id": "r1", "type": "textarea", "value": plain | {"text": ["a cat"]}},
        size | {"id": "r2", "type": "rectangle", "value": plain},
        size | {"id": "r2", "type": "labels", "value": plain | {"labels": ["dog"]}},
    ]
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": results, "was_cancelled": False}]}
    image = one(tmp_path, write(tmp_path / "tasks.json", json.dumps([task])))
    assert boxes(image) == [("cat", [10, 20, 50, 60]), ("dog", [10, 20, 50, 60])]
    assert image.problems == ()


def test_json_min_of_several_people_and_of_nobody(tmp_path: Path) -> None:
    def entry(image: str, name: str | None, date: str | None, number: int | None) -> dict:
        size = {"original_width": 100, "original_height": 80}
        regions = {"label": [label_studio_region(name, exports.CAT) | size]} if name else {}
        return {"image": image, "id": 1, "annotation_id": number, "updated_at": date, **regions}

    for name in ("a", "b", "c (1)"):
        picture(tmp_path / f"{name}.jpg")
    tasks = [
        entry("/data/upload/1/0a1b2c3d-a.jpg", "dog", "2024-02", 1),
        entry("/data/upload/1/0a1b2c3d-a.jpg", "cat", "2024-01", 2),
        entry("/data/upload/1/0a1b2c3d-b.jpg", None, None, None),
        entry("/data/upload/1/0a1b2c3d-c_1.jpg", "cat", "2024-01", 3),
    ]
    listing = read_listing(write(tmp_path / "tasks.json", json.dumps(tasks)), tmp_path)
    assert list(listing.images) == ["a.jpg", "c (1).jpg"]
    assert [o.name for o in next(listing.read(["a.jpg"], tmp_path)).objects or ()] == ["dog"]
    assert [p.kind for p in listing.problems] == ["lone", "several"]


def test_regions_that_cannot_be_read_are_errors_and_others_notes(tmp_path: Path) -> None:
    region = label_studio_region("cat", exports.CAT)
    two = label_studio(tmp_path, region | {"rectanglelabels": ["cat", "dog"]})
    assert "task 9: the region has 2 labels" in str(two.problems[0])
    none = label_studio(tmp_path, {k: v for k, v in region.items() if k != "rectanglelabels"})
    assert "task 9: the region has 0 labels" in str(none.problems[0])
    bad = label_studio(tmp_path, region | {"x": "left"})
    assert "the numbers (nan, 25, 40, 50)" in str(bad.problems[0])
    turned = label_studio(tmp_path, region, image_rotation=90)
    assert "the image is rotated by 90 degrees" in str(turned.problems[0])
    assert [i.objects for i in (two, none, bad, turned)] == [None] * 4
    brush = label_studio(tmp_path, {"rle": [1, 2], "brushlabels": ["cat"]})
    assert brush.objects == ()
    assert [p.kind for p in brush.problems] == ["elements"]


def test_tasks_nobody_annotated_are_left_out_and_of_several_annotations_the_newest_is_read(tmp_path: Path) -> None:
    def done(name: str, date: str) -> dict:
        value = {"value": label_studio_region(name, exports.CAT)}
        return {"result": [value], "was_cancelled": False, "updated_at": date}

    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/upload/a.jpg"},
            "annotations": [done("dog", "2024-02"), done("cat", "2024-01")],
        },
        {"id": 2, "data": {"image": "/data/upload/b.jpg"}, "annotations": []},
        {"id": 3, "data": {"image": "https://host/c.jpg?x=1"}, "annotations": [done("cat", "2024-01")]},
    ]
    listing = read_listing(write(tmp_path / "tasks.json", json.dumps(tasks)), tmp_path)
    assert list(listing.images) == ["a.jpg", "c.jpg"]
    assert [o.name for o in next(listing.read(["a.jpg"], tmp_path)).objects or ()] == ["dog"]
    assert [(p.kind, p.what) for p in listing.problems] == [
        ("lone", "1 task(s) without an annotation, such as task 2, are not used."),
        ("several", "1 task(s), such as task 1, have several annotations. The newest is used."),
    ]


# ------------------------------------------------------------------------------------------------ none of them


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", '{"shapes": [], "imagePath": "a.jpg"}', r"a LabelMe file, a\.json, .*labelme2coco"),
        ("via.json", '{"_via_img_metadata": {}}', r"a VIA project, .*Export Annotations \(COCO format\)"),
        ("c.json", '[{"image": "a.jpg", "annotations": []}]', r"a CreateML file"),
        ("v.csv", "#filename,file_size,region_shape_attributes\n", r"a VIA table"),
        ("t.tfrecord", "x", r"a TFRecord, t\.tfrecord, .*fiftyone convert"),
        (
            "000000.txt",
            "Car 0.00 0 -1.58 587 173 614 200 1.65 1.67 3.64 -0.65 1.71 46.7 -1.59",
            r"a KITTI label file",
        ),
    ],
)
def test_a_format_that_is_not_read_is_named_with_the_way_to_convert_it(
    tmp_path: Path, name: str, text: str, what: str
) -> None:
    picture(tmp_path / "a.jpg")
    write(tmp_path / name, text)
    with pytest.raises(UserError, match=rf"no supported annotations found\. Found {what}"):
        find_split(tmp_path, "trainval")


def test_annotations_in_two_formats_are_refused(tmp_path: Path) -> None:
    exports.labelimg_yolo(tmp_path)
    write(tmp_path / "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n")
    with pytest.raises(
        UserError, match=r"in several formats, YOLO \(classes\.txt\) and CSV \(boxes\.csv\)\. Choose one"
    ):
        find_split(tmp_path, "trainval")


# ------------------------------------------------------------------------------------------------ long names

LONG = "x" * 300


@pytest.mark.parametrize("name", [f"{LONG}.jpg", f"{LONG}/a.jpg", "x/" * 3000 + "a.jpg"])
@pytest.mark.parametrize("file", ["data.yaml", "a.csv", "annotations.xml", "tasks.json"])
def test_an_image_of_an_impossible_name_is_missing_like_any_other(tmp_path: Path, file: str, name: str) -> None:
    picture(tmp_path / "images/b.jpg")
    row = "100,80,cat,10,20,50,60"
    image = '<image id="{}" name="{}" width="100" height="80"></image>'
    task = {"annotations": [{"result": []}], "data": {"image": "images/b.jpg"}}
    texts = {
        "data.yaml": "names: [cat]\ntrain: train.txt\n",
        "a.csv": f"filename,width,height,class,xmin,ymin,xmax,ymax\nimages/b.jpg,{row}\n{name},{row}\n",
        "annotations.xml": f"<annotations>{image.format(0, 'b.jpg')}{image.format(1, name)}</annotations>",
        "tasks.json": json.dumps([task, task | {"data": {"image": name}}]),
    }
    write(tmp_path / "train.txt", f"images/b.jpg\n{name}\n")
    write(tmp_path / "labels/b.txt", "0 0.3 0.5 0.4 0.5\n")
    listing = read_listing(write(tmp_path / file, texts[file]), tmp_path)
    if name.endswith("/a.jpg") and file == "tasks.json":
        assert len(listing.images) == 2, "Label Studio's images are found by the last part of their path"
    missing = [p for found in listing.read(list(listing.images), tmp_path) for p in found.problems if p.error]
    assert [(p.kind, p.what.partition(".")[0]) for p in missing] == [("missing_image", "no such image")]


def test_an_image_of_label_studio_with_a_lone_surrogate_is_missing(tmp_path: Path) -> None:
    picture(tmp_path / "images/b.jpg")
    task = {"annotations": [{"result": []}], "data": {"image": "images/\ud800.jpg"}}
    listing = read_listing(write(tmp_path / "tasks.json", json.dumps([task])), tmp_path)
    ((problem,),) = [found.problems for found in listing.read(list(listing.images), tmp_path)]
    assert problem.kind == "missing_image"
    assert "\n".join(listing.images).encode(), "an id is part of files"


# ------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize(
    ("link", "secret"),
    [
        ("train.txt", "root:x:secret"),
        ("data.yaml", "names: {root: 1}"),
        ("data.yaml", "names: [cat]\ntrain: [{root: 1}]"),
        ("obj.data", "names = root:x\ntrain = train.txt"),
        ("classes.txt", "root:x\nroot:x"),
        ("a.csv", "filename,class,xmin,ymin,xmax,ymax\n,root,1,2,3,4"),
        ("a.csv", "filename,class,xmin,ymin,xmax,ymax\nroot:x,root,1,2,3,4"),
        ("tasks.json", '[{"data": {"image": "root.jpg"}, "annotations": [{"result": []}]}]'),
    ],
)
def test_no_message_quotes_a_file_outside_the_data_set(tmp_path: Path, link: str, secret: str) -> None:
    root = tmp_path / "set"
    picture(root / "images/b.jpg")
    if link == "train.txt":
        write(root / "data.yaml", "names: [cat]\ntrain: train.txt\n")
    if not link.endswith((".csv", ".json")):
        write(root / "labels/b.txt", "0 0.3 0.5 0.4 0.5\n")
    (root / link).symlink_to(write(tmp_path / "secret", secret))
    with pytest.raises(UserError, match="the link points outside the folder of the data set") as caught:
        training(root)
    assert "root:x" not in str(caught.value)
    assert "root.jpg" not in str(caught.value)
    (root / link).unlink()
    (root / link).symlink_to(write(root / "inside", secret))
    with pytest.raises(UserError, match=r"^(?!.*outside the data set)"):
        training(root)

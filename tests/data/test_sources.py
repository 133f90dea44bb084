"""What `source=` means, and pictures that nothing is known about."""

from __future__ import annotations

from pathlib import Path

import pytest
from voc_folder import VocFolder

from fastrcnn.data import sources
from fastrcnn.data.frames import look_at
from fastrcnn.data.images import Stored
from fastrcnn.errors import UserError


def test_a_source_is_a_file_a_folder_or_a_pattern(voc: VocFolder) -> None:
    folder = voc.root / "JPEGImages"
    b, a, c = voc.picture("b"), voc.picture("a", suffix=".PNG"), voc.picture("sub/c")
    (folder / "notes.txt").write_text("x")
    assert sources.pictures(str(b)) == [b]
    assert sources.pictures(str(folder)) == [a, b]
    assert sources.pictures(f"{folder}/*.jpg") == [b]
    assert sources.pictures(f"{folder}/**/*.jpg") == [b, c]


def test_a_name_that_looks_like_a_pattern_is_a_file_where_there_is_one(voc: VocFolder) -> None:
    picture = voc.picture("a[1]*")
    assert sources.pictures(str(picture)) == [picture]


def test_pictures_without_truth_have_their_size_and_names_that_differ(voc: VocFolder) -> None:
    one, other, third = voc.picture("x/a", size=(30, 20)), voc.picture("y/a"), voc.picture("b")
    samples, looks, _ = look_at(sources.samples_of([one, other, third]))
    assert [s.image_id for s in samples] == ["x_a.jpg", "y_a.jpg", "b"]
    assert (samples[0].width, samples[0].height, len(samples[0].boxes)) == (30, 20, 0)
    assert looks[0] == (one, Stored(30, 20), 1)


def test_pictures_of_one_name_in_folders_of_one_name_still_differ(voc: VocFolder) -> None:
    paths = [voc.picture("x/s/a"), voc.picture("y/s/a"), voc.picture("x/s/a", suffix=".png")]
    samples = sources.samples_of(paths)
    assert len({s.image_id for s in samples}) == 3


def test_a_name_is_never_given_twice() -> None:
    """The third picture is called what the second one would be."""
    paths = [Path("x/s/a.jpg"), Path("y/s/a.jpg"), Path("z/s_a.jpg_2.png"), Path("s_a.jpg.bmp")]
    assert sources.image_ids(paths) == ["s_a.jpg", "s_a.jpg_2", "s_a.jpg_2_2", "s_a.jpg_3"]


def test_a_pattern_that_matches_other_files_too_means_the_pictures(voc: VocFolder) -> None:
    picture = voc.picture("a")
    (picture.parent / "Thumbs.db").write_bytes(b"x")
    assert sources.pictures(f"{picture.parent}/*") == [picture]
    assert sources.pictures(f"{picture.parent}/*.db") == [picture.parent / "Thumbs.db"], "asked for by its suffix"


def test_a_list_has_paths_from_its_own_folder(voc: VocFolder, tmp_path: Path) -> None:
    one, other = voc.picture("x/a"), voc.picture("b ü")
    listing = tmp_path / "list.txt"
    near = one.relative_to(tmp_path)
    listing.write_text(f"\ufeff{near}\r\n\n  {other}  \n", encoding="utf-8")
    assert sources.pictures(str(listing)) == [one, other]
    listing.write_text(f"{near}\nno.jpg\n\ngone/b.jpg\n")
    with pytest.raises(UserError) as error:
        sources.pictures(str(listing))
    assert f"{listing}, line 2: the file {tmp_path / 'no.jpg'} does not exist." in str(error.value)
    assert f"{listing}, line 4: " in str(error.value)
    listing.write_text("\n")
    with pytest.raises(UserError, match="the text file lists no images"):
        sources.pictures(str(listing))
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list\.txt, line 1: not valid UTF-16\. Save the file as UTF-8"):
        sources.pictures(str(listing))


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"the folder contains no images \(\.jpg.*subfolders.*/\*\*"):
        sources.pictures(str(tmp_path))
    with pytest.raises(UserError, match=r"gone\.jpg: no such file or folder, and no file matches"):
        sources.pictures(str(tmp_path / "gone.jpg"))


def test_broken_pictures_are_told_from_readable_ones(voc: VocFolder) -> None:
    good, cut = voc.picture("a", size=(30, 20)), voc.picture("b")
    cut.write_bytes(cut.read_bytes()[:-300])
    samples, looks, faults = look_at(sources.samples_of([good, cut, good.parent / "gone.jpg"]))
    assert [(s.image_id, s.width, s.height) for s in samples] == [("a", 30, 20)]
    assert looks == [(good, Stored(30, 20), 1)]
    assert [fault.split(":")[0] for fault in faults] == [str(cut), str(good.parent / "gone.jpg")]


def test_a_video_is_known_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.MP4").write_bytes(b"")
    assert sources.is_video(str(tmp_path / "a.MP4"))
    assert not sources.is_video(str(tmp_path / "b.mp4"))
    assert not sources.is_video(str(tmp_path))


def test_a_listed_path_of_300_letters_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x" * 300 + ".jpg\n")
    with pytest.raises(UserError, match=r"line 1: the file .* does not exist"):
        sources.paths_in_list(tmp_path / "list.txt")

"""fastrcnn detect: pictures from wherever, videos, the files it leaves, and files that are not its own."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import slim_run
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from PIL import Image, ImageOps
from voc_folder import VocFolder, fingerprint

from fastrcnn.build import annotations, datasets
from fastrcnn.data import video
from fastrcnn.data.images import read_image
from fastrcnn.inference.output import folder_for
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store

Call = Callable[..., tuple[int, str, str]]
HEADER = "image_id,file,category,category_id,score,x1,y1,x2,y2"
FAST = [
    "runtime.device=cpu",
    "runtime.precision=float32",
    "data.selective_search.side=40",
    "data.selective_search.k=[50]",
    "data.test_short_sides=48",
    "detection.score_threshold=0.01",
]


@pytest.fixture
def run(call: Call, tiny: VocFolder) -> Path:
    return slim_run.save(tiny.root, Path("run"))


def detect(call: Call, *arguments: str, status: int = 0) -> tuple[str, str]:
    got, out, err = call("detect", "checkpoint=run", *FAST, *arguments)
    assert got == status, err
    return out, err


def entries(folder: str | Path) -> list[dict]:
    return json.loads((Path(folder) / "detections.json").read_text(encoding="utf-8"))


def test_a_list_with_a_broken_picture_and_two_of_one_name(
    call: Call, run: Path, voc: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one, other, cut = voc.picture("x/p", size=(60, 40)), voc.picture("y/p", size=(300, 200)), voc.picture("q")
    cut.write_bytes(cut.read_bytes()[:-300])
    listing = Path("some.txt")
    listing.write_text(f"{one}\n{cut}\n{other}\n")
    before = fingerprint(voc.root)
    out, _ = detect(call, f"source={listing}", "draw_threshold=0.01", "formats=[json,csv,comp4]", "batch=2")
    assert fingerprint(voc.root) == before
    assert f"Skipped: {cut}: the image cannot be decoded" in caplog.text
    assert "Skipped 1 of 3 files" in caplog.text
    folder = run / "detect" / "some"
    assert f"Wrote images, detections.json, detections.csv, comp4 files to {folder}" in out
    names = {"x_p.jpg.png", "y_p.jpg.png", "detections.json", "detections.csv", "timing.json"}
    assert {p.name for p in folder.iterdir()} == names | {f"comp4_det_detect_{c}.txt" for c in slim_run.CLASSES}
    assert read_image(folder / "x_p.jpg.png").shape == (160, 240, 3), "enlarged, so that names fit in"
    assert read_image(folder / "y_p.jpg.png").shape == (200, 300, 3)
    found = entries(folder)
    assert {e["image_id"]: e["file"] for e in found} == {"x_p.jpg": str(one), "y_p.jpg": str(other)}
    for e in found:
        assert slim_run.CLASSES[e["category_id"] - 1] == e["category"]
        assert 0 <= e["bbox"][0] <= e["bbox"][0] + e["bbox"][2] <= (60.01 if e["image_id"] == "x_p.jpg" else 300.01)
    assert (folder / "detections.csv").read_text(encoding="utf-8").startswith(HEADER + "\n")
    rows = list(csv.DictReader((folder / "detections.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == len(found)
    for row, e in zip(rows, found, strict=True):
        x, y, width, height = e["bbox"]
        corners = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        assert corners == pytest.approx([x, y, x + width, y + height], abs=1e-6)
        assert (row["image_id"], row["category"], float(row["score"])) == (e["image_id"], e["category"], e["score"])
    of_dogs = [e for e in found if e["category"] == "dog"]
    lines = (folder / "comp4_det_detect_dog.txt").read_text().splitlines()
    assert len(lines) == len(of_dogs) > 0
    by_score = {round(float(line.split()[1]), 5): line.split() for line in lines}
    for e in of_dogs:  # one-based and inclusive
        image_id, _, *box = by_score[e["score"]]
        x, y, width, height = e["bbox"]
        if image_id == e["image_id"]:
            assert [float(v) for v in box] == pytest.approx([x + 1, y + 1, x + width, y + height], abs=0.011)
    timing = json.loads((folder / "timing.json").read_text())
    assert (timing["images"], timing["left_out"], timing["device"]) == (2, 1, "cpu")
    assert set(timing["seconds_per_image"]) == {"proposals", "network", "nms"}
    for stage, seconds in timing["seconds"].items():
        assert seconds == pytest.approx(2 * timing["seconds_per_image"][stage], abs=2e-6)
    assert timing["work"]["proposals"] == pytest.approx(2 * timing["work_per_image"]["proposals"], abs=2e-6)
    assert timing["work"]["proposals"] > 0
    assert "Time per image on cpu: proposals " in caplog.text


def test_each_image_is_decoded_once_and_the_configuration_composed_once(
    call: Call, run: Path, voc: VocFolder, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposals, detections and the drawing are made of the same array; so are those of a video's frames."""
    pictures = [voc.picture(name, size=(60, 40)) for name in ("a", "b")]
    listing = Path("some.txt")
    listing.write_text("".join(f"{path}\n" for path in pictures))
    calls: Counter[str] = Counter()

    def count(where: ModuleType | type, name: str) -> None:
        original = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: (calls.update([name]), original(*a, **k))[1])

    count(cv2, "imdecode")
    count(ConfigLoaderImpl, "load_configuration")
    count(datasets, "propose")
    detect(call, f"source={listing}", "draw_threshold=0.01")
    assert calls == {"imdecode": 2, "load_configuration": 1, "propose": 2}
    calls.clear()
    count(video.Video, "frames")
    detect(call, f"source={clip}", "every=3", "draw_threshold=0.01", "batch=2")
    assert calls == {"frames": 1, "load_configuration": 1, "propose": 3}, "of frames 0, 3 and 6"


def test_a_photo_stored_sideways_is_found_in_and_drawn_upright(
    call: Call, run: Path, voc: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """As the same photo with its pixels rotated by Pillow; by a store of `propose` too."""
    caplog.set_level("INFO")
    annotations.say_once.cache_clear()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = voc.picture("p", size=(300, 200), suffix=".png")
    with Image.open(plain) as image:
        image.save("phone.png", exif=exif)
    with Image.open("phone.png") as image:
        ImageOps.exif_transpose(image).save("upright.png")
    for name in ("phone", "upright"):
        detect(call, f"source={name}.png", f"output={name}", "draw_threshold=0.01")
        propose = ["propose", f"source={name}.png", f"output={name}.proposals", "data.selective_search.side=40"]
        assert call(*propose, "data.selective_search.k=[50]")[0] == 0
    found, upright = entries("phone"), entries("upright")
    assert [(e["bbox"], e["score"]) for e in found] == [(e["bbox"], e["score"]) for e in upright]
    assert max(e["bbox"][1] + e["bbox"][3] for e in found) > 200, "lower than the stored image is high"
    drawn = read_image(Path("phone/phone.png"))
    assert drawn.shape == (300, 200, 3)
    np.testing.assert_array_equal(drawn, read_image(Path("upright/upright.png")))
    one, other = ProposalStore(Path("phone.proposals")), ProposalStore(Path("upright.proposals"))
    assert one.size("phone") == (300, 200)
    np.testing.assert_array_equal(one.boxes("phone"), other.boxes("upright"))
    detect(call, "source=phone.png", "output=given", "draw_threshold=0.01", "data.proposals=phone.proposals")
    assert "phone.png: 1 image(s) are rotated upright according to their EXIF orientation" in caplog.text


def test_twelve_bits_are_detected_in_as_bright_as_eight(
    call: Call, run: Path, voc: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    annotations.say_once.cache_clear()
    plain = voc.picture("p", size=(60, 40), suffix=".png")
    cv2.imwrite("deep.png", cv2.imread(str(plain)).astype(np.uint16) << 4 | 5)
    for source, name in ((plain, "plain"), ("deep.png", "deep")):
        detect(call, f"source={source}", f"output={name}", "draw_threshold=0.01")
    assert [(e["bbox"], e["score"]) for e in entries("deep")] == [(e["bbox"], e["score"]) for e in entries("plain")]
    assert "deep.png: 1 image(s) with 16 bits per channel use only 12 of them" in caplog.text


def test_folders_are_named_after_their_source_and_shared_by_no_two(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for source in ("a/x.jpg", "b/x.jpg"):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_bytes(b"")
    chosen = {}
    for source in ("a/x.jpg", "b/x.jpg", "a/*.jpg", "a"):
        folder = folder_for(None, run, str(tmp_path / source))
        folder.mkdir(parents=True)
        (folder / "timing.json").write_text(json.dumps({"source": str(tmp_path / source)}))
        chosen[source] = folder
        assert folder_for(None, run, str(tmp_path / source)) == folder, "the same again"
    assert [p.name for p in chosen.values()] == ["x", "x-2", "a", "a-2"]


def test_nothing_is_overwritten_that_an_earlier_detect_did_not_write(call: Call, run: Path, voc: VocFolder) -> None:
    picture = voc.picture("p", suffix=".png")
    before = fingerprint(voc.root)
    _, err = detect(call, f"source={picture}", f"output={picture.parent}", status=1)
    assert f"output={picture.parent}: the output file p.png would overwrite an input file." in err
    Path("mine").mkdir()
    Path("mine/detections.json").write_text("precious")
    _, err = detect(call, f"source={picture}", "output=mine", status=1)
    assert "mine/detections.json: the file already exists and `fastrcnn detect` did not write it" in err
    assert [p.name for p in Path("mine").iterdir()] == ["detections.json"]
    Path("mine/detections.json").rename("mine/notes.json")
    Path("mine/timing.json").write_text('{"seconds_per_image": 1}')
    _, err = detect(call, f"source={picture}", "output=mine", status=1)
    assert "mine/timing.json: the file already exists" in err, "an evaluation's"
    Path("mine/timing.json").unlink()
    for _ in range(2):
        detect(call, f"source={picture}", "output=mine", "draw_threshold=0.01")
    assert Path("mine/notes.json").read_text() == "precious"
    assert fingerprint(voc.root) == before


def test_proposals_are_those_given_and_never_the_trainings(call: Call, run: Path, voc: VocFolder) -> None:
    from fastrcnn.training import checkpoint

    picture = voc.picture("p", size=(64, 48))
    trained = checkpoint.load(run / "checkpoints" / "best.pt")
    trained["config"]["data"]["proposals"] = "of/other.pictures"
    del trained["format"]
    checkpoint.save(run / "checkpoints" / "best.pt", trained)
    detect(call, f"source={picture}", "output=own", "draw_threshold=0.01")
    assert len(entries("own")) > 1
    box = np.array([[5, 6, 40, 30]], np.float32)
    write_store("p.proposals", [ImageProposals("p", 48, 64, box)], "a test", {})
    still = ["detection.box_regression=false", "draw_threshold=0.01"]
    detect(call, f"source={picture}", "output=given", "data.proposals=p.proposals", *still)
    assert {tuple(e["bbox"]) for e in entries("given")} == {(5, 6, 35, 24)}
    _, err = detect(call, f"source={voc.picture('r')}", "output=x", "data.proposals=p.proposals", status=1)
    assert "the proposals do not fit the images" in err


def test_a_files_name_need_not_be_text(call: Call, run: Path, voc: VocFolder) -> None:
    picture = os.fsdecode(b"caf\xe9.png")
    try:
        voc.picture("p", suffix=".png").rename(picture)
    except OSError:
        pytest.skip("this file system wants text")
    detect(call, "source=*.png", "output=found", "draw_threshold=0.01", "formats=[json,csv]")
    assert {e["file"] for e in entries("found")} == {picture}
    assert b"caf\xe9.png" in Path("found/detections.csv").read_bytes()
    assert (Path("found") / picture).exists()


def test_nothing_found_is_status_3_and_says_why(call: Call, run: Path, voc: VocFolder) -> None:
    picture = voc.picture("p")
    out, _ = detect(call, f"source={picture}", "draw_threshold=1", status=3)
    best = max(e["score"] for e in entries(run / "detect" / "p"))
    assert out.startswith("0 of ")
    assert f"no detection is drawn: the best score is {best:.3f} (draw_threshold=1)" in out
    out, _ = detect(call, f"source={picture}", "detection.score_threshold=1", "formats=csv", status=3)
    assert "no detection is drawn: no score reaches detection.score_threshold" in out
    assert (run / "detect" / "p" / "detections.csv").read_text() == HEADER + "\n"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Seven frames, ten a second: a picture that moves to the right."""
    rng = np.random.default_rng(0)
    first = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (256, 192))
    with video.VideoFile(tmp_path / "clip", 10, 256, 192) as file:
        for number in range(7):
            file.write(np.roll(first, 8 * number, axis=1))
    return file.path


def test_a_video_gives_a_video_and_detections_by_frame(call: Call, run: Path, clip: Path) -> None:
    before = clip.read_bytes()
    out, _ = detect(call, f"source={clip}", "every=3", "output=found", "draw_threshold=0.01", "formats=[json,csv]")
    assert clip.read_bytes() == before
    assert "Wrote video, detections.json, detections.csv to found" in out
    detect(call, f"source={clip}", "every=3", "output=none", "detection.score_threshold=1", "formats=csv", status=3)
    header = HEADER.replace("file", "frame,time,file")
    assert Path("found/detections.csv").read_text().splitlines()[0] == header
    assert Path("none/detections.csv").read_text() == header + "\n"
    assert {p.name for p in Path("found").iterdir()} == {clip.name, "detections.json", "detections.csv", "timing.json"}
    drawn, plain = video.Video(Path("found") / clip.name), video.Video(clip)
    assert drawn.rate == 10
    pairs = list(zip(drawn.frames(), plain.frames(), strict=True))
    assert len(pairs) == 7
    assert all(np.abs(a.image.astype(int) - b.image).max() > 60 for a, b in pairs), "boxes on every frame"
    found = entries("found")
    assert {(e["frame"], e["time"], e["image_id"]) for e in found} == {
        (0, 0.0, "clip-000000"),
        (3, 0.3, "clip-000003"),
        (6, 0.6, "clip-000006"),
    }
    assert json.loads(Path("found/timing.json").read_text())["images"] == 3
    # As the frames are found one by one, written as pictures.
    for frame in list(video.Video(clip).frames())[3::3]:
        cv2.imwrite(f"f{frame.number}.png", frame.image[:, :, ::-1])
        detect(call, f"source=f{frame.number}.png", f"output=alone{frame.number}", "draw_threshold=0.01")
        alone = entries(f"alone{frame.number}")
        of_frame = [e for e in found if e["frame"] == frame.number]
        assert [(e["bbox"], e["score"], e["category"]) for e in alone] == [
            (e["bbox"], e["score"], e["category"]) for e in of_frame
        ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source=bad.mp4"], ["bad.mp4: OpenCV cannot read this video"]),
        (["source=clip.mp4", "data.proposals=x.proposals"], ["data.proposals=x.proposals: not supported for videos"]),
        (["source=empty"], ["source=empty: the folder contains no images (.jpg, "]),
        (["source=bad.txt"], ["bad.txt, line 2: the file gone.jpg does not exist."]),
        (["source=cut"], ["None of the 2 files is a readable image"]),
        (["source=cut/1.jpg"], ["fastrcnn: cut/1.jpg: the file is not an image"]),
        (
            ["source=a b.png", "formats=[jsn]"],
            ["formats=jsn: must be one of json, csv, comp4, voc, yolo, coco, labelstudio. Did you mean 'json'?"],
        ),
        (["source=a b.png", "draw_threshold=7"], ["draw_threshold=7: must be from 0 to 1"]),
        (["source=a b.png", "output=a b.png/x"], ["output=a b.png/x: ", "a b.png is not a folder."]),
        (["source=a b.png", "batch=0"], ["batch=0: must be at least 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_message_and_write_nothing(
    call: Call, run: Path, clip: Path, voc: VocFolder, arguments: list[str], said: list[str]
) -> None:
    Path("bad.mp4").write_bytes(b"x" * 999)
    Path("clip.mp4").write_bytes(clip.read_bytes())
    voc.picture("a", suffix=".png").rename("a b.png")
    for folder in ("empty", "cut"):
        Path(folder).mkdir()
    for number in (1, 2):
        Path(f"cut/{number}.jpg").write_bytes(b"\xff\xd8 not much")
    Path("bad.txt").write_text("a b.png\ngone.jpg\n")
    before = fingerprint(Path())
    status, out, err = call("detect", "checkpoint=run", *FAST, *arguments)
    assert (status, out) == (1, ""), err
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert fingerprint(Path()) == before

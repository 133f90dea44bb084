"""Configuration to objects: values arrive where they belong, and proposals are kept under a name that fits them."""

from __future__ import annotations

import pickle
from dataclasses import asdict, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from voc_folder import VocFolder

from fastrcnn.build import annotations, datasets, machine, models
from fastrcnn.config.schema import DataConfig, RuntimeConfig, TrainConfig, leaves
from fastrcnn.config.values import fill
from fastrcnn.data.annotations.splits import divide
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.frames import read_sample
from fastrcnn.data.mosaics import mosaics
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.proposals.selective_search import propose
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.settings import DetectionSettings, ModelSettings, SelectiveSearchSettings, SolverSettings

QUICK = SelectiveSearchSettings(side=48, k=[50.0])


def config_of(voc: VocFolder, **changes: object) -> DataConfig:
    return DataConfig(
        root=str(voc.root), proposal_cache=str(voc.root.parent / "cache"), selective_search=QUICK, **changes
    )


def training_set(config: DataConfig, names: list[str]) -> DetectionDataset:
    return datasets.run_sets(replace(config, test=[]), names, seed=0)[0]


# ------------------------------------------------------------------------------------------ values


def test_the_schemas_defaults_are_those_of_the_parts_it_configures() -> None:
    assert datasets.augmentation(DataConfig()) == Augmentation()


def test_what_varies_in_training_is_fixed_in_evaluation() -> None:
    config = DataConfig(
        short_sides=[100, 200], long_side=300, test_short_sides=[150], flip=True, flip_vertical=True, transpose=True,
        colour=0.5,
    )  # fmt: skip
    assert datasets.augmentation(config) == Augmentation((100, 200), 300, True, True, True, 0.5)
    assert datasets.test_scaling(config) == Augmentation((150,), 300, False, False, False, 0.0)


@pytest.mark.parametrize(
    ("splits", "name"),
    [(["test"], "test"), (["VOC2007/test"], "VOC2007-test"), (["a/x", "b/y"], "a-x+b-y")],
)
def test_a_split_gets_a_name_that_a_file_can_bear(splits: list[str], name: str) -> None:
    assert annotations.split_name(splits) == name


def test_the_log_counts_the_files_of_a_set_without_lists_once(voc: VocFolder, caplog: pytest.LogCaptureFixture) -> None:
    for image_id in "abcdef":
        voc.add(image_id, ("cat", (1, 1, 32, 24), False))
    (voc.root / "Annotations/f.xml").unlink()
    caplog.set_level("INFO")
    for _ in range(3):
        datasets.run_sets(config_of(voc), ["cat"], 0)
    assert caplog.text.count("1 image(s) without an annotation are not used") == 1
    train, test = (len(divide("abcde", split)) for split in ("trainval", "test"))
    line = f"5 images without split lists, divided by their ids into trainval {train} and test {test}"
    assert caplog.text.count(line) == 1


def test_the_name_of_many_splits_is_cut_and_their_own() -> None:
    lists = [f"task{n}/annotations/instances_default.json" for n in range(50)]
    names = [annotations.split_name(some) for some in (lists, lists[:-1], ["日本" * 60])]
    assert [name[:5] for name in names] == ["task0", "task0", "日本日本日"]
    assert len({*names}) == 3
    assert max(len(name.encode()) for name in names) <= annotations.SPLIT_BYTES


@pytest.mark.parametrize(
    ("test", "split", "expected"),
    [
        (["test"], None, ["test"]),
        (["test"], "val", ["val"]),
        (["VOC2007/test"], "val", ["VOC2007/val"]),
        (["VOC2007/test"], "VOC2012/val", ["VOC2012/val"]),
        (["VOC2007/test", "VOC2007/val"], "train", ["VOC2007/train"]),
        (["a/test", "b/test"], "val", ["a/val", "b/val"]),
    ],
)
def test_another_split_is_looked_for_in_the_same_folders(test: list[str], split: str | None, expected: list) -> None:
    assert annotations.test_splits(DataConfig(test=test), split) == expected


@pytest.mark.parametrize(("bfloat16", "amx"), [(False, False), (True, False), (False, True)])
def test_the_processor_computes_in_bfloat16_where_it_has_instructions_for_it(
    bfloat16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    wanted = torch.bfloat16 if bfloat16 or amx else torch.float32
    assert machine.precision(RuntimeConfig(), torch.device("cpu")) == wanted


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert machine.device(RuntimeConfig(device="cpu")) == cpu
    assert machine.precision(RuntimeConfig(precision="float32"), cpu) == torch.float32
    assert machine.precision(RuntimeConfig(precision="bfloat16"), cpu) == torch.bfloat16
    for bad in ("tpu0", "cuda:x", ""):
        with pytest.raises(UserError, match=f"runtime.device={bad}"):
            machine.device(RuntimeConfig(device=bad))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TrainConfig(name="x", model=ModelSettings(width=0)), "model.width=0: must be greater than 0"),
        (
            TrainConfig(data=DataConfig(short_sides=[600, 0])),
            r"data.short_sides=\[600, 0\]: each element must be at least 1",
        ),
        (TrainConfig(runtime=RuntimeConfig(workers=-1)), "runtime.workers=-1: must be at least 0"),
        (TrainConfig(detection=DetectionSettings(nms_iou=1.5)), "detection.nms_iou=1.5: must be at most 1"),
        (TrainConfig(model=ModelSettings(width=float("nan"))), "model.width=nan"),
    ],
)
def test_numbers_out_of_their_bounds_are_named(config: TrainConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fill(TrainConfig, asdict(config))


def test_null_is_within_every_bound() -> None:
    fill(RuntimeConfig, {"threads": None, "workers": None})
    with pytest.raises(UserError, match=r"runtime\.threads=0"):
        fill(RuntimeConfig, {"threads": 0, "workers": None}, "runtime.")


def bounds(schema: type, prefix: str = "") -> list[tuple[str, str, float]]:
    """Each key that has a bound, with the bound's kind and its value."""
    found = []
    for field in fields(schema):
        inner = get_type_hints(schema)[field.name]
        if is_dataclass(inner):
            found += bounds(inner, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        kinds = [kind for kind in ("above", "least", "most") if field.metadata.get(kind) is not None]
        found += [(prefix + field.name, kind, field.metadata[kind]) for kind in kinds]
    return found


@pytest.mark.parametrize(("name", "kind", "limit"), bounds(TrainConfig))
def test_every_bound_of_the_schema_is_kept_at_its_edge(name: str, kind: str, limit: float) -> None:
    def refused(value: float) -> bool:
        config = TrainConfig()
        group, _, last = name.rpartition(".")
        part = attrgetter(group)(config) if group else config
        setattr(part, last, [value] if "list" in str(leaves(TrainConfig)[name][0]) else value)
        try:
            fill(TrainConfig, asdict(config))
        except UserError as error:
            return name in str(error)
        return False

    beyond = limit - 1 if kind == "least" else limit + 1 if kind == "most" else limit
    inside = limit if kind != "above" else limit + 1
    assert refused(beyond)
    assert not refused(inside)


# ------------------------------------------------------------------------------------------ classes and samples


def test_classes_are_those_given_in_their_order_or_those_found_sorted(tiny: VocFolder) -> None:
    assert annotations.classes(config_of(tiny, classes=["dog", "traffic light", "cat"])) == [
        "dog",
        "traffic light",
        "cat",
    ]
    assert annotations.classes(config_of(tiny)) == ["cat", "dog"]
    assert annotations.classes(config_of(tiny, train=["test"])) == ["cat"]


@pytest.mark.parametrize("names", [[], ["cat", "cat"], ["a/b"], [""], ["a\\b"]])
def test_names_that_no_file_can_bear_are_refused_before_training(tiny: VocFolder, names: list[str]) -> None:
    with pytest.raises(UserError, match=r"data\.classes"):
        annotations.classes(config_of(tiny, classes=names))


def test_classes_with_a_broken_annotation_name_all_that_is_wrong_or_leave_it_out(tiny: VocFolder) -> None:
    (tiny.root / "Annotations" / "b.xml").write_text("<annotation>")
    (tiny.root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"(?s)2 problem.*a: no such image.*b\.xml, line 1"):
        annotations.classes(config_of(tiny))
    assert annotations.classes(config_of(tiny, skip_bad=True)) == ["cat", "dog"]


def test_samples_of_several_folders_follow_each_other(tmp_path: Path) -> None:
    for year, image_id in (("VOC2007", "x"), ("VOC2012", "y")):
        folder = VocFolder(tmp_path / "VOCdevkit" / year)
        folder.add(image_id, ("cat", (1, 1, 9, 9), False))
        folder.split("trainval", image_id)
    config = DataConfig(root=str(tmp_path / "VOCdevkit"), classes=["cat"])
    found = annotations.samples(config, ["VOC2012/trainval", "VOC2007/trainval"], ["cat"])
    assert [s.image_id for s in found] == ["y", "x"]


def test_an_id_in_two_lists_is_refused(tiny: VocFolder) -> None:
    tiny.split("more", "c", "a")
    with pytest.raises(UserError, match="trainval, more: 'a' is in more than one of these splits"):
        annotations.samples(config_of(tiny), ["trainval", "more"], ["cat", "dog"])


def test_the_first_so_many_of_each_list_are_used(tiny: VocFolder) -> None:
    found = annotations.samples(config_of(tiny, max_images=1), ["trainval", "test"], ["cat", "dog"])
    assert [s.image_id for s in found] == ["a", "c"]


def test_skip_bad_says_what_was_left_out(tiny: VocFolder, caplog: pytest.LogCaptureFixture) -> None:
    (tiny.root / "Annotations" / "b.xml").write_text("<annotation>")
    found = annotations.samples(config_of(tiny, skip_bad=True), ["trainval"], ["cat", "dog"])
    assert [s.image_id for s in found] == ["a"]
    assert "skipped 1 invalid item(s) (data.skip_bad=true)" in caplog.text
    assert "b.xml, line 1" in caplog.text


def test_difficult_objects_are_trained_on_or_not_and_always_evaluated(tiny: VocFolder) -> None:
    tiny.add("c", ("dog", (5, 5, 40, 40), True))
    store = tiny.root.parent / "x.proposals"
    boxes = np.array([[0, 0, 9, 9]], np.float32)
    write_store(store, [ImageProposals(i, 48, 64, boxes) for i in "abc"], "a test", {})
    config = config_of(tiny, proposals=str(store), use_difficult=False)
    names = ["cat", "dog"]
    assert [len(s.boxes) for s in training_set(config, names).samples] == [2, 0]
    assert [len(s.boxes) for s in datasets.test_set(config, names).samples] == [1]
    config.use_difficult = True
    assert [len(s.boxes) for s in training_set(config, names).samples] == [2, 1]


def test_every_picture_that_is_not_whole_is_named_before_training_or_left_out(
    tiny: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.root / "JPEGImages"
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    tiny.picture("b", size=(48, 64))
    for image_id, data in (("empty", b""), ("text", b"no picture")):
        tiny.add(image_id, ("cat", (1, 1, 32, 24), False))
        (folder / f"{image_id}.jpg").write_bytes(data)
    tiny.add("good", ("cat", (1, 1, 32, 24), False))
    tiny.split("trainval", "a", "b", "empty", "text", "good")
    with pytest.raises(UserError) as caught:
        training_set(config_of(tiny), ["cat", "dog"])
    for said in (
        "4 of 5 images cannot be used",
        "a.jpg: the image is truncated",
        "b.jpg: the image has 48 x 64 pixels, but its annotation has size 64 x 48. Width and height are swapped",
        "empty.jpg: the file is empty",
        "text.jpg: the file is not an image",
        "data.skip_bad=true",
    ):
        assert said in str(caught.value)
    found = annotations.samples(config_of(tiny, skip_bad=True), ["trainval"], ["cat", "dog"])
    assert [s.image_id for s in found] == ["good"]
    assert "Skipped 4 image(s)" in caplog.text


def test_objects_of_other_classes_are_refused_or_left_out_and_counted(
    tiny: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"unknown class 'dog'.*\n.*data\.other_classes=leave_out"):
        annotations.samples(config_of(tiny), ["trainval"], ["cat"])
    caplog.set_level("INFO")
    a, b = annotations.samples(config_of(tiny, other_classes="leave_out"), ["trainval"], ["cat"])
    assert (len(a.boxes), len(b.boxes)) == (1, 0)
    assert "objects of other classes are skipped: dog (2)" in caplog.text


def test_a_zero_based_data_set_is_noticed_and_read_as_one(voc: VocFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("a", ("cat", (0, 0, 31, 23), False), ("cat", (10, 0, 63, 47), False), ("cat", (5, 5, 9, 9), False))
    voc.split("trainval", "a")
    (sample,) = annotations.samples(config_of(voc), ["trainval"], ["cat"])
    assert "2 box(es) start at 0" in caplog.text
    assert "data.first_pixel=0" in caplog.text
    np.testing.assert_array_equal(sample.boxes, [[-1, -1, 31, 23], [9, -1, 63, 47], [4, 4, 9, 9]])
    np.testing.assert_array_equal(sample.training_boxes, [[0, 0, 31, 23], [9, 0, 63, 47], [4, 4, 9, 9]])
    caplog.clear()
    (sample,) = annotations.samples(config_of(voc, first_pixel=0), ["trainval"], ["cat"])
    np.testing.assert_array_equal(sample.boxes, [[0, 0, 32, 24], [10, 0, 64, 48], [5, 5, 10, 10]])
    assert caplog.text == ""


def test_a_folder_without_lists_trains_and_tests_on_different_pictures(voc: VocFolder) -> None:
    for n in range(12):
        voc.add(f"p{n}", ("cat", (1, 1, 32, 24), False))
    (voc.root / "ImageSets" / "Main").rmdir()
    (voc.root / "ImageSets").rmdir()
    config = config_of(voc)
    assert annotations.classes(config) == ["cat"]
    train, test = (annotations.samples(config, [name], ["cat"]) for name in ("trainval", "test"))
    assert {s.image_id for s in train} | {s.image_id for s in test} == {f"p{n}" for n in range(12)}
    assert not {s.image_id for s in train} & {s.image_id for s in test}
    assert 0 < len(test) < len(train)


# ------------------------------------------------------------------------------------------ proposals


def test_pictures_without_proposals_are_left_out_where_that_is_asked_for(
    tiny: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    store = tiny.root.parent / "x.proposals"
    write_store(store, [ImageProposals("a", 48, 64, np.array([[0, 0, 9, 9]], np.float32))], "a test", {})
    config = config_of(tiny, proposals=str(store), missing_proposals="leave_out")
    data = training_set(config, ["cat", "dog"])
    assert [s.image_id for s in data.samples] == ["a"]
    assert "Skipping 1 of 2 images, because" in caplog.text
    with pytest.raises(UserError, match="none of the images has proposals"):
        datasets.test_set(config, ["cat", "dog"])


def test_proposals_are_made_once_and_found_again(tiny: VocFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tiny, name="pets")
    first = training_set(config, ["cat", "dog"])
    (kept,) = (tiny.root.parent / "cache").glob("*.proposals")
    assert kept.name.startswith("pets-trainval-")
    assert ProposalStore(kept).ids == ["a", "b"]
    monkeypatch.setattr(datasets, "propose_all", None)  # may not be called again
    again = training_set(config, ["cat", "dog"])
    np.testing.assert_array_equal(again.proposal_boxes(1), first.proposal_boxes(1))


def test_mosaics_get_proposals_of_their_own(
    tiny: VocFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of selective search on the pixels of each; the images' own are those without mosaics."""
    config = config_of(tiny, mosaics=1.5)
    plain = training_set(replace(config, mosaics=0.0), ["cat", "dog"])
    data = training_set(config, ["cat", "dog"])
    assert [bool(sample.tiles) for sample in data.samples] == [False, False, True, True, True]
    for index in range(5):
        found = propose(read_sample(data.samples[index]), QUICK)
        assert len(found) > 3
        np.testing.assert_array_equal(data.proposal_boxes(index), found)
    np.testing.assert_array_equal(data.proposal_boxes(1), plain.proposal_boxes(1))
    stores = (tiny.root.parent / "cache").glob("*.proposals")
    assert sorted(store.name.rpartition("-")[0] for store in stores) == ["custom-trainval", "custom-trainval-mosaics"]
    assert len(training_set(replace(config, mosaics=0.1), ["cat", "dog"])) == 3  # not 0.1 * 2 = 0 mosaics
    monkeypatch.setattr(datasets, "propose_all", None)  # may not be called again
    again = pickle.loads(pickle.dumps(training_set(config, ["cat", "dog"])))  # as a worker gets it
    np.testing.assert_array_equal(again.proposal_boxes(4), data.proposal_boxes(4))
    (given,) = (tiny.root.parent / "cache").glob("custom-trainval-[!m]*")
    with caplog.at_level("WARNING"):
        without = training_set(replace(config, proposals=str(given)), ["cat", "dog"])
    assert len(without) == 2
    assert "no mosaics are added, because data.proposals does not contain" in caplog.text


def test_the_store_of_mosaics_follows_their_images_and_places(tiny: VocFolder) -> None:
    config = config_of(tiny)
    samples = annotations.samples(config, ["trainval"], ["cat", "dog"])
    mosaic = mosaics(samples, 1)[0]
    path = datasets.proposal_path(config, [mosaic], "x")
    moved = [replace(tile, box=(0, 0, 5, 5)) for tile in mosaic.tiles]
    assert datasets.proposal_path(config, [replace(mosaic, tiles=tuple(moved))], "x") != path
    assert datasets.proposal_path(config, [replace(mosaic, width=70)], "x") != path
    assert datasets.proposal_path(config, [mosaics(samples, 1)[0]], "x") == path
    for tile in {tile.sample.path: tile for tile in mosaic.tiles}.values():
        tiny.picture(tile.sample.image_id + "other").rename(tile.sample.path)
        assert datasets.proposal_path(config, [mosaic], "x") != path
        path = datasets.proposal_path(config, [mosaic], "x")


def test_the_name_of_kept_proposals_follows_settings_and_pictures(tiny: VocFolder) -> None:
    config = config_of(tiny)
    samples = annotations.samples(config, ["trainval"], ["cat", "dog"])
    path = datasets.proposal_path(config, samples, "trainval")
    assert datasets.proposal_path(config, samples[::-1], "trainval") == path
    other = config_of(tiny)
    other.selective_search = SelectiveSearchSettings(side=48, k=[50.0], sigma=0.5)
    assert datasets.proposal_path(other, samples, "trainval") != path
    assert datasets.proposal_path(config, samples[:1], "trainval") != path
    (tiny.root / "JPEGImages" / "a.jpg").write_bytes((tiny.root / "JPEGImages" / "b.jpg").read_bytes())
    assert datasets.proposal_path(config, samples, "trainval") != path


def test_proposals_of_other_pictures_are_refused(tiny: VocFolder) -> None:
    store = tiny.root.parent / "x.proposals"
    boxes = np.zeros((0, 4), np.float32)
    write_store(store, [ImageProposals("a", 48, 64, boxes)], "a test", {})
    with pytest.raises(UserError, match=r"do not fit the images\. .* does not contain 1 of 2 images, for example 'b'"):
        training_set(config_of(tiny, proposals=str(store)), ["cat", "dog"])
    write_store(store, [ImageProposals("a", 48, 64, boxes), ImageProposals("b", 64, 48, boxes)], "a test", {})
    with pytest.raises(UserError, match="'b' has 48x64 pixels in the store, but the image file has 64x48"):
        training_set(config_of(tiny, proposals=str(store)), ["cat", "dog"])


# ------------------------------------------------------------------------------------------ recall before training


def test_what_the_proposals_find_is_said_before_training(tiny: VocFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = tiny.root.parent / "x.proposals"
    near = np.array([[0, 0, 32, 20], [1, 1, 3, 3]], np.float32)  # the cat of `a` by 20/24; its dog not at all
    write_store(store, [ImageProposals(i, 48, 64, near) for i in "ab"], "a test", {})
    data = training_set(config_of(tiny, proposals=str(store)), ["cat", "dog"])
    datasets.say_recall(data, ["cat", "dog"])
    assert "Proposals: 2 per image on average, recall 50.0 % at IoU 0.5 (measured on 2 images)" in caplog.text
    assert "proposals-check" not in caplog.text
    far = np.array([[60, 40, 64, 48]], np.float32)
    write_store(store, [ImageProposals(i, 48, 64, far) for i in "ab"], "a test", {})
    datasets.say_recall(training_set(config_of(tiny, proposals=str(store)), ["cat", "dog"]), ["cat", "dog"])
    assert "recall 0.0 % at IoU 0.5" in caplog.text
    assert "fastrcnn proposals-check" in caplog.text


def test_layers_that_no_roi_is_pooled_from_are_not_trained() -> None:
    model = FastRCNN(2, width=0.03, batch_norm=True, roi_features=["conv3_3", "conv4_1"])
    models.freeze_unused(model, SolverSettings())
    trained = {name.split(".")[2] for name, p in model.trunk.named_parameters(prefix="trunk") if p.requires_grad}
    assert trained == {"conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv4_1"}


def test_broken_images_of_a_source_are_refused_or_left_out(voc: VocFolder) -> None:
    good, empty = voc.picture("a"), voc.picture("b")
    empty.write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 2 images cannot be used:\n.*b\.jpg: the file is empty"):
        annotations.source_pictures(str(good.parent), skip_bad=False)
    assert [s.path for s in annotations.source_pictures(str(good.parent), skip_bad=True)] == [good]
    good.write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 images cannot be used"):
        annotations.source_pictures(str(good.parent), skip_bad=True)

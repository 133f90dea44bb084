"""fastrcnn compare: evaluations side by side, without data or model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from voc_folder import VocFolder

Call = Callable[..., tuple[int, str, str]]
BOX = "11 11 30 40\n"


@pytest.fixture
def evaluated(call: Call, voc: VocFolder, tmp_path: Path) -> Callable[..., Path]:
    """Evaluates detections of cats and dogs in twelve pictures, each of which holds one of both."""
    ids = [f"p{i:02d}" for i in range(12)]
    for i in ids:
        voc.add(i, ("cat", (11, 11, 30, 40), False), ("dog", (41, 11, 60, 40), False))
    voc.split("trainval", *ids)
    voc.split("test", *ids)
    voc.split("few", *ids[:10])

    def evaluate(name: str, cats: int, *arguments: str, split: str = "test", dogs: int = 6) -> Path:
        """With `cats` and `dogs` of the first ten pictures found, and a false cat before all."""
        folder = tmp_path / f"{name.replace('/', '-')}-d"
        folder.mkdir()
        cat = "p00 0.9 41 11 60 40\n" + "".join(f"{i} 0.{80 - n} {BOX}" for n, i in enumerate(ids[:cats]))
        dog = "".join(f"{i} 0.{80 - n} 41 11 60 40\n" for n, i in enumerate(ids[:dogs]))
        for found, text in (("cat", cat), ("dog", dog)):
            (folder / f"comp4_det_{split}_{found}.txt").write_text(text, encoding="utf-8")
        keys = ["data=custom", f"data.root={voc.root}", f"split={split}", f"output={name}", *arguments]
        status, _, err = call("reval", f"detections={folder}", *keys)
        assert status == 0, err
        return Path(name)

    return evaluate


def test_differences_by_hand(call: Call, evaluated: Callable[..., Path], voc: VocFolder) -> None:
    """Area under the curve: eight of twelve cats at a precision of 8/9 against three at 3/4; dogs are the same."""
    first, second = evaluated("first", 3), evaluated("second", 8)
    shutil.rmtree(voc.root)  # not needed
    status, out, err = call("compare", str(first), str(second))
    assert status == 0, err
    lines = out.splitlines()
    assert lines[:2] == ["A  first", "B  second"]
    cat, dog, mean = (line.split() for line in lines[4:7])
    assert cat[:5] == ["cat", "12", "0.188", "0.593", "+0.405"]
    assert dog == ["dog", "12", "0.500", "0.500", "0.000", "0.000", "…", "0.000"]
    assert mean[:5] == ["mAP", "24", "0.344", "0.546", "+0.203"]
    low, high = float(cat[5]), float(cat[7])
    assert 0.1 < low < 0.405 < high < 0.8
    assert "12 images, 1,000 resamples" in " ".join(out.split())
    assert lines[-1] == "page: outputs/compare/compare.html"
    html = Path("outputs/compare/compare.html").read_text(encoding="utf-8")
    assert "mAP of B compared with A: +0.203" in html
    assert "), higher</p>" in html
    assert html.count("<polyline") == 4
    assert call("compare", str(first), str(second))[1] == out  # the same resamples
    seeds = {call("compare", str(first), str(second), "resamples=101", f"seed={n}")[1] for n in range(5)}
    assert len(seeds) > 1


def test_runs_and_several_of_them(call: Call, evaluated: Callable[..., Path]) -> None:
    for name, cats in (("one", 2), ("two", 4), ("three", 4)):
        evaluated(f"{name}/eval/test", cats)
    status, out, err = call("compare", "one", "two", "three", "resamples=100", "output=here")
    assert status == 0, err
    assert re.search(r"cat +12 +\S+ +\S+ +\S+ +(\+\S+ +\S+ … \S+) +\1", out)
    assert Path("here/compare.html").is_file()
    evaluated("one/eval/few", 2, split="few")
    status, _, err = call("compare", "one", "two")
    assert (status, err) == (
        1,
        "fastrcnn: one: this run has evaluations on few, test. Choose one of them with split=NAME.\n",
    )
    assert call("compare", "one", "two", "split=test")[0] == 0
    status, _, err = call("compare", "one", "two", "split=few")
    assert (status, err) == (1, "fastrcnn: two: no evaluation on split=few. Available splits: test.\n")


def test_a_folder_of_runs_means_the_newest_with_an_evaluation(
    call: Call, evaluated: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    for n, (run, cats) in enumerate((("b/second", 4), ("b/first", 2), ("a", 2)), 1):
        folder = evaluated(f"{run}/eval/test", cats)
        os.utime(folder.parents[1], (n, n))
    Path("b/third/checkpoints").mkdir(parents=True)
    status, out, err = call("compare", "a", "b", "resamples=100")
    assert status == 0, err
    assert "b: using the newest run, first" in caplog.messages
    assert re.search(r"cat +12 +(\S+) +\1 +0\.000", out)


def test_coco_has_ap_at_50_with_intervals(call: Call, evaluated: Callable[..., Path]) -> None:
    evaluated("a", 3, "metric=coco")
    evaluated("b", 8, "metric=coco")
    status, out, err = call("compare", "a", "b")
    assert status == 0, err
    assert out.splitlines()[4].split()[:5] == ["cat", "12", "0.188", "0.593", "+0.405"]
    means = [json.loads(Path(name, "metrics.json").read_text())["mAP"] for name in "ab"]
    assert f"COCO AP (without intervals): {means[0]:.3f}, {means[1]:.3f}" in out


def test_what_cannot_be_compared_is_one_clear_message(
    call: Call, evaluated: Callable[..., Path], voc: VocFolder, tmp_path: Path
) -> None:
    evaluated("a", 3)

    def refused(*arguments: str) -> str:
        status, out, err = call("compare", *arguments)
        assert (status, out) == (1, "")
        assert "Traceback" not in err
        assert not Path("outputs").exists()
        return err

    assert "two to five runs or folders of evaluations: fastrcnn compare RUN OTHER_RUN" in refused()
    assert "fastrcnn compare RUN OTHER_RUN" in refused("a")
    assert "2 to 5 different runs, but got 1" in refused("a", "a")
    assert "nowhere: this folder does not exist" in refused("a", "nowhere")
    (tmp_path / "here" / "empty").mkdir()
    assert "empty: no evaluation found (metrics.json or eval/SPLIT/metrics.json)" in refused("a", "empty")
    shutil.copytree("a", "old")
    Path("old/matches.npz").unlink()
    assert "old: the folder contains no matches.npz" in refused("a", "old")
    evaluated("m", 3, "metric=voc07")
    assert "a was evaluated with metric=voc10, but m with metric=voc07" in refused("a", "m")
    evaluated("f", 3, split="few")
    said = refused("a", "f")
    assert "a and f were evaluated on different images (12 and 10): f does not include p10, p11." in said
    evaluated("o", 3, "data.classes=[dog,cat]")
    assert "different classes: the order of the classes differs" in refused("a", "o")
    (tmp_path / "a-d" / "comp4_det_test_dog.txt").unlink()
    keys = ["data=custom", f"data.root={voc.root}", "output=c"]
    assert call("reval", f"detections={tmp_path / 'a-d'}", *keys)[0] == 0
    assert "different classes: c does not include dog." in refused("a", "c")
    assert "different classes: c does not include dog." in refused("c", "a")
    voc.add("p03", ("cat", (11, 11, 30, 40), True), ("dog", (41, 11, 60, 40), False))
    evaluated("t", 3)
    assert "on the same images (12), but the ground truth differs" in refused("a", "t")
    assert "unknown key 'sed'. Did you mean 'seed'?" in refused("a", "t", "sed=1")

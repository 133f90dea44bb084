"""fastrcnn compress: a smaller checkpoint that eval, detect and train take, and what is said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import small_run
import torch
from small_run import SETTINGS
from voc_folder import fingerprint

from fastrcnn.deploy import compression
from fastrcnn.errors import UserError
from fastrcnn.model.head import decompose
from fastrcnn.training import checkpoint

Call = Callable[..., tuple[int, str, str]]

NO_DATA = "data.root=null"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demo data set and a run of two steps on it in `run`."""
    return small_run.make(tmp_path_factory.mktemp("a place"), "solver.iterations=2")


@pytest.fixture
def place(trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a copy of the run's checkpoints."""
    monkeypatch.setattr(compression, "ROIS", 20)
    return small_run.copy(trained, Path.cwd())


def done(call: Call, *arguments: str) -> str:
    status, out, err = call(*arguments)
    assert status == 0, err
    return out


def test_a_compressed_checkpoint_is_evaluated_and_detected_with(call: Call, place: Path, trained: Path) -> None:
    before = fingerprint(place / "run")
    out = done(call, "compress", "checkpoint=run", "fc6=100", "fc7=30")
    folder = Path("run/compressed/fc6-100-fc7-30")
    assert {k: v for k, v in fingerprint(place / "run").items() if "compressed" not in str(k)} == before
    assert f"Wrote {folder}/best.pt" in out
    rows = {line.split(":")[0]: re.findall(r"[\d,.]+", line.partition(":")[2]) for line in out.splitlines()}
    assert rows["fc6, rank 100"] == ["261,170", "147,900", "56.6"]  # 205 x 1274 and 100 x (205 + 1274)
    assert rows["fc7, rank 30"] == ["42,025", "12,300", "29.3"]  # 205 x 205 and 30 x 410
    numbers = [int(n.replace(",", "")) for n in rows["entire network"][:2]]
    assert numbers[0] - numbers[1] == 261_170 - 147_900 + 42_025 - 12_300
    assert re.search(r"fc6 and fc7 for 20 RoIs: \d+\.\d\d times as fast", out)

    content = checkpoint.load(folder / "best.pt")
    original = checkpoint.load(Path("run/checkpoints/best.pt"))
    assert content["model"]["head.fc6.L.weight"].shape == (100, 1274)
    assert (content["config"]["model"]["fc6_rank"], content["config"]["model"]["fc7_rank"]) == (100, 30)
    assert content["classes"] == original["classes"]
    assert "optimizer" not in content
    for name in ("delta_mean", "delta_std", "pixel_mean", "bbox_pred.weight"):
        assert torch.equal(content["model"][name], original["model"][name])

    # Two ways to name it, and its figures beside it, those of the run untouched.
    done(call, "eval", "checkpoint=run", "output=whole")
    done(call, "eval", f"checkpoint={folder}")
    done(call, "eval", f"checkpoint={folder}/best.pt", "output=again")
    assert not (place / "run" / "eval").exists()
    figures = [json.loads((p / "metrics.json").read_text())["mAP"] for p in (Path("whole"), folder / "eval" / "test")]
    assert json.loads(Path("again/metrics.json").read_text())["mAP"] == figures[1] == content["best"]
    said = re.search(r"mAP on test: (\S+) before, (\S+) after \((\S+) points\)", out)
    assert said
    assert [float(v) for v in said.groups()[:2]] == pytest.approx([100 * v for v in figures], abs=0.0051)
    assert float(said[3]) == pytest.approx(100 * (figures[1] - figures[0]), abs=0.0051)
    picture = trained / "data" / "demo" / "JPEGImages" / "000001.jpg"
    status, _, err = call("detect", f"checkpoint={folder}", f"source={picture}", "draw_threshold=0.01", "output=found")
    assert status in (0, 3), err
    assert {p.name for p in Path("found").iterdir()} == {"000001.png", "detections.json", "timing.json"}


def test_training_goes_on_from_a_compressed_checkpoint(call: Call, place: Path, trained: Path) -> None:
    content = checkpoint.load(Path("run/checkpoints/best.pt"))
    content["config"]["model"]["weights"] = "gone.pth"  # what the run began with is not needed any more
    checkpoint.save(Path("run/checkpoints/best.pt"), content)
    done(call, "compress", "checkpoint=run", "fc6=100", NO_DATA, "output=small.pt")
    others = [s for s in SETTINGS if not s.startswith(("model.", "solver.it"))]
    arguments = [*others, f"data.root={trained / 'data' / 'demo'}", "solver.iterations=1", "solver.lr=1e-9"]
    out = done(call, "train", "start=small.pt", "run=tuned", "data.train=[val]", *arguments)
    assert out.splitlines()[-1] == "run: tuned"
    small, tuned = checkpoint.load(Path("small.pt")), checkpoint.load(Path("tuned/checkpoints/step-1.pt"))
    assert tuned["config"]["model"] == small["config"]["model"]
    assert tuned["config"]["model"]["width"] == 0.05
    assert tuned["step"] == 1
    for name in ("delta_mean", "delta_std"):  # those of `val` are others
        assert torch.equal(tuned["model"][name], small["model"][name])
        assert small["model"][name].std() > 0
    for name in ("head.fc6.L.weight", "head.fc6.U.weight", "head.fc7.weight", "bbox_pred.weight"):
        torch.testing.assert_close(tuned["model"][name], small["model"][name], atol=1e-6, rtol=0)
    Path("small.pt").rename("moved.pt")
    done(call, "train", "run=tuned", "resume=auto", "solver.iterations=2")
    Path("moved.pt").rename("small.pt")
    assert checkpoint.load(Path("tuned/checkpoints/step-2.pt"))["step"] == 2

    lr = [a for a in arguments if not a.startswith("solver.lr")]
    done(call, "train", "start=small.pt", "run=learned", *lr, "solver.lr=0.01", "model.finetune_from=fc6")
    learned = checkpoint.load(Path("learned/checkpoints/step-1.pt"))
    changed = {n for n, v in learned["model"].items() if not torch.equal(v, small["model"][n])}
    assert {"head.fc6.L.weight", "head.fc6.U.weight", "head.fc6.U.bias", "cls_score.weight"} <= changed
    assert not any(n.startswith("trunk") for n in changed)

    for mistake, text in (
        (["model.width=0.06"], "start=small.pt: the checkpoint has a different model"),
        (["data.classes=[cat,dog]"], "unknown class 'c"),
        (["start=none.pt"], "none.pt does not exist"),
    ):
        status, _, err = call("train", "start=small.pt", "run=wrong", *arguments, *mistake)
        assert status == 1
        assert text in err
        assert "Traceback" not in err
    assert not Path("wrong").exists()


def test_a_share_of_the_energy_leaves_a_layer_as_it_is_where_that_saves_nothing(
    call: Call, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path("run/checkpoints/best.pt")
    content = checkpoint.load(path)
    eye = torch.eye(205)
    content["model"]["head.fc7.weight"] = eye  # half of the energy is a rank of 103, and 102 saves
    content["model"]["head.fc6.weight"] = torch.zeros(205, 1274)
    content["model"]["head.fc6.weight"][:50, :50] = 3 * torch.eye(50)
    checkpoint.save(Path("made.pt"), content)
    with caplog.at_level("INFO", "fastrcnn"):
        out = done(call, "compress", "checkpoint=made.pt", "keep=0.5", NO_DATA)
    assert (
        "fc7: keeping 0.5 of its energy requires rank 103, but compression reduces its size only up to rank 102"
        in caplog.text
    )
    assert "fc6, rank 25: weights" in out
    assert "fc7, unchanged: weights" in out
    assert "mAP: not measured" in out
    kept = checkpoint.load(Path("compressed/keep-0.5/best.pt"))
    assert torch.equal(kept["model"]["head.fc7.weight"], eye)
    assert kept["config"]["model"]["fc7_rank"] is None
    assert kept["best"] == -1
    status, _, err = call("compress", "checkpoint=made.pt", "keep=1", "output=x.pt", NO_DATA)
    assert status == 0, err  # 50 of fc6 are all of its energy
    content["model"]["head.fc6.weight"][:, :205] = eye
    checkpoint.save(Path("full.pt"), content)
    status, _, err = call("compress", "checkpoint=full.pt", "keep=.99", "output=y.pt", NO_DATA)
    assert status == 1
    assert "no layer can be compressed" in err
    assert not Path("y.pt").exists()


def test_a_budget_is_searched_on_a_split(call: Call, place: Path) -> None:
    out = done(call, "compress", "checkpoint=run", "budget=100", "split=val", "output=any.pt")
    tried = re.findall(r"^keep=([\d.]+): fc6 rank (\d+), fc7 rank (\d+): mAP (\S+)", out, re.MULTILINE)
    assert [t[0] for t in tried] == ["0.500", "0.250", "0.125", "0.062", "0.031", "0.016"]  # all is good enough
    content = checkpoint.load(Path("any.pt"))
    assert content["config"]["model"]["fc6_rank"] == int(tried[-1][1])
    assert content["config"]["model"]["fc7_rank"] == int(tried[-1][2])
    assert f"mAP on val: {out.split('mAP on val: ')[1].split()[0]} before, {tried[-1][3]} after" in out
    done(call, "eval", "checkpoint=any.pt", "split=val", "output=figures")
    assert json.loads(Path("figures/metrics.json").read_text())["mAP"] == content["best"]


def test_the_budget_is_in_points_of_a_hundred() -> None:
    """Of .5 two points may go, so that .48 is enough; a share keeps so many of 64 singular values that are all 1."""
    found = {"fc6": decompose(torch.eye(64, 640))}
    ranks, value, tried = compression.ranks_within(2, found, 0.5, lambda r: 0.48 if (r["fc6"] or 0) >= 32 else 0.479)
    assert (ranks, value) == ({"fc6": 32}, 0.48)
    assert tried[0] == "keep=0.500: fc6 rank 32: mAP 48.00 (-2.00 points)"
    assert tried[1] == "keep=0.250: fc6 rank 16: mAP 47.90 (-2.10 points)"
    assert len(tried) == 6
    with pytest.raises(UserError, match="budget=2: every trial reduced the mAP by more than") as error:
        compression.ranks_within(2, found, 0.5, lambda r: 0.1)
    assert "keep=0.500: fc6 rank 32: mAP 10.00 (-40.00 points)" in str(error.value)
    with pytest.raises(UserError, match="no ground truth"):
        compression.ranks_within(2, found, None, lambda r: 0.1)


def test_without_the_data_set_it_is_compressed_but_not_measured(call: Call, place: Path) -> None:
    path = Path("run/checkpoints/best.pt")
    content = checkpoint.load(path)
    content["config"]["data"]["root"] = str(place / "moved away")
    checkpoint.save(path, content)
    out = done(call, "compress", "checkpoint=run", "fc7=30")
    assert "mAP: not measured" in out
    assert Path("run/compressed/fc7-30/best.pt").is_file()
    for arguments in (["budget=1"], ["fc7=31", "split=val"], ["fc7=31", "data.root=nowhere"]):
        status, _, err = call("compress", "checkpoint=run", *arguments)
        assert status == 1
        assert "no such folder" in err
    status, _, err = call("compress", "checkpoint=run", "budget=1", NO_DATA)
    assert status == 1
    assert "data.root is missing" in err
    assert not Path("run/compressed/fc7-31").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["No model is given. Use `fastrcnn compress checkpoint=PATH`"]),
        (["checkpoint=run"], ["Choose exactly one compression setting", "None is given"]),
        (["checkpoint=run", "fc6=10", "keep=.9"], ["Choose exactly one", "Given: fc6=10, keep=0.9"]),
        (["checkpoint=run", "keep=.9", "budget=1"], ["Choose exactly one", "Given: keep=0.9, budget=1"]),
        (["checkpoint=run", "keep=0"], ["keep=0: must be greater than 0"]),
        (["checkpoint=run", "keep=90"], ["keep=90: must be at most 1"]),
        (["checkpoint=run", "fc6=0"], ["fc6=0: must be at least 1"]),
        (["checkpoint=run", "budget=-1"], ["budget=-1: must be at least 0"]),
        (["checkpoint=run", "fc6=177"], ["fc6=177", "261,783 weights", "261,170", "at most 176"]),
        (["checkpoint=run", "fc7=103"], ["fc7=103", "42,230 weights", "42,025", "at most 102"]),
        (["checkpoint=run", "fc6=9", "output=folder"], ["output=folder: the file name must end in", ".pt"]),
        (
            ["checkpoint=run", "fc6=9", "output=run/checkpoints/step-9.pt"],
            ["a run writes and deletes its checkpoints in the folder run/checkpoints"],
        ),
        (["checkpoint=run", "fc6=9", "output=run/checkpoints/best.pt"], ["Choose another folder"]),
        (["checkpoint=run", "fc6=9", "split=vla"], ["Did you mean 'val'?", "data.root=null"]),
        (["checkpoint=nothing", "fc6=9"], ["nothing does not exist"]),
        (["checkpoint=run", "rank=9"], ["unknown key 'rank'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_message_and_write_nothing(
    call: Call, place: Path, arguments: list[str], said: list[str]
) -> None:
    before = fingerprint(place)
    status, out, err = call("compress", *arguments)
    assert (status, out) == (1, "")
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert fingerprint(place) == before


def test_nothing_is_overwritten_or_compressed_twice(call: Call, place: Path) -> None:
    for _ in range(2):  # the same command may run again
        done(call, "compress", "checkpoint=run", "fc6=20", NO_DATA)
    path = "run/compressed/fc6-20/best.pt"
    content = checkpoint.load(Path("run/checkpoints/best.pt"))
    checkpoint.save(Path("other/best.pt"), content | {"step": content["step"] + 1})
    Path("mine.pt").write_text("mine")
    before = fingerprint(place)
    for arguments, said in (
        (["checkpoint=other", "fc6=20", f"output={path}"], f"{path} already exists and was created from another file"),
        (["checkpoint=run", "fc6=20", "output=mine.pt"], "mine.pt already exists. Remove it"),
        ([f"checkpoint={path}", "fc7=20"], "already compressed (fc6 consists of two layers)"),
    ):
        status, _, err = call("compress", *arguments, NO_DATA)
        assert status == 1
        assert said in err
    assert fingerprint(place) == before

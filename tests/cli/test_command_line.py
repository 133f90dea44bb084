"""The command line: one message per error, the right exit status, and no import of torch before it is needed."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from limits import PATIENCE
from voc_folder import VocFolder

import fastrcnn
from fastrcnn import __version__
from fastrcnn.cli import COMMANDS

Call = Callable[..., tuple[int, str, str]]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


HEAVY = """
import sys
from fastrcnn.cli import main
status = main(sys.argv[1:])
heavy = sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'hydra', 'omegaconf', 'cv2', 'numpy'})
print('imported', status, heavy)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        ([], 2),
        (["--version"], 0),
        (["trian"], 2),
        (["train", "--help"], 0),
        (["demo", "-h"], 0),
        (["eval", "--help"], 0),
        (["reval", "--help"], 0),
        (["compare", "--help"], 0),
        (["compare", "a", "b", "sed=1"], 1),
        (["detect", "--help"], 0),
        (["propose", "--help"], 0),
        (["train", "solver.lrr=1"], 1),
        (["train", "data=voc7"], 1),
        (["train", "solver.lr=fast"], 1),
        (["eval", "chekpoint=x"], 1),
        (["eval"], 1),
        (["detect", "detection=papers"], 1),
        (["demo", "solver.lr"], 1),
        (["reval"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_are_answered_without_heavy_imports(arguments: list[str], status: int) -> None:
    """Hydra composes the defaults that the help of a command shows, and does not import the other packages."""
    done = python(HEAVY, *arguments)
    last = done.stdout.strip().splitlines()[-1]
    composed = ["hydra", "omegaconf"] if len(arguments) == 2 and arguments[1] in ("--help", "-h") else []
    assert last == f"imported {status} {composed}" or (arguments == ["reval"] and last.startswith("imported 1 "))
    assert "Traceback" not in done.stderr


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"fastrcnn {__version__}\n"
    wrong = subprocess.run([sys.executable, "-m", "fastrcnn", "nonsense"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`fastrcnn train --help | head -1`."""
    command = f"{sys.executable} -m fastrcnn train --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.startswith("fastrcnn train: ")
    assert done.stderr == ""


def test_the_overview_has_a_line_for_every_command(call: Call) -> None:
    status, out, err = call("--help")
    assert (status, err) == (0, "")
    for command, (about, _) in COMMANDS.items():
        assert f"\n  {command:<16} {about}\n" in out
    status, out, _ = call()
    assert status == 2
    assert "usage: fastrcnn COMMAND" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_its_page(call: Call, command: str) -> None:
    page = COMMANDS[command][1]
    assert (Path(__file__).parents[2] / page).is_file()
    status, out, _ = call(command, "--help")
    assert (status, out.splitlines()[-1]) == (0, f"Documentation: {page} in the repository.")


def refused(call: Call, arguments: Sequence[str], said: Sequence[str]) -> str:
    """Runs a command line that must fail as a user's mistake does; gives the message."""
    status, out, err = call(*arguments)
    assert status == 1
    assert out == ""
    assert err.startswith("fastrcnn: ")
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert not list(Path.cwd().rglob("*.pt"))
    return err


def test_an_unknown_command_is_answered_with_the_nearest_and_all(call: Call) -> None:
    status, out, err = call("trian", "data=voc07")
    assert (status, out) == (2, "")
    assert err.startswith("fastrcnn: unknown command 'trian'. Did you mean 'train'?")
    assert "propose" in err


@pytest.mark.parametrize("verb", ["train", "eval", "reval", "detect", "propose"])
def test_an_unknown_key_is_answered_with_the_nearest(call: Call, verb: str) -> None:
    refused(
        call, [verb, "data.rot=x"], ["unknown key 'data.rot'. Did you mean 'data.root'?", f"fastrcnn {verb} --help"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "model=vgg16_slim"],
            ["data.root is missing. Set data.root=FOLDER to the folder of the data set 'voc07'"],
        ),
        (
            ["train", "model=vgg16_slim", "data=custom"],
            ["data.root is missing", "the folder with the images and their annotations"],
        ),
        (["train", "model=vgg16_slim", "data.root=no/such"], ["data.root=no/such: no such folder"]),
        (["propose", "data=custom"], ["data.root is missing"]),
        (["propose", "source=no/*.jpg"], ["source=", "output=NAME.proposals"]),
        (["propose", "source=no/*.jpg", "output=x"], ["source=no/*.jpg: no such file or folder"]),
        (["reval", "data=custom"], ["Specify the detections", "detections=FOLDER"]),
        (["eval"], ["No model is given. Use `fastrcnn eval checkpoint=PATH`"]),
        (["eval", "checkpoint="], ["No model is given"]),
        (["eval", "checkpoint=no/such"], ["no/such does not exist"]),
        (["detect", "source=x.jpg"], ["No model is given. Use `fastrcnn detect checkpoint=PATH`"]),
        (["detect", "checkpoint=.", "source=x"], ["checkpoint: . contains no checkpoint"]),
        (["train", "resume=auto"], ["resume=auto: there is no run in outputs/train"]),
        (["train", "resume=yes"], ["resume=yes: must be auto"]),
        (["train", "solver.schedule=cosin"], ["solver.schedule=cosin: must be one of", "Did you mean 'cosine'?"]),
        (["train", "solver.iterations=0"], ["solver.iterations=0: must be at least 1"]),
        (["train", "solver.lr=-1"], ["solver.lr=-1"]),
        (["train", "solver.bg_iou=[0.5]"], ["solver.bg_iou=[0.5]: must be two IoU values"]),
        (["train", "solver.bg_iou=[0.5,0.1]"], ["the first must be less than the second"]),
        (["train", "runtime.device=gpu"], ["runtime.device=gpu: must be auto, cpu, cuda or cuda:N"]),
        (["train", "runtime.device=cuda:99"], ["runtime.device=cuda:99: torch finds"]),
        (["train", "runtime.device=cpu", "runtime.precision=half"], ["must be one of auto, float32, bfloat16"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_missing_or_makes_no_sense_is_one_clear_message(
    call: Call, arguments: list[str], said: list[str]
) -> None:
    refused(call, arguments, said)


TRAIN = ["train", "data=custom", "model=vgg16_slim", "runtime.device=cpu", "runtime.workers=0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data.train=[trainvl]"], ["trainvl.txt: no image list", "Available lists: test, trainval. Did you mean"]),
        (["data.test=[val]"], ["no image list for the split 'val'. Available lists: test, trainval."]),
        (["data.train=[VOC2007/trainval]"], ["no such folder", "VOC2007"]),
        (["data.train=[]"], ["data.train"]),
        (["data.classes=[cat]"], ["unknown class 'dog'", "Known classes: cat"]),
        (["data.classes=[]"], ["data.classes"]),
        (["data.classes=[cat,dog,cat]"], ["cat"]),
        (["data.train=[trainval,trainval]"], ["'a' is in more than one of these splits"]),
        (["data.short_sides=[]"], ["data.short_sides is empty"]),
        (["data.short_sides=[0]"], ["data.short_sides"]),
        (["data.metric=voc12"], ["data.metric=voc12: must be one of", "voc07", "voc10"]),
        (["data.proposals=none.proposals"], ["none.proposals: this proposal store does not exist"]),
        (
            ["data.selective_search.mode=fats"],
            ["data.selective_search.mode=fats: must be one of fast, quality, iccv2011", "Did you mean 'fast'?"],
        ),
        (["model.roi_op=roialign"], ["model.roi_op=roialign", "Did you mean 'roi_align'?"]),
        (["model.finetune_from=conv9"], ["model.finetune_from=conv9"]),
        (["model.roi_features=[]"], ["model.roi_features"]),
        (["model.roi_features=[conv5_4]"], ["conv5_4", "conv5_3"]),
        (["model.width=0"], ["model.width=0"]),
        (["model.weights=no.pth"], ["no.pth"]),
        (["model.dropout=2"], ["model.dropout=2"]),
        (["runtime.threads=0"], ["runtime.threads=0"]),
        (["runtime.workers=-1"], ["runtime.workers=-1"]),
        (["runtime.log_every=0"], ["runtime.log_every=0"]),
        (["runtime.checkpoint_every=0"], ["runtime.checkpoint_every=0"]),
        (["runtime.keep_checkpoints=0"], ["runtime.keep_checkpoints=0"]),
        (["runtime.evaluate_every=-1"], ["runtime.evaluate_every=-1"]),
        (["runtime.images_every=-5"], ["runtime.images_every=-5"]),
        (["runtime.seed=-1"], ["runtime.seed=-1"]),
        (["solver.fg_fraction=2"], ["solver.fg_fraction=2"]),
        (["solver.fg_iou=5"], ["solver.fg_iou=5"]),
        (["solver.warmup=-1"], ["solver.warmup=-1"]),
        (["solver.momentum=-1"], ["solver.momentum=-1"]),
        (["solver.weight_decay=-1"], ["solver.weight_decay=-1"]),
        (["solver.box_weight=-1"], ["solver.box_weight=-1"]),
        (["detection.nms_iou=7"], ["detection.nms_iou=7"]),
        (["detection.rois_per_chunk=0"], ["detection.rois_per_chunk=0"]),
        (["detection.max_per_image=0"], ["detection.max_per_image=0"]),
        (["detection.max_per_class=-1"], ["detection.max_per_class=-1"]),
        (["data.max_proposals=0"], ["data.max_proposals=0"]),
        (["data.max_proposals=-5"], ["data.max_proposals=-5"]),
        (["data.colour=-1"], ["data.colour=-1"]),
        (["data.long_side=0"], ["data.long_side=0"]),
        (["data.test_short_sides=0"], ["data.test_short_sides=[0]"]),
        (["data.test_short_sides=[]"], ["data.test_short_sides is empty"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and "=" in value[0] else None,
)
def test_a_value_that_cannot_be_trained_with_is_one_clear_message(
    call: Call, tiny: VocFolder, arguments: list[str], said: list[str]
) -> None:
    refused(call, [*TRAIN, f"data.root={tiny.root}", "solver.iterations=1", *arguments], said)


def test_a_data_set_of_which_nothing_is_left_is_one_clear_message(call: Call, tiny: VocFolder) -> None:
    for path in (tiny.root / "Annotations").iterdir():
        path.write_text("<annotation>")
    arguments = [*TRAIN, f"data.root={tiny.root}"]
    refused(call, arguments, ["2 problem(s)", "a.xml, line 1", "b.xml, line 1", "data.skip_bad=true"])
    refused(
        call, [*arguments, "data.skip_bad=true"], ["the annotations in the splits trainval, test contain no objects"]
    )
    refused(
        call,
        [*arguments, "data.skip_bad=true", "data.classes=[cat]"],
        ["no image of trainval can be used"],
    )


@pytest.mark.parametrize("verb", ["detect", "propose"])
def test_sources_that_hold_no_picture_are_named(call: Call, tmp_path: Path, verb: str) -> None:
    """For detect the model is looked for first; propose needs none."""
    if verb == "detect":
        refused(call, [verb, f"source={tmp_path}"], ["No model is given"])
        return
    empty = tmp_path / "no pictures here"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    refused(call, [verb, f"source={empty}", "output=x"], [f"source={empty}: the folder contains no images (.jpg"])
    (empty / "a.jpg").write_text("no picture")
    (empty / "b.png").touch()
    refused(
        call,
        [verb, f"source={empty}", "output=x"],
        ["2 of 2 images cannot be used", "a.jpg: the file is not an image", "b.png: the file is empty"],
    )


def test_the_home_folder_may_be_a_tilde(
    call: Call, tiny: VocFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ["data.selective_search.side=40", "workers=1"]
    status, out, _ = call("propose", "data=custom", "data.root=~/set", "data.proposal_cache=~/kept", *settings)
    assert status == 0
    assert sorted(p.name.rpartition("-")[0] for p in (tmp_path / "kept").iterdir() if p.suffix == ".proposals") == [
        "custom-test",
        "custom-trainval",
    ]
    assert "2 images" in out
    assert call("propose", "source=~/set/JPEGImages", "output=~/x.proposals", *settings)[0] == 0
    assert (tmp_path / "x.proposals" / "meta.json").is_file()
    assert not list(Path.cwd().iterdir())  # nothing named ~ here


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"gr\xfcn \u65e5\u672c"),
        ({"PYTHONIOENCODING": "cp1252"}, "gr\xfcn \\u65e5\\u672c"),
        ({"PYTHONIOENCODING": "utf-8"}, "grün 日本"),
    ],
    ids=["ascii", "cp1252", "utf-8"],
)
def test_names_that_a_terminal_cannot_show_are_escaped(
    voc: VocFolder, tmp_path: Path, environment: dict[str, str], shown: str
) -> None:
    voc.add("a", ("grün 日本", (1, 1, 32, 24), False))
    for split in ("trainval", "test"):
        voc.split(split, "a")
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn", "check", "data=custom", f"data.root={voc.root}", "output=report"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert shown in done.stdout.decode(environment["PYTHONIOENCODING"])
    assert "grün 日本" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_a_class_that_no_file_can_be_named_after_is_refused_before_the_work(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrcnn.build.annotations import checked_names
    from fastrcnn.errors import UserError

    assert checked_names(["grün 日本"], ["test"]) == ["grün 日本"]
    with pytest.raises(UserError, match="contains the character"):
        checked_names(["a\udce6"], ["test"])
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert checked_names(["grün"], ["test"]) == ["grün"]
    with pytest.raises(UserError, match=r"'gr\\xfcn \\u65e5\\u672c' contains characters .*\(iso8859-1\).*PYTHONUTF8=1"):
        checked_names(["grün 日本"], ["test"])


def text_files_without_encoding(source: str) -> list[str]:
    """Calls that open a file as text in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in ("open", "read_text", "write_text") or ast.unparse(node.func) in ("os.open", "Image.open"):
            continue
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        binary = name == "open" and any(isinstance(m, str) and "b" in m for m in modes)
        if not binary and not any(k.arg in ("encoding", "fileobj") for k in node.keywords):
            found.append(ast.unparse(node))
    return found


def test_no_file_is_written_in_the_encoding_of_the_locale() -> None:
    assert text_files_without_encoding("p.open('w')\np.read_text()\np.open('rb')") == ["p.open('w')", "p.read_text()"]
    for path in Path(fastrcnn.__file__).parent.rglob("*.py"):
        assert text_files_without_encoding(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "The umask is 0777"), (errno.ENOSPC, "Free some space"), (errno.ENOTDIR, "Check")],
)
def test_a_file_that_the_system_refuses_is_one_message(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("fastrcnn.cli.explain_roi.main", refuse)
    before = os.umask(0o777)
    try:
        status, out, err = call("explain-roi")
    finally:
        os.umask(before)
    assert (status, out) == (1, "")
    assert err.startswith(f"fastrcnn: some/file: {os.strerror(number)}. ")
    assert said in err


def test_a_full_disk_is_one_message_where_the_system_names_no_file(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastrcnn.cli.explain_roi.main", fail)
    said = "the output cannot be written (No space left on device). Free some space, or choose another path."
    assert call("explain-roi") == (1, "", f"fastrcnn: explain-roi: {said}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_goes_to_a_full_disk_is_one_message(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastrcnn", "--version"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("fastrcnn: --version: the output cannot be written (No space left on device).")
    assert done.stderr.count("\n") == 1


def test_an_error_that_is_of_no_file_is_a_fault_of_ours(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("fastrcnn.cli.explain_roi.main", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        call("explain-roi")

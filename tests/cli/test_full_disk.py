"""Commands that cannot write their results: no file may grow beyond a limit, as if the disk were full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import slim_run
from forked import Source, until
from voc_folder import VocFolder

from fastrcnn.cli import main
from fastrcnn.data import video

Call = Callable[..., tuple[int, str, str]]
FAST = ["runtime.device=cpu", "runtime.precision=float32", "runtime.workers=0"]
SEARCH = ["data.selective_search.side=40", "data.selective_search.k=[50]"]
TRAINED = ["checkpoint=run", *FAST, *SEARCH, "data.test_short_sides=48"]
DATA = ["data=custom", "data.root=set"]
PICTURES = "source=set/JPEGImages"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a run, an evaluation of it, proposals and a video."""
    folder = tmp_path_factory.mktemp("place")
    voc = VocFolder(folder / "set")
    voc.add("a", ("cat", (1, 1, 32, 24), False), ("dog", (33, 10, 64, 48), False))
    voc.add("b", ("cat", (11, 11, 30, 40), False), ("dog", (5, 5, 40, 40), False))
    voc.split("trainval", "a")
    voc.split("test", "b")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch, video.VideoFile(folder / "clip", 10, 256, 192) as file:
        for _ in range(4):
            file.write(rng.integers(0, 256, (192, 256, 3), dtype=np.uint8))
        patch.chdir(folder)
        slim_run.save(Path("set"), Path("run"))
        assert main(["eval", *TRAINED, "output=evaluated"]) == 0
        assert main(["propose", *DATA, *SEARCH, "data.train=[trainval]", "output=some.proposals", "workers=1"]) == 0
    return folder


COMMANDS = {  # the arguments, and the most bytes that a file may have
    "explain-roi": (["explain-roi", "example=8x8", "output=OUT"], 20_000),
    "check": (["check", *DATA, "output=OUT", "workers=1"], 10_000),
    "propose": (["propose", PICTURES, *SEARCH, "output=OUT/x.proposals", "workers=1"], 500),
    "convert to .mat": (["propose", "convert=some.proposals", "output=OUT/x.mat"], 500),
    "convert to .json": (["propose", "convert=some.proposals", "output=OUT/x.json"], 500),
    "convert to a store": (["propose", "convert=some.proposals", *DATA, "output=OUT/x.proposals"], 600),
    "eval": (["eval", *TRAINED, "output=OUT"], 10_000),
    "competition": (["eval", *TRAINED, "competition=true", "output=OUT"], 500),
    "reval": (["reval", *DATA, "detections=evaluated", "output=OUT"], 10_000),
    "compare": (["compare", "evaluated", "evaluated/", "output=OUT"], 10_000),
    "detect": (["detect", *TRAINED, PICTURES, "output=OUT"], 500),
    "detect in a video": (["detect", *TRAINED, "source=VIDEO", "output=OUT"], 20_000),
    "compress": (["compress", *TRAINED, "fc6=4", "data.root=null", "output=OUT/x.pt"], 20_000),
    "svm": (["svm", *TRAINED, "data.test=[]", "output=OUT/x.pt"], 20_000),
    **{
        suffix: (["export", "checkpoint=run", f"format={name}", f"output=OUT/x.{suffix}"], 20_000)
        for name, suffix in (
            ("onnx", "onnx"),
            ("pt2", "pt2"),
            ("caffemodel", "caffemodel"),
            ("safetensors", "safetensors"),
        )
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_cannot_be_written_is_one_message_and_nothing_half_written_stays(
    source: Source, tmp_path: Path, name: str
) -> None:
    arguments, limit = COMMANDS[name]
    clip = next(source.place.glob("clip.*"))
    out, said = tmp_path / "out", tmp_path / "said.txt"
    placed = [a.replace("OUT", str(out)).replace("VIDEO", clip.name) for a in arguments]
    process = source.start(placed, said, file_size=limit)
    until(lambda: process.poll() is not None)
    text = said.read_text()
    assert process.poll() == 1, text
    assert "Traceback" not in text
    (message,) = (line for line in text.splitlines() if line.startswith("fastrcnn: "))
    assert f"{out}" in message
    assert "File too large" in message or "the disk is full" in message
    assert not list(out.rglob("*.part"))
    assert all(p.stat().st_size < limit for p in out.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "arguments",
    [
        *(arguments for name, (arguments, _) in COMMANDS.items() if not name.startswith(("convert", "propose"))),
        ["reproduce", "table=6", "data=demo", "output=OUT"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_work(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    """As where the place is read-only, which nothing is to root."""
    monkeypatch.chdir(place)
    file = tmp_path / "file"
    file.touch()
    clip = next(place.glob("clip.*"))
    status, out, err = call(*(a.replace("OUT", f"{file}/x").replace("VIDEO", clip.name) for a in arguments))
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"fastrcnn: output={file}/x")
    assert err.endswith(f": {file} is not a folder. Choose another folder.\n")


def test_label_files_are_all_written_or_none(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An incomplete folder would be in the way of the next attempt: labels are never overwritten."""
    monkeypatch.chdir(place)
    write, labels = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".xml":
            labels.append(path)
            if len(labels) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments = ["detect", *TRAINED, PICTURES, f"output={tmp_path}", "formats=[voc]", "draw_threshold=0"]
    status, _, err = call(*arguments)
    assert (status, len(labels)) == (1, 2)
    assert f"{tmp_path / 'labels_voc'}: cannot be written (No space left on device)" in err
    assert not list(tmp_path.glob("*labels*"))
    assert call(*arguments)[0] == 0
    assert {p.name for p in (tmp_path / "labels_voc" / "Annotations").iterdir()} == {"a.xml", "b.xml"}

"""A configuration in a checkpoint, an exported file or a run's config.yaml: it is plain text, and nothing is written
where it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import slim_run
from voc_folder import VocFolder

from fastrcnn.build import datasets
from fastrcnn.build.checkpoints import load
from fastrcnn.build.run_config import configure
from fastrcnn.cli import main
from fastrcnn.config.values import as_yaml
from fastrcnn.training import checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SECRET, TEXT = "hunter2", "${oc.env:SECRET}"
SOURCES = ("pt", "onnx", "yaml")


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VocFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    voc = VocFolder(tmp_path / "set" / "VOC")
    voc.add("a", ("cat", (5, 5, 30, 30), False))
    voc.split("test", "a")
    return voc


def stored(kind: str, voc: VocFolder, **data: Any) -> list[str]:
    """Writes a file of the kind whose configuration has these keys of `data`, and returns arguments that open it."""
    folder = voc.root.parent.parent
    path = slim_run.save(voc.root, folder / "run") / "checkpoints" / "best.pt"
    content = checkpoint.load(path)
    content["config"]["data"] |= {"root": str(voc.root), "test_short_sides": [60], "long_side": 100, **data}
    checkpoint.save(path, content)
    if kind == "yaml":
        (folder / "run" / "config.yaml").write_text(as_yaml(content["config"] | {"run": data.get("proposal_cache")}))
        return [f"run={folder / 'run'}", "resume=auto"]
    if kind == "onnx":  # `export` leaves out paths, but others need not
        path = folder / "a.onnx"
        assert main(["export", f"checkpoint={folder / 'run'}", "format=onnx", f"output={path}"]) == 0
        whole = onnx.load(path)
        props = {prop.key: prop.value for prop in whole.metadata_props}
        added = json.dumps({g: content["config"][g] for g in ("model", "data", "solver", "detection")})
        onnx.helper.set_model_props(whole, props | {"config": added})
        onnx.save(whole, path)
    return [f"checkpoint={path}"]


def opened(kind: str, arguments: list[str]) -> Any:
    return configure(arguments) if kind == "yaml" else load("eval", arguments)[0]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_environment_is_not_read(voc: VocFolder, kind: str) -> None:
    texts = [TEXT, "${data.name}", "${", "a\\${b}"]
    config = opened(kind, stored(kind, voc, root=TEXT, name=TEXT, train=texts))
    assert (config.data.root, config.data.name, config.data.train) == (TEXT, TEXT, texts)


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_no_value_of_the_environment_is_exported(voc: VocFolder, tmp_path: Path, form: str) -> None:
    pytest.importorskip("safetensors")
    arguments = stored("pt", voc, root=TEXT, name=TEXT, train=[TEXT])
    assert main(["export", *arguments, f"format={form}", f"output={tmp_path / f'x.{form}'}"]) == 0
    for file in (tmp_path / f"x.{form}", tmp_path / f"x.{form}.md"):
        assert TEXT.encode() in file.read_bytes()
        assert SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_path_in_it_is_read_but_not_written_to(voc: VocFolder, tmp_path: Path, kind: str) -> None:
    theirs = tmp_path / "theirs"
    arguments = stored(kind, voc, proposal_cache=str(theirs))

    def store(*more: str) -> Path:
        config = opened(kind, [*arguments, *more])
        if kind == "yaml":
            assert config.run == str(tmp_path / "run")
        datasets.test_set(config.data, ["cat", "dog"])
        (found,) = tmp_path.rglob("*.proposals")
        return found

    ours = store()
    assert ours == tmp_path / "data" / "proposals" / ours.name
    assert not theirs.exists()
    shutil.move(ours.parent, theirs)
    assert store() == theirs / ours.name  # and no other is made
    shutil.rmtree(theirs)
    assert store("data.proposal_cache=given") == tmp_path / "given" / ours.name


def test_commands_write_no_store_there(voc: VocFolder, tmp_path: Path) -> None:
    arguments = [*stored("pt", voc, proposal_cache=str(tmp_path / "theirs"), train=["test"]), "runtime.device=cpu"]
    assert main(["eval", *arguments, f"output={tmp_path / 'out'}"]) == 0
    assert main(["compress", *arguments, "fc6=4", f"output={tmp_path / 'c.pt'}"]) == 0
    main(["detect", *arguments, f"source={voc.root / 'JPEGImages'}", f"output={tmp_path / 'found'}"])
    assert not (tmp_path / "theirs").exists()

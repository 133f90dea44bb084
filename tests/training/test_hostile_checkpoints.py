"""Checkpoints with a right checksum and wrong content, which anybody can make, are refused before memory is taken."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slim_run
import torch

from fastrcnn.build import checkpoints
from fastrcnn.build.checkpoints import load
from fastrcnn.cli import main
from fastrcnn.errors import UserError
from fastrcnn.training import checkpoint
from fastrcnn.training.optim import load_state, make_optimizer
from fastrcnn.weights import torch_files

SECRET = "hunter2"


def signed(body: bytes) -> bytes:
    return body + checkpoint.MAGIC + hashlib.sha256(body).hexdigest().encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return slim_run.save(folder, folder / "run") / "checkpoints" / "best.pt"


def put(*keys: str, value: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def without(*keys: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def lists_of_lists(content: dict) -> None:
    """2^60 elements for whoever walks through all of them."""
    inner: list[Any] = ["a"]
    for _ in range(60):
        inner = [inner, inner]
    content["config"]["data"]["train"] = inner


def number(name: str, value: float, place: int = 0) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"][name] = content["model"][name].clone()
        content["model"][name].view(-1)[place] = value

    return change


def tensor(name: str, value: torch.Tensor) -> Callable[[dict], None]:
    return put("model", name, value=value)


CHANGES: dict[str, tuple[Callable[[dict], None], str]] = {
    **{f"no {key}": (without(key), f"the checkpoint lacks these entries: {key}") for key in checkpoint.HELD},
    "no group": (without("config", "data"), r"damaged: it does not contain the group\(s\) data"),
    "model a list": (put("model", value=[1]), "invalid values for model"),
    "model of lists": (put("model", "x", value=[1]), "invalid values for model"),
    "config a list": (put("config", value=[1]), "invalid values for config"),
    "group a list": (put("config", "model", value=[1]), "model: must be a mapping of keys to values, not list"),
    "classes a number": (put("classes", value=5), "invalid values for classes"),
    "no classes in it": (put("classes", value=[]), "invalid values for classes"),
    "classes mixed": (put("classes", value=["cat", 5]), "invalid values for classes"),
    "a class twice": (put("classes", value=["cat", "cat"]), "invalid values for classes"),
    "a class that is a path": (
        put("classes", value=["cat", "../dog"]),
        "'../dog' contains a slash, which is not allowed",
    ),
    "a class more": (put("classes", value=["a", "b", "c"]), r"cls_score.weight: shape \(3, 64\), expected \(4, 64\)"),
    "step text": (put("step", value="x"), "invalid values for step"),
    "best nan": (put("best", value=math.nan), "invalid values for best"),
    "optimizer a list": (put("optimizer", value=[]), "invalid values for optimizer"),
    "width huge": (put("config", "model", "width", value=1e9), "model.width=1000000000: must be at most 100"),
    "width nan": (put("config", "model", "width", value=math.nan), "model.width=nan: must be a finite number"),
    "width text": (put("config", "model", "width", value="x"), "model.width: must be a number, not 'x'"),
    "width 40": (
        put("config", "model", "width", value=40),
        r"conv1_1.weight: shape \(1, 3, 3, 3\), expected \(2560, 3, 3, 3\)",
    ),
    "roi_size": (put("config", "model", "roi_size", value=2**62), "model.roi_size=4611686018427387904: must be at"),
    "roi_size yes": (put("config", "model", "roi_size", value=True), "model.roi_size: must be an integer"),
    "network": (put("config", "model", "network", value="x"), "model.network=x: must be one of"),
    "unknown key": (put("config", "model", "widht", value=1), "unknown key 'model.widht'. Did you mean 'width'?"),
    "long_side": (put("config", "data", "long_side", value=10**9), "data.long_side=1000000000: must be at most"),
    "long_side 1e9": (put("config", "data", "long_side", value=1e9), "data.long_side: must be an integer"),
    "threshold": (
        put("config", "detection", "score_threshold", value=math.inf),
        "score_threshold=inf: must be a fin",
    ),
    "name": (
        put("config", "data", "name", value="../x"),
        "data.name='../x': this value is used in file and folder names",
    ),
    "environment": (put("config", "data", "long_side", value="${oc.env:SECRET}"), r"not '\$\{oc.env:SECRET\}'"),
    "lists": (lists_of_lists, "data.train: must be text, not list"),
    "nan": (number("cls_score.weight", math.nan, -1), "cls_score.weight: contains values that are not finite"),
    "infinite": (number("delta_mean", -math.inf), "delta_mean: contains values that are not finite"),
    "divided by 0": (number("pixel_std", 0.0), "pixel_std: contains 0, but"),
    "float64": (tensor("cls_score.bias", torch.full((3,), 1e300, dtype=torch.float64)), "cls_score.bias: .*not finite"),
    "whole numbers": (tensor("cls_score.bias", torch.zeros(3).int()), "cls_score.bias: dtype torch.int32"),
    "expanded": (
        tensor("cls_score.bias", torch.zeros(1).expand(10**9)),
        "1,000,000,000 elements that does not fit in its storage of 1 ",
    ),
    "foreign tensor": (tensor("more", torch.zeros(3)), "more: not in the model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_content_is_refused_by_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    change, said = CHANGES[name]
    content = checkpoint.load(made)
    change(content)
    checkpoint.save(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match=said) as caught:
        load("eval", [f"checkpoint={tmp_path / 'x.pt'}"])
    assert str(tmp_path / "x.pt") in str(caught.value)
    assert SECRET not in str(caught.value)


def test_text_in_a_file_is_never_resolved(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    content = checkpoint.load(made)
    texts = ["${oc.env:SECRET}", "${data.name}", "${", "a\\${b}"]
    content["config"]["data"] |= {"root": texts[0], "train": texts}
    checkpoint.save(tmp_path / "x.pt", content)
    config = load("detect", [f"checkpoint={tmp_path / 'x.pt'}"])[0]
    assert (config.data.root, config.data.train) == (texts[0], texts)


IN_METADATA = {name: CHANGES[name] for name in (
    "no group", "width huge", "width nan", "width text", "roi_size", "roi_size yes", "network",
    "unknown key", "long_side", "long_side 1e9", "threshold", "name", "environment", "a class that is a path",
)} | {
    "config a list": (put("config", value=[1]), "metadata is damaged .*config. and .metrics. must be dictionaries"),
    "group a list": (put("config", "model", value=[1]), "metadata is damaged .*config.model. must be a dictionary"),
    "other group a list": (put("config", "data", value=[1]), "data: must be a mapping of keys to values, not list"),
    **{f"no {key}": (without(key), f"metadata is damaged .*it has no entry {key}") for key in ("classes", "config")},
    "a text too deep": (put("config", "data", "train", value="DEEP"), "metadata is damaged .*recursion"),
    "classes a number": (put("classes", value=5), "metadata is damaged .*classes. must be a list of distinct names"),
    "no classes in it": (put("classes", value=[]), "classes"),
    "classes mixed": (put("classes", value=["cat", 5]), "metadata is damaged .*classes. must be a list of distinct"),
    "a class twice": (put("classes", value=["cat", "cat"]), "metadata is damaged .*classes. must be a list"),
    "step text": (put("step", value="x"), "metadata is damaged .*step"),
    "metrics a list": (put("metrics", value=[1]), "metadata is damaged .*metrics"),
    "a split a number": (put("metrics", value={"test": 1}), "metadata is damaged .*evaluation results"),
    "record a list": (put("record", value=[1]), "metadata is damaged .*training record"),
    "threshold nan": (put("record", value={"draw_threshold": math.nan}), "metadata is damaged .*training record"),
    "very long": (put("metrics", value={"test": "a" * 2**24}), "metadata is damaged .*16,777,216"),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    pytest.importorskip("onnxruntime")
    path = made.parent / "a.onnx"
    assert main(["export", f"checkpoint={made}", "format=onnx", f"output={path}"]) == 0
    return path


@pytest.mark.parametrize("name", IN_METADATA)
def test_metadata_of_onnx_are_checked_as_checkpoints_are(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    onnx = pytest.importorskip("onnx")
    change, said = IN_METADATA[name]
    whole = onnx.load(exported)
    texts = {prop.key: prop.value for prop in whole.metadata_props}
    content = {key: json.loads(text) for key, text in texts.items() if key != "format"}
    change(content)
    changed = {key: json.dumps(value).replace('"DEEP"', "[" * 100_000) for key, value in content.items()}
    onnx.helper.set_model_props(whole, {"format": texts["format"], **changed})
    onnx.save(whole, tmp_path / "x.onnx")
    with pytest.raises(UserError, match=said) as caught:
        load("eval", [f"checkpoint={tmp_path / 'x.onnx'}"])
    assert str(tmp_path / "x.onnx") in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_of_onnx_that_are_not_finite_or_elsewhere_are_refused_by_name(
    exported: Path, tmp_path: Path, value: float
) -> None:
    onnx = pytest.importorskip("onnx")
    whole = onnx.load(exported)
    weights = whole.graph.initializer[3]
    array = onnx.numpy_helper.to_array(weights).copy()
    array.flat[-1] = value
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(whole, tmp_path / "x.onnx")
    with pytest.raises(UserError, match=f"x.onnx: .*{weights.name} contains values that are not finite"):
        load("eval", [f"checkpoint={tmp_path / 'x.onnx'}"])
    onnx.save(onnx.load(exported), tmp_path / "y.onnx", save_as_external_data=True, location="z", size_threshold=0)
    with pytest.raises(UserError, match=f"y.onnx: .*{whole.graph.initializer[0].name} is stored in another file"):
        load("eval", [f"checkpoint={tmp_path / 'y.onnx'}"])


def test_numbers_of_threads_and_workers_are_not_taken_over(made: Path, tmp_path: Path) -> None:
    """A million processes would take all memory."""
    content = checkpoint.load(made)
    content["config"]["runtime"] |= {"workers": 10**6, "threads": 10**6, "precision": "float32"}
    checkpoint.save(tmp_path / "x.pt", content)
    runtime = load("eval", [f"checkpoint={tmp_path / 'x.pt'}", "runtime.workers=3"])[0].runtime
    assert (runtime.workers, runtime.threads, runtime.precision) == (3, None, "float32")


def test_tensors_that_share_numbers_are_refused(made: Path, tmp_path: Path) -> None:
    """They would take more memory than the file has bytes when they are put into a network."""
    content = checkpoint.load(made)
    most = torch.zeros(max(values.numel() for values in content["model"].values()))
    content["model"] |= {k: most[: v.numel()].view(v.shape) for k, v in content["model"].items() if v.dim() > 1}
    checkpoint.save(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match=r"x.pt: the checkpoint has tensors of .* bytes in a file of only"):
        checkpoint.load(tmp_path / "x.pt")


def records(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as into:
        for name, data in files.items():
            into.writestr(name, data)
    return out.getvalue()


def overlapping(content: dict) -> bytes:
    """A hundred names in the directory for one record of a megabyte."""
    body = archive(records(checkpoint.pack(content)[: -checkpoint.TRAILER].tobytes()) | {"archive/x": bytes(2**20)})
    out = io.BytesIO(body)
    with zipfile.ZipFile(out, "a") as into:
        (first,) = (info for info in into.infolist() if info.filename == "archive/x")
        for n in range(100):
            other = zipfile.ZipInfo(f"archive/x{n:03}")
            other.header_offset, other.file_size, other.compress_size, other.CRC = first.header_offset, 2**20, 2**20, 0
            into.filelist.append(other)
            into.NameToInfo[other.filename] = other
        into._didModify = True  # type: ignore[attr-defined]
    return out.getvalue()


def test_archives_that_unfold_are_refused(made: Path, tmp_path: Path) -> None:
    whole = records(made.read_bytes()[: -checkpoint.TRAILER])
    larger = whole | {"archive/data/0": whole["archive/data/0"] + bytes(4)}
    bodies = {
        "a compressed record": archive(whole, zipfile.ZIP_DEFLATED),
        "records that declare .* bytes in": overlapping(checkpoint.load(made)),
        "which does not match the": archive(larger),
        "a pickle of": archive(whole | {"archive/data.pkl": bytes(torch_files.LARGEST_PICKLE + 1)}),
        "a ZIP directory of 4,6": archive({"archive/data.pkl": b""} | {f"{n:0500}": b"" for n in range(8500)}),
        "big-endian": archive(whole | {"archive/byteorder": b"big"}),
        "KeyError": archive({k: v for k, v in whole.items() if k != "archive/data/0"}),
    }
    for said, body in bodies.items():
        (tmp_path / "x.pt").write_bytes(signed(body))
        with pytest.raises(UserError, match=f"cannot be read safely.*{said}"):
            checkpoint.load(tmp_path / "x.pt")


PICKLES = {
    "a function of torch": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.",
    "bytes": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "an object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "a tensor's state": b"\x80\x02K\x01}b.",
    "a key of tuples": b"\x80\x02}))\x86K\x01s.",
    "keys with one hash": b"\x80\x02}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"K\x01s.",
    "one list in every dictionary": b"\x80\x02](ccollections\nOrderedDict\nq\x00]("
    + b"".join(b"K%cK\x01\x86" % n for n in range(200))
    + b"eq\x01"
    + b"h\x00h\x01\x85R" * 200
    + b"e.",
    "cut": b"\x80\x02}X\xff\xff\xff\xffa",
    "digits": b"\x80\x02I" + b"9" * 5000 + b"\n.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_anything_else_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.pth").write_bytes(archive({"archive/data.pkl": PICKLES[name]}))
    with pytest.raises(UserError, match="cannot be read safely"):
        torch_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path: Path, zipped: bool) -> None:
    x = torch.randn(6, 4)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    tensors = {
        **model.state_dict(),
        **{f"p.{name}": p for name, p in model.named_parameters()},
        **{str(dtype): x.to(dtype) for dtype in torch_files.STORAGES.values()},
        **{"turned": x.t(), "part": x[2:4, 1:], "row": x[1], "none": x[:0], "one": torch.tensor(3.0)},
    }
    plain = [1, -5, 2**40, 2.5, None, True, "é", (1, (2,)), {"a": [], 3: {}}]
    torch.save(collections.OrderedDict(tensors, plain=plain), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = torch_files.read(tmp_path / "x.pth")
    theirs = torch.load(tmp_path / "x.pth", weights_only=True)
    assert found.pop("plain") == theirs.pop("plain") == plain
    assert list(found) == list(theirs)
    for name, value in theirs.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].stride() == value.stride()
        assert torch.equal(found[name], value.detach())
    assert found["part"].untyped_storage().data_ptr() == found["turned"].untyped_storage().data_ptr()


def test_a_legacy_file_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(200)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    body = (tmp_path / "x.pth").read_bytes()
    for start, end in ((b"K\xc8N", b"J\xff\xff\xff\x7fN"), (b"\xc8\0\0\0\0\0\0\0\0", b"\xff" * 6 + b"\0\0\0")):
        assert start in body
        (tmp_path / "y.pth").write_bytes(body.replace(start, end))
        with pytest.raises(UserError, match="cannot be read safely"):
            torch_files.read(tmp_path / "y.pth")


def test_tuples_within_tuples_as_keys_of_a_legacy_file_are_not_hashed(tmp_path: Path) -> None:
    """Hashing these would take 2^60 steps."""
    parts = (pickle.dumps(part, 2) for part in (torch_files.LEGACY_MAGIC, 1001, {"little_endian": True}, {}))
    keys = b"\x80\x02]()" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"e."
    (tmp_path / "x.pth").write_bytes(b"".join(parts) + keys)
    with pytest.raises(UserError, match="tensor data that is not in the file"):
        torch_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["param_groups"].pop(), "different number of parameter groups"),
        (lambda s: s["param_groups"][0].update(params=[0]), "different number of parameters"),
        (lambda s: s["param_groups"][0].update(momentum=math.nan), "is missing or not finite"),
        (lambda s: s["param_groups"][0].pop("lr_factor"), "is missing or not finite"),
        (
            lambda s: s["state"][0].update(momentum_buffer=torch.zeros(1)),
            r"buffer of parameter 0 has the wrong shape \(1,\)",
        ),
        (lambda s: s["state"][0].update(momentum_buffer=1), "parameter 0 does not consist of momentum_buffer"),
        (lambda s: s["state"].update({99: {"momentum_buffer": torch.zeros(1)}}), "parameter 99"),
    ],
)
def test_an_optimisers_state_of_other_parameters_is_refused(change: Callable[[dict], object], said: str) -> None:
    """A momentum of shape (1,) would be added to all weights of a layer."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    optimizer = make_optimizer(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    load_state(make_optimizer(model), saved)
    change(saved)
    with pytest.raises(ValueError, match=said):
        load_state(make_optimizer(model), saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["param_groups"][0].update(betas=(0.9, math.inf)), "is missing or not finite"),
        (lambda s: s["param_groups"][0].pop("betas"), "is missing or not finite"),
        (lambda s: s["state"][0].update(exp_avg=torch.zeros(1)), r"exp_avg of parameter 0 has the wrong shape \(1,\)"),
        (lambda s: s["state"][1].update(step=torch.zeros(2)), r"step of parameter 1 has the wrong shape \(2,\)"),
        (lambda s: s["state"][0].pop("exp_avg_sq"), "does not consist of exp_avg and exp_avg_sq and step"),
        (lambda s: s["state"][0].update(exp_avg=None), "does not consist of exp_avg"),
        (lambda s: s["state"][0].update(max_exp_avg_sq=torch.zeros(2, 3)), "does not consist of exp_avg"),
    ],
)
def test_so_is_a_state_that_adamw_cannot_go_on_with(change: Callable[[dict], object], said: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, optimizer="adamw")
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    load_state(make_optimizer(model, optimizer="adamw"), saved)
    change(saved)
    with pytest.raises(ValueError, match=said):
        load_state(make_optimizer(model, optimizer="adamw"), saved)


def peak(path: Path) -> int:
    """Megabytes that a process takes at most to refuse, or to open, a checkpoint."""
    code = (
        "import resource, sys\n"
        "from fastrcnn.build.checkpoints import load\n"
        "from fastrcnn.errors import UserError\n"
        "try:\n    load('eval', ['checkpoint=' + sys.argv[1], 'runtime.device=cpu'])\n"
        "except UserError:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def test_refusing_takes_no_more_memory_than_opening(made: Path, tmp_path: Path) -> None:
    """Deflated zeros of 1 GB in a file of 4 MB; a network of 7 GB in half a megabyte."""
    content = checkpoint.load(made)
    content["config"]["model"]["width"] = 40
    checkpoint.save(tmp_path / "wide.pt", content)
    packed = records(made.read_bytes()[: -checkpoint.TRAILER])
    with zipfile.ZipFile(tmp_path / "body", "w", zipfile.ZIP_DEFLATED) as into:
        for name, data in packed.items():
            into.writestr(name, data)
        with into.open("archive/data/zeros", "w") as record:
            for _ in range(1024):
                record.write(bytes(2**20))
    (tmp_path / "zeros.pt").write_bytes(signed((tmp_path / "body").read_bytes()))
    assert os.path.getsize(tmp_path / "zeros.pt") < 4_000_000  # noqa: PTH202
    opened = peak(made)
    assert max(peak(tmp_path / "wide.pt"), peak(tmp_path / "zeros.pt")) < opened + 50


def test_a_class_that_this_system_cannot_write_is_no_damage(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = checkpoint.load(made)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"best.pt: class '\\u65e5' contains characters .*\(ascii\)") as caught:
        checkpoints.checked_config(made, content["config"], ["\u65e5"])
    assert "damaged" not in str(caught.value)

"""Whatever bytes come in: a result or our own error that names the file; in time, in bounds, and nothing is run.

The readers of proposals and of COCO files have their own such tests beside their other ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import in_time
from voc_folder import fingerprint, voc_xml

from fastrcnn.cli.compose import check_overrides, compose
from fastrcnn.cli.run_folder import saved_config
from fastrcnn.config import leaves
from fastrcnn.data.voc import load_voc
from fastrcnn.data.voc_xml import parse_annotation
from fastrcnn.errors import UserError
from fastrcnn.training import checkpoint

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
MOST = 64_000_000  # bytes of memory, for inputs of a few kilobytes

watching = threading.local()


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    seen = getattr(watching, "seen", None)
    if seen is None:
        return
    if event in FORBIDDEN:
        seen.append(event)
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(f"open {arguments[0]} for writing")


sys.addaudithook(watch)


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Fails where something is executed, opened for writing, sought in the network, or takes much memory."""
    watching.seen = []
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST
        assert watching.seen == []
    finally:
        tracemalloc.stop()
        watching.seen = None


def outcome(call: Callable[[], object], named: str) -> str:
    """Runs a reader; the message of its UserError, which must hold `named`, or an empty string for a result."""
    message = ""
    with harmless(), in_time():
        try:
            call()
        except UserError as error:
            message = str(error)
    assert not message or named in message
    return message


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    for deed in (
        lambda: (tmp_path / "x").write_text("x"),
        lambda: os.system("true"),
        lambda: bytearray(2 * MOST),
    ):
        with pytest.raises(AssertionError), harmless():
            deed()


# ------------------------------------------------------------------------------------------ annotations


VALID = voc_xml([("cat", (1, 1, 32, 24), False), ("dog", (33, 10, 64, 48), True)])
texts = st.text(max_size=8) | st.sampled_from(
    ["-1", "1e999", "nan", "99999999999", "1_0", " 7 ", "../x", "&lt;", "&x;"]
)


@st.composite
def annotations(draw: st.DrawFn) -> bytes:
    """A valid file with some of its pieces replaced, removed or doubled."""
    pieces = VALID.replace("<", "\x00<").replace(">", ">\x00").split("\x00")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(pieces) - 1))
        pieces[at : at + draw(st.integers(0, 2))] = draw(st.lists(texts | st.sampled_from(pieces), max_size=2))
    return "".join(pieces).encode("utf-8", "surrogatepass")


def read_annotation(folder: Path, data: bytes) -> str:
    """What comes of a data set with this one annotation."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "Annotations" / "a.xml"
    path.write_bytes(data)
    before = fingerprint(folder)

    def both() -> None:
        (sample,), _ = load_voc(folder, ["a"], ["cat", "dog"], need_pictures=False)
        assert (sample.boxes >= 0).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes <= [sample.width, sample.height] * 2).all()

    said = outcome(lambda: parse_annotation(path), str(path))
    said = outcome(both, str(path)) or said
    assert fingerprint(folder) == before
    return said


@given(data=annotations() | st.binary(max_size=200) | texts.map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_annotation_is_read_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    read_annotation(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "<!DOCTYPE a ["
            + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 30))
            + "]><a>&e29;</a>",
            "refused",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "line 1: a document type",
        ),
        ("<annotation>" + "<a>" * 200_000, "not well-formed"),
        ("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>", "size/width"),
        ("<annotation" + " a" * 100_000 + ">", "not well-formed"),
    ],
    ids=["billion laughs", "external entity", "never closed", "deep", "attributes"],
)
def test_hostile_annotations_are_refused(tmp_path: Path, data: str, said: str) -> None:
    assert said in read_annotation(tmp_path, data.encode())


# ------------------------------------------------------------------------------------------ checkpoints


def sealed(body: bytes) -> bytes:
    """A file whose checksum fits, whatever is in it."""
    return body + checkpoint.MAGIC + hashlib.sha256(body).hexdigest().encode()


def sound() -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "step": 3, "classes": ["cat"], "model": {"w": torch.ones(50)}}, buffer)
    return buffer.getvalue()


SOUND = sound()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A checkpoint with bytes replaced, inserted, or cut off, its checksum right or not."""
    data = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    body = bytes(data)
    return sealed(body) if draw(st.booleans()) else body + SOUND[-80:]


@given(data=damaged() | st.binary(max_size=300) | st.binary(max_size=300).map(sealed))
def test_any_checkpoint_is_read_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "step-3.pt"
    path.write_bytes(data)
    outcome(lambda: checkpoint.load(path), str(path))
    assert path.read_bytes() == data


# ------------------------------------------------------------------------------------------ configuration


TRAIN = leaves(compose("train", []).__class__)
FEWER = settings(max_examples=settings().max_examples // 4)  # composing takes a fifth of a second
awkward = st.text(max_size=12) | st.sampled_from(
    ["${data.root}", "${oc.env:HOME}", "[", "]", "{a:1}", "'", "\\'", "1e400", "-0"]
)


@given(name=st.sampled_from(sorted(TRAIN)) | st.text(max_size=10), value=awkward)
def test_any_argument_is_taken_or_refused_by_name(name: str, value: str) -> None:
    message = ""
    try:
        check_overrides("train", [f"{name}={value}"])
    except UserError as error:
        message = str(error)
    assert not message or name.partition("=")[0] in message


@FEWER
@given(name=st.sampled_from(sorted(n for n, (hint, _, _) in TRAIN.items() if "str" in str(hint))), value=awkward)
def test_any_text_is_composed_or_refused(name: str, value: str) -> None:
    with in_time(), contextlib.suppress(UserError):
        compose("train", [f"{name}={value}"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | awkward,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@FEWER
@given(name=st.sampled_from(sorted(TRAIN)), value=plain)
def test_the_configuration_beside_a_run_is_read_or_refused_whatever_is_in_it(
    tmp_path: Path, name: str, value: Any
) -> None:
    content: Any = {}
    *groups, last = name.split(".")
    inner = content
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[last] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with in_time(), contextlib.suppress(UserError):
        compose("train", [], base=saved_config(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "[1, 2]",
        "a: [",
        "\x00",
        "data: 5",
        "data: {root: {a: 1}}",
        "",
        "- " * 5000,
    ],
)
def test_a_hostile_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with harmless(), contextlib.suppress(UserError):
        compose("train", [], base=saved_config(tmp_path))

"""Whatever bytes come in: the result that an independent reader finds, or our own error that names the file or key.

Nothing is run, and calls and memory stay in bounds. The readers of proposals and of COCO files have their own such
tests beside their other ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Union, get_args, get_origin
from xml.dom import minidom

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import calls, in_bounds
from voc_folder import fingerprint, voc_xml

from fastrcnn.config.compose import check_overrides, compose
from fastrcnn.config.schema import leaves
from fastrcnn.config.values import as_written
from fastrcnn.data.annotations.splits import load
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample
from fastrcnn.training import checkpoint
from fastrcnn.training.resume import saved_config

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")

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
def harmless(most_calls: int = 500_000) -> Iterator[None]:
    """Fails where something is executed, opened for writing, sought in the network, or much is called or allocated."""
    watching.seen = []
    try:
        with in_bounds(most_calls):
            yield
        assert watching.seen == []
    finally:
        watching.seen = None


def outcome(call: Callable[[], Any], named: str, size: int = 0) -> Any:
    """What a reader gives, or its UserError, whose message must hold `named`; size: of the input in bytes."""
    with harmless(500_000 + 10 * size):
        try:
            found = call()
        except UserError as error:
            found = error
    assert not isinstance(found, UserError) or named in str(found)
    return found


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    def much() -> None:
        for _ in range(600_000):
            len("")

    for deed in (lambda: (tmp_path / "x").write_text("x"), lambda: os.system("true"), lambda: bytearray(10**8), much):
        with pytest.raises(AssertionError), harmless():
            deed()


# ------------------------------------------------------------------------------------------ annotations


CLASSES = ["cat", "dog"]
VALID = voc_xml([("cat", (1, 1, 32, 24), False), ("dog", (33, 10, 64, 48), True)])
TAGS = re.findall(r"<\w+>", VALID)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
texts = st.text(max_size=8) | st.sampled_from(
    ["-1", "1e999", "nan", "99999999999", "1_0", " 7 ", "../x", "&lt;", "&x;", "\u0661", "32.5", "dog", "1"]
)


@st.composite
def annotations(draw: st.DrawFn) -> bytes:
    """A valid file with some of its pieces replaced, removed or doubled."""
    pieces = VALID.replace("<", "\x00<").replace(">", ">\x00").split("\x00")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(pieces) - 1))
        pieces[at : at + draw(st.integers(0, 2))] = draw(st.lists(texts | st.sampled_from(pieces), max_size=2))
    return "".join(pieces).encode("utf-8", "surrogatepass")


@st.composite
def other_values(draw: st.DrawFn) -> bytes:
    """The valid file with other numbers and names in it; most such files can be read."""
    pieces = re.split(r"(?<=>)([0-9]+|cat|dog)(?=<)", VALID)
    for _ in range(draw(st.integers(1, 3))):
        at = 2 * draw(st.integers(0, len(pieces) // 2 - 1)) + 1
        pieces[at] = draw(st.integers(-1, 70).map(str) | st.sampled_from(["cat", "dog", " 7 ", "12.5", "3e1", "+5"]))
    return "".join(pieces).encode()


class RefuseError(Exception):
    """What the independent reader cannot take."""


def only(element: Any, tag: str) -> Any:
    """The one child of that name."""
    found = [e for e in element.childNodes if e.nodeName == tag]
    if len(found) != 1:
        raise RefuseError(f"{len(found)} {tag}")
    return found[0]


def content(element: Any, tag: str) -> str:
    """The text of the child before its first child; comments take no place in it."""
    text = ""
    for node in only(element, tag).childNodes:
        if node.nodeType == node.ELEMENT_NODE:
            break
        text += node.data if node.nodeType in (node.TEXT_NODE, node.CDATA_SECTION_NODE) else ""
    return text.strip()


def number(element: Any, tag: str) -> float:
    text = content(element, tag)
    if not re.fullmatch(NUMBER.pattern.replace("[0-9]", r"\d"), text) or not abs(float(text)) < 1e7:
        raise RefuseError(f"{tag} is {text}")
    return float(text)


def truth(data: bytes) -> tuple[int, int, list[tuple[int, bool | None, list[float]]]]:
    """What an annotation says, as minidom and VOC's documentation have it: width, height, and for each object its
    label, whether it is difficult (None: neither 0 nor 1), and its box. Raises RefuseError where something is unclear.
    """
    try:
        document = minidom.parseString(data)
    except Exception as error:  # of expat and of encodings
        raise RefuseError(error) from None
    root = document.documentElement
    if document.doctype is not None or root.nodeName != "annotation":
        raise RefuseError(root.nodeName)
    width, height = (number(only(root, "size"), key) for key in ("width", "height"))
    if width != int(width) or height != int(height) or min(width, height) < 1:
        raise RefuseError("size")
    objects = []
    for element in root.childNodes:
        if element.nodeName != "object":
            continue
        name = content(element, "name")
        x1, y1, x2, y2 = (number(only(element, "bndbox"), key) for key in ("xmin", "ymin", "xmax", "ymax"))
        if name not in CLASSES or x2 < x1 or y2 < y1 or (x1, y1) == (x2, y2):
            raise RefuseError(name)
        if x1 < 0 or y1 < 0 or x2 > width + 1 or y2 > height + 1:
            raise RefuseError("outside")
        box = [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, width), min(y2, height)]
        if box[2] <= box[0] or box[3] <= box[1]:
            raise RefuseError("beside")
        there = [e for e in element.childNodes if e.nodeName == "difficult"]
        said = content(element, "difficult") if there else "0"
        objects.append((CLASSES.index(name) + 1, {"1": True, "0": False, "": False}.get(said), box))
    return int(width), int(height), objects


def read_annotation(folder: Path, data: bytes) -> Sample | UserError:
    """What comes of a data set with this one annotation."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "Annotations" / "a.xml"
    path.write_bytes(data)
    before = fingerprint(folder)
    found = outcome(lambda: load(folder, ["a"], CLASSES, need_pictures=False)[0][0], str(path), len(data))
    assert fingerprint(folder) == before
    return found


def agree(found: Sample | UserError, data: bytes) -> bool:
    """That a file was read as the independent reader reads it, or refused; whether it was read."""
    if isinstance(found, UserError):
        return False
    width, height, objects = truth(data)
    assert (found.width, found.height) == (width, height)
    assert found.labels.tolist() == [label for label, _, _ in objects]
    assert np.array_equal(found.boxes, np.array([box for _, _, box in objects], np.float32).reshape(-1, 4))
    assert all(said in (None, read) for read, (_, said, _) in zip(found.difficult.tolist(), objects, strict=True))
    return True


@given(data=annotations() | st.binary(max_size=200) | texts.map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_annotation_is_read_rightly_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    agree(read_annotation(tmp_path, data), data)


@given(data=other_values())
def test_an_annotation_of_other_values_is_read_where_it_is_clear(tmp_path: Path, data: bytes) -> None:
    found = read_annotation(tmp_path, data)
    try:
        _, _, objects = truth(data)
    except RefuseError:
        assert isinstance(found, UserError)
        return
    odd = any(said is None for _, said, _ in objects) or not set(
        re.findall(rb">\s*(\S*)\s*</(?:trunc|diff)", data)
    ) <= {
        b"0",
        b"1",
    }
    assert agree(found, data) or odd or all(v <= 1 for _, _, box in objects for v in box)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "<!DOCTYPE a ["
            + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 30))
            + "]><a>&e29;</a>",
            "line 1: a DOCTYPE declaration is not allowed",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "line 1: a DOCTYPE declaration is not allowed",
        ),
        ("<annotation>" + "<a>" * 200_000, "not well-formed"),
        ("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>", "size/width"),
        ("<annotation" + " a" * 100_000 + ">", "not well-formed"),
    ],
    ids=["billion laughs", "external entity", "never closed", "deep", "attributes"],
)
def test_hostile_annotations_are_refused(tmp_path: Path, data: str, said: str) -> None:
    found = read_annotation(tmp_path, data.encode())
    assert isinstance(found, UserError)
    assert said in str(found)


def test_the_work_of_reading_an_annotation_grows_with_its_size_and_no_faster(tmp_path: Path) -> None:
    """In calls, which no other program adds to: twice the objects or tags take twice as many."""
    size = "<size><width>64</width><height>48</height></size>"
    one = "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for pattern in (one.format(1), one.format(30), one.format("x"), one.replace("cat", "cow").format(1), "<a><b/></a>"):
        work = []
        for n in (100, 200, 400):
            data = f"<annotation>{size}{pattern * n}</annotation>".encode()
            work.append(calls(lambda data=data: read_annotation(tmp_path, data)))
        assert work[2] - work[1] < 2.2 * (work[1] - work[0]) + 100, pattern


# ------------------------------------------------------------------------------------------ checkpoints


def sealed(body: bytes) -> bytes:
    """A file whose checksum fits, whatever is in it."""
    return body + checkpoint.MAGIC + hashlib.sha256(body).hexdigest().encode()


WEIGHTS = np.linspace(-1, 1, 50, dtype=np.float32)


def sound() -> bytes:
    buffer = io.BytesIO()
    held = {"step": 3, "best": 0.5, "classes": ["cat"], "config": {}, "model": {"w": torch.from_numpy(WEIGHTS)}}
    torch.save({"format": checkpoint.FORMAT, **held, "optimizer": {"state": {}, "param_groups": []}}, buffer)
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


def stored(body: bytes) -> list[bytes]:
    """The records of numbers of a file of torch.save, as zipfile reads and checks them."""
    with zipfile.ZipFile(io.BytesIO(body)) as file:
        return [file.read(name) for name in file.namelist() if re.search(r"/data/[0-9]+$", name)]


def test_a_sound_checkpoint_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-3.pt"
    path.write_bytes(sealed(SOUND))
    found = outcome(lambda: checkpoint.load(path), str(path))
    assert isinstance(found, dict), found
    assert (found["step"], found["best"], found["classes"], found["config"]) == (3, 0.5, ["cat"], {})
    assert np.array_equal(found["model"]["w"].numpy(), WEIGHTS)
    assert stored(SOUND) == [WEIGHTS.tobytes()]


@pytest.mark.parametrize("at", range(0, len(sealed(SOUND)), 97))
def test_any_changed_byte_of_a_checkpoint_is_noticed(tmp_path: Path, at: int) -> None:
    data = bytearray(sealed(SOUND))
    data[at] ^= 1
    path = tmp_path / "step-3.pt"
    path.write_bytes(data)
    assert isinstance(outcome(lambda: checkpoint.load(path), str(path)), UserError)


@given(data=damaged() | st.binary(max_size=300) | st.binary(max_size=300).map(sealed))
def test_any_checkpoint_is_read_rightly_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    """Where the checksum does not fit, always refused; else nothing but what is stored is read."""
    path = tmp_path / "step-3.pt"
    path.write_bytes(data)
    found = outcome(lambda: checkpoint.load(path), str(path))
    assert path.read_bytes() == data
    if isinstance(found, UserError):
        return
    body = data[: data.rindex(checkpoint.MAGIC)]
    assert data == sealed(body)
    assert found["format"] == checkpoint.FORMAT
    tensors = [value for value in found.get("model", {}).values() if isinstance(value, torch.Tensor)]
    kept = stored(body)
    assert all(any(value.numpy().tobytes() in record for record in kept) for value in tensors)
    if body == SOUND:
        assert [value.numpy().tobytes() for value in tensors] == [WEIGHTS.tobytes()]


# ------------------------------------------------------------------------------------------ configuration


TRAIN = leaves(compose("train", []).__class__)
FEWER = settings(max_examples=settings().max_examples // 4)  # composing takes a fifth of a second
awkward = st.text(max_size=12) | st.sampled_from(
    ["${data.root}", "${oc.env:HOME}", "[", "]", "{a:1}", "'", "\\'", "1e400", "-0"]
)


def kind_of(hint: Any) -> tuple[type, bool, bool]:
    """The type of a key's value or of its elements, whether it is a list, and whether it may be null."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    many = get_origin(kinds[0]) is list
    return (get_args(kinds[0])[0] if many else kinds[0]), many, type(None) in kinds


READ: dict[type, Callable[[str], object]] = {  # each refuses what is not of its type by a KeyError or ValueError
    int: lambda v: {True: int}[re.fullmatch("[+-]?[0-9]+", v) is not None](v),
    float: lambda v: {True: float}[NUMBER.fullmatch(v) is not None](v),
    bool: lambda v: {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[v.lower()],
}


@given(
    name=st.sampled_from(sorted(TRAIN)) | st.text(max_size=10),
    value=awkward | st.sampled_from(["7", "-3", "2.5", ".5e3", "true", "No", "null", "inf", "0x10", "1_0"]),
)
def test_any_argument_is_taken_for_what_it_says_or_refused_by_name(name: str, value: str) -> None:
    """A number or a switch reaches Hydra, and only where it is one; text is the next test's."""
    name, _, value = f"{name}={value}".partition("=")  # a name that was drawn may hold a `=` of its own
    found = outcome(lambda: check_overrides("train", [f"{name}={value}"]), name)
    if name not in TRAIN:
        assert isinstance(found, UserError)
        return
    kind, many, optional = kind_of(TRAIN[name][0])
    if kind is str or (many and value.startswith("[")) or (optional and value in ("", "null")):
        return
    try:
        read = as_written(READ[kind](value))
    except (KeyError, ValueError):
        assert isinstance(found, UserError)
    else:
        read = value if kind is float else read
        assert found == [f"{name}=[{read}]" if many else f"{name}={read}"]


PATHS = sorted(n for n, (hint, _) in TRAIN.items() if kind_of(hint)[:2] == (str, False))


@FEWER
@given(name=st.sampled_from(PATHS), value=awkward)
def test_any_text_arrives_as_it_stands_or_is_refused(name: str, value: str) -> None:
    """But a pair of quotes around it, as shells leave them. `${...}` on the command line is Hydra's."""
    try:
        found = attrgetter(name)(compose("train", [f"{name}={value}"]))
    except UserError as error:
        found = error
    if isinstance(found, UserError):
        assert name in str(found)
        unfit = "${" in value or value in ("", ".", "..", "???") or not value.isprintable() or set(value) & set("/\\")
        assert unfit, "a text that can be a name"
        return
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] in "'\"" and value[0] not in value[1:-1] else value
    if value in ("", "null") and kind_of(TRAIN[name][0])[2]:
        assert found is None
    elif "${" not in value:
        assert found == bare


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | awkward,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def means(found: Any, value: Any, hint: Any) -> bool:
    """Whether a value that was read from YAML is what stands there, of the key's type."""
    kind, many, optional = kind_of(hint)
    if value is None:
        return optional and found is None
    if many and isinstance(value, list):
        return len(found) == len(value) and all(means(f, v, kind) for f, v in zip(found, value, strict=True))
    if many or type(found) is not kind:
        return False
    if kind is float:  # 1e-3 without a point is text to YAML
        return isinstance(value, int | float | str) and not isinstance(value, bool) and found == float(value)
    if kind is str and type(value) is int:  # a folder that is named 2007
        return found == str(value)
    return type(value) is kind and found == value


@FEWER
@given(name=st.sampled_from(sorted(TRAIN)), value=plain)
def test_the_configuration_beside_a_run_is_read_as_it_stands_or_refused(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested(name, value), allow_unicode=True), encoding="utf-8")
    try:
        found = attrgetter(name)(compose("train", [], base=saved_config(tmp_path)))
    except UserError as error:
        found = error
    if isinstance(found, UserError):
        assert name in str(found) or str(tmp_path / "config.yaml") in str(found)
    else:
        assert means(found, value, TRAIN[name][0])


@pytest.mark.parametrize("number", [0.25, 3, 7.0])
@pytest.mark.parametrize("name", ["solver.lr", "model.width", "solver.iterations", "data.short_sides", "data.root"])
def test_numbers_in_the_configuration_beside_a_run_are_of_their_keys_type(
    tmp_path: Path, name: str, number: float
) -> None:
    value = [number] if kind_of(TRAIN[name][0])[1] else number
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested(name, value)))
    fits = kind_of(TRAIN[name][0])[0] is float or type(number) is int
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=re.escape(name)):
        assert means(attrgetter(name)(compose("train", [], base=saved_config(tmp_path))), value, TRAIN[name][0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system ['true']", "config.yaml: the run's configuration cannot be read"),
        ("[1, 2]", "config.yaml"),
        ("a: [", "config.yaml: the run's configuration cannot be read"),
        ("\x00", "config.yaml: the run's configuration cannot be read"),
        ("data: 5", "data: "),
        ("data: {root: {a: 1}}", "data.root: "),
        ("data: {rooot: a}", "data.rooot"),
        ("data: {root: 2.5}", "data.root: "),
        ("model: {batch_norm: 2}", "model.batch_norm: "),
        ("model: {width: .inf}", "model.width"),
        ("model: {width: .nan}", "model.width"),
        ("solver: {iterations: true}", "solver.iterations: "),
        ("", "config.yaml"),
        ("- " * 5000, "config.yaml"),
    ],
)
def test_a_hostile_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with harmless(2_000_000), pytest.raises(UserError, match=re.escape(said)):  # Hydra alone calls half a million
        compose("train", [], base=saved_config(tmp_path))


def test_nothing_in_the_configuration_beside_a_run_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "abracadabra")
    text = "${oc.env:SECRET}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested("data.root", text)))
    assert compose("train", [], base=saved_config(tmp_path)).data.root == text

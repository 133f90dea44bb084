"""Pickles: what numpy and plain Python write is read; whatever could run anything is refused, and has not run."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from limits import in_bounds

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.pickles import load
from fastrcnn.safe_pickle import RefusedError, load_pickle

ARRAYS = {
    "double": np.arange(8.0).reshape(2, 4),
    "uint16": np.array([[0, 1, 65535, 7]], np.uint16),
    "big endian": np.arange(8, dtype=">f4").reshape(2, 4),
    "fortran": np.asfortranarray(np.arange(8, dtype=np.int64).reshape(2, 4)),
    "a view": np.arange(40, dtype=np.float32).reshape(8, 5)[::2, :4],
    "empty": np.zeros((0, 4), np.float32),
    "no axis": np.array(3.5),
}


def dump(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_numbers_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    value = {
        "ids": [1, "000005", 2**40, -1],
        "boxes": list(ARRAYS.values()),
        "scalars": (np.float32(0.5), np.int64(-7), True, None, 2.5),
        "nested": [[], (), {}, {"a": {"b": (1, 2, 3, 4)}}, b"bytes"],
    }
    read = load(dump(tmp_path / "x.pkl", value, protocol))
    assert isinstance(read, dict)
    assert read["ids"] == value["ids"]
    assert read["scalars"] == (0.5, -7, True, None, 2.5)
    assert read["nested"] == value["nested"]
    for array, wanted in zip(read["boxes"], ARRAYS.values(), strict=True):
        assert isinstance(array, np.ndarray)
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


def test_numpy_before_2_and_python_2_are_read(tmp_path: Path) -> None:
    """As Python 2 wrote arrays: the old module's name, bytes as text, here spelled out by hand."""
    raw = struct.pack("<2d", 1.5, -2.0)
    (tmp_path / "old.pkl").write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10" + raw + b"tb."
    )
    read = load(tmp_path / "old.pkl")
    np.testing.assert_array_equal(read, [[1.5, -2.0]])  # type: ignore[arg-type]
    text = "".join(f"\\x{byte:02x}" for byte in raw)  # protocol 0, that of pickle.dump without an argument
    (tmp_path / "older.pkl").write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
        b"(I1\n(I1\nI2\ntp6\ncnumpy\ndtype\np7\n(S'f8'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\n"
        b"tp12\nbI00\nS'" + text.encode() + b"'\np13\ntp14\nb."
    )
    np.testing.assert_array_equal(load(tmp_path / "older.pkl"), [[1.5, -2.0]])  # type: ignore[arg-type]


class Calls:
    """An object whose pickle calls something."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


class Plain:
    def __init__(self) -> None:
        self.x = 1


def reduce_arrays() -> np.ndarray:
    array = np.empty(1, object)
    array[0] = Plain()
    return array


HOSTILE: dict[str, Callable[[Path], object]] = {
    "os.system": lambda mark: Calls(os.system, f"touch '{mark}'"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "getattr": lambda mark: Calls(getattr, Plain(), "x"),
    "nested": lambda mark: {"boxes": [np.zeros((1, 4)), [Calls(os.mkdir, str(mark))]]},
    "in an array": lambda mark: np.array([Calls(os.mkdir, str(mark)), 1], object),
    "in two steps": lambda mark: Calls(Calls(getattr, os, "mkdir"), str(mark)),  # type: ignore[arg-type]
    "partial": lambda mark: __import__("functools").partial(os.mkdir, str(mark)),
    "numpy load": lambda mark: Calls(np.load, str(mark)),
    "numpy memmap": lambda mark: Calls(np.memmap, str(mark), "u1", "w+", 0, (10,)),
    "an object": lambda mark: Plain(),
    "an ordered dictionary": lambda mark: collections.OrderedDict(a=1),
    "a bytes call": lambda mark: Calls(bytes, 10**12),
    "a bytearray call": lambda mark: Calls(bytearray, 10**12),
    "an array call": lambda mark: Calls(np.ndarray, (10**12,)),
    "objects": lambda mark: reduce_arrays(),
    "text array": lambda mark: np.array(["a", "b"]),
    "dates": lambda mark: np.array(["2007-01-01"], "M8[D]"),
    "records": lambda mark: np.zeros(2, [("a", "f4")]),
    "complex": lambda mark: np.zeros(2, complex),
    "tuples as keys": lambda mark: {(1, 2): 3},
    "a frozen set": lambda mark: frozenset([1]),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_data_is_refused_and_does_not_run(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "it ran"
    if name == "in two steps":
        # getattr(os, "mkdir") cannot be pickled: modules have no pickle; so by hand.
        text = f"cbuiltins\ngetattr\n(cos\n__dict__\nS'mkdir'\ntR(S'{mark}'\ntR.".encode()
        (tmp_path / "x.pkl").write_bytes(text)
    else:
        dump(tmp_path / "x.pkl", HOSTILE[name](mark), protocol)
    with pytest.raises(UserError, match=r"x\.pkl: .*cannot be read safely"):
        load(tmp_path / "x.pkl")
    assert not mark.exists()


def test_nothing_is_even_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is named is not imported: importing runs code too."""
    (tmp_path / "x.pkl").write_bytes(b"cantigravity\nfly\n(tR.")
    imported: list[str] = []
    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: imported.append(name) or original(name, *a, **k))
    with pytest.raises(UserError, match=r"it contains a reference to antigravity\.fly"):
        load(tmp_path / "x.pkl")
    assert "antigravity" not in imported


BY_HAND = {
    "an old-style instance": b"(S'touch x'\nios\nsystem\n.",
    "an object instruction": b"(cos\nsystem\nS'touch x'\no.",
    "a persistent id": b"Pid\n.",
    "an extension": b"\x82\x01.",
    "an extension of copyreg": b"ccopyreg\nadd_extension\n(S'os'\nS'system'\nI1\ntR.",
    "a new object of the admitted type": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "a state for a function": b"cnumpy.core.multiarray\n_reconstruct\n}S'x'\nI1\nsb.",
    "a state for a class": b"\x80\x02cnumpy\ndtype\n}b.",
    "a slot state for a function": b"\x80\x02c_codecs\nencode\nN}S'__code__'\nNs\x86b.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a codec that is none": b"c_codecs\nencode\n(V0\nVhex\ntR.",
    "ndarray called": b"cnumpy\nndarray\n((I1000000\nI1000000\nttR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "a dotted module": b"cnumpy.core.multiarray._reconstruct\n__globals__\n.",
    "tuples within tuples as a key": b"}" + b")" + b"2\x86" * 60 + b"Ns.",
    "tuples within tuples in a set": b"\x80\x04\x8f(" + b")" + b"2\x86" * 60 + b"\x91" + b"\x93.",
    "a dtype of tuples within tuples": b"cnumpy\ndtype\n)"
    + b"".join(b"q%ch%c\x86" % (n, n) for n in range(1, 60))
    + b"\x85R(K\x03U\x01<NNNtb.",
    "a name of tuples within tuples": b"\x80\x04)"
    + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
    + b"\x8c\x01a\x93.",
    "a number of 8,000 digits": b"\x80\x02\x8b" + (4000).to_bytes(4, "little") + b"\x7f" * 4000 + b".",
    "nothing on the stack": b"\x80\x02R.",
    "no end": b"\x80\x02",
    "an unknown instruction": b"\x80\x02\xff.",
    "a protocol of the future": b"\x80\x63.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_instructions_by_hand_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(BY_HAND[name])
    with pytest.raises(UserError, match=r"x\.pkl: "):
        load(tmp_path / "x.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


def array_pickle(shape: bytes, data: bytes) -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + b"\x85"
        b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + data
        + b"tb."
    )


BOMBS = {
    "a declared array": array_pickle(b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"U\x08\0\0\0\0\0\0\0\0"),
    "a declared array of nothing": array_pickle(b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"U\x00"),
    "declared bytes": b"\x80\x04\x8e" + (2 * 10**8).to_bytes(8, "little") + b"abc.",
    "a declared byte array": b"\x80\x05\x96" + (2 * 10**8).to_bytes(8, "little") + b"abc.",
    "declared text": b"\x80\x04\x8d" + (2 * 10**8).to_bytes(8, "little") + b"abc.",
    "a declared frame": b"\x80\x04\x95" + (2 * 10**8).to_bytes(8, "little") + b"abc.",
    "a declared whole number": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"abc.",
    "one text copied by every call": b"\x80\x02](c_codecs\nencode\nq\x00X\x10\x27\0\0"
    + b"a" * 10_000
    + b"q\x01X\x06\0\0\0latin1"
    b"q\x02" + b"h\x00h\x01h\x02\x86R" * 1000 + b"e.",
    "a place far out in the memo": b"\x80\x02Kar\xff\xff\xff\x7fj\xff\xff\xff\x7f\x85(lR.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_size_that_the_file_does_not_have_takes_no_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.pkl").write_bytes(BOMBS[name])
    with in_bounds(most_bytes=1_000_000), pytest.raises(UserError, match=r"x\.pkl: "):
        load(tmp_path / "x.pkl")


def test_a_persistent_id_is_given_to_who_knows_it() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("kept", 7) if isinstance(value, Plain) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([Plain(), 1])
    pickle.dump("the next one", buffer)
    buffer.seek(0)
    assert load_pickle(buffer, {}, lambda saved: saved[1]) == [7, 1]
    assert load_pickle(buffer, {}) == "the next one"
    buffer.seek(0)
    with pytest.raises(RefusedError, match="BINPERSID"):
        load_pickle(buffer, {})


def test_every_cut_of_a_pickle_is_answered(tmp_path: Path) -> None:
    whole = pickle.dumps({"ids": ["a"], "boxes": [ARRAYS["double"]]}, 4)
    for n in range(len(whole)):
        (tmp_path / "x.pkl").write_bytes(whole[:n])
        with pytest.raises(UserError, match=r"x\.pkl: "):
            load(tmp_path / "x.pkl")


def test_instance_data_of_mmdetection_is_a_bag_of_arrays(tmp_path: Path) -> None:
    """Pickled by a class of that name, with the set of field names that mmengine keeps."""
    import sys
    import types

    module = types.ModuleType("mmengine.structures.instance_data")
    kind = type("InstanceData", (), {"__module__": module.__name__})
    module.InstanceData = kind  # type: ignore[attr-defined]
    instance = kind()
    instance.__dict__.update(_data_fields={"bboxes"}, bboxes=ARRAYS["double"])
    for protocol in (2, 3, 4, 5):
        names = ["mmengine", "mmengine.structures", module.__name__]
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setitem(sys.modules, name, module)
            buffer = io.BytesIO()
            pickle.dump({"train/1.jpg": instance}, buffer, protocol)
        (tmp_path / "x.pkl").write_bytes(buffer.getvalue())
        read = load(tmp_path / "x.pkl")
        assert isinstance(read, dict)
        fields = read["train/1.jpg"]
        assert isinstance(fields, dict)
        np.testing.assert_array_equal(fields["bboxes"], ARRAYS["double"])  # type: ignore[arg-type]

"""Reads pickles of numbers, text, plain containers and numpy arrays, and nothing else.

A pickle is a program. This reader carries out only the instructions that build data; a class or function that is
asked for must be one of the few below, and even these are stand-ins written here, so that neither numpy nor anything
else is called with what a stranger wrote. An array is made from its own bytes, which the file must hold.

It is Python's own reader in Python and not the one in C, which cannot be kept from hashing tuples of tuples of tuples
(for ever, or until the stack is full), nor from making room for whatever place in the memo a pickle names.
"""

from __future__ import annotations

import math
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastrcnn.errors import UserError

CARRIED_OUT = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT GET BINGET LONG_BINGET
    PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL INST REDUCE
"""
STANDARD: dict[int, Any] = pickle._Unpickler.dispatch  # type: ignore[attr-defined]


class _RefusedError(Exception):
    """Its text says what in the pickle is not admitted."""


class _Object:
    """What a pickle makes first and gives its state afterwards; `value` is what that comes to."""

    value: Any = None

    def __init__(self, *_: object) -> None:
        """Arguments that numpy always gives alike say nothing."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class _DType(_Object):
    """A dtype: a type string, and in the state a byte order. Only numbers of at most eight bytes are admitted."""

    def __init__(self, spec: object = None, *_: object) -> None:
        text = spec.decode("latin1") if isinstance(spec, bytes) else str(spec)
        if len(text) > 3 or text.lstrip("<>=|")[:1] not in tuple("biuf"):
            what = "objects" if text.lstrip("|")[:1] == "O" else "no numbers"
            raise _RefusedError(f"an array of {what} (dtype {text[:20]!r})")
        self.value = np.dtype(text.lstrip("<>=|"))

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 3 or any(state[2:5]) or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("a numpy dtype that is not a plain number")
        self.value = self.value.newbyteorder(state[1])


class _Array(_Object):
    """An array, which numpy's pickles first make empty."""

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise _RefusedError("a numpy array without a proper state")
        shape, dtype, fortran, data = state[-4:]
        self.value = _from_bytes(data, dtype, shape, "F" if fortran else "C")


class _Instances(_Object):
    """mmdetection's InstanceData, a bag of named arrays, of which mmdet 3 makes one an image."""

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _RefusedError("an InstanceData without fields")
        self.value = state


def _from_bytes(data: object, dtype: object, shape: object, order: object = "C") -> np.ndarray:
    """An array over bytes of the pickle; what it declares must be what they are."""
    if not isinstance(dtype, _DType) or isinstance(data, list):
        raise _RefusedError("an array of objects, or without a dtype")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(n) is int and n >= 0 for n in sizes) or len(sizes) > 4 or not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("a numpy array of no proper shape")
    if math.prod(sizes) * dtype.value.itemsize != len(data):
        raise _RefusedError("a numpy array whose shape and bytes disagree")
    return np.frombuffer(data, dtype.value).reshape(sizes, order="F" if order == "F" else "C")


def _encode(text: object, codec: object = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", "iso-8859-1"):
        raise _RefusedError("_codecs.encode of something else than latin1 text")
    return text.encode("latin1")


def _refuse(*_: object) -> Any:
    raise _RefusedError("an instruction or a call that is not for data")


ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _refuse,  # only ever the first argument of _reconstruct
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "mmengine.structures.instance_data.InstanceData": _Instances,
    **{f"{module}.bytes": lambda: b"" for module in ("builtins", "__builtin__")},  # how protocol 2 writes empty ones
    **{f"{module}.set": lambda names=(): names for module in ("builtins", "__builtin__")},  # of fields: never hashed
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": lambda d, b: _from_bytes(b, d, ()).item() for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_bytes for core in ("core", "_core")},
}


class _Reader(pickle._Unpickler):  # its instructions can be taken away one by one
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise _RefusedError(f"{module[:60]}.{name[:60]}")
        return ADMITTED[f"{module}.{name}"]

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(_Instances() if kind is _Instances and arguments == () else _refuse())

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Object):
            raise _RefusedError("the state of an object")
        self.stack[-1].set_state(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        _fill(self.stack[-1], items)

    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(STANDARD, _refuse),
        **{code: STANDARD[code] for code in (getattr(pickle, name)[0] for name in CARRIED_OUT.split())},
        pickle.EMPTY_SET[0]: STANDARD[pickle.EMPTY_LIST[0]],  # a set of names of fields, as a list: never hashed
        pickle.ADDITEMS[0]: STANDARD[pickle.APPENDS[0]],
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


def _fill(target: object, items: list[object]) -> None:
    """Keys are text or numbers alone: to hash a tuple of tuples of tuples may take for ever."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2 or not all(isinstance(k, (str, bytes, int)) for k in keys):
        raise _RefusedError("a dictionary whose keys are neither text nor numbers")
    target.update(zip(keys, items[1::2], strict=True))


def plain(value: object) -> object:
    """A value out of a pickle: the array or the dictionary of fields where a stand-in holds one."""
    return value.value if isinstance(value, _Object) else value


def load_pickle(path: Path) -> object:
    """What the pickle holds: numbers, text, lists, tuples, dictionaries, and arrays, each to be taken by `plain`.

    Text of Python 2 is read as latin1. Arrays are views of the bytes that were read, and cannot be written to.
    Raises UserError, naming what was asked for, for a pickle that wants any other class or function (before any
    such is looked up or run), and for one that is damaged or cut short.
    """
    try:
        # A map gives no more room than the file has bytes, whatever size a pickle declares.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, encoding="latin1").load()  # type: ignore[arg-type]
    except OSError:
        raise
    except _RefusedError as error:
        raise UserError(
            f"{path}: the pickle asks for {error}, which is refused; nothing of it was run. Only numbers, text, "
            "lists, dictionaries and numpy arrays of numbers are read: write the proposals anew as these."
        ) from None
    except Exception as error:  # a damaged pickle leads Python to whatever
        why = "it is cut short" if isinstance(error, EOFError) else f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(f"{path}: not a pickle that can be read ({why}); fetch or write it again.") from None

"""Reads pickles of numbers, text, plain containers and numpy arrays, and nothing else.

A pickle is a program for a machine with a stack and a memo. pickletools takes it apart here, and only the instructions
that build data are carried out: no class or function is looked up, those that numpy's pickles name are known by name,
and an array is made from its own bytes, which the file must hold. Python's own reader cannot be kept from hashing
tuples of tuples of tuples, for ever or until the stack is full, nor from making room for whatever a pickle declares.
"""

from __future__ import annotations

import codecs
import math
import mmap
import pickletools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError

CODES = {instruction.code: instruction for instruction in pickletools.opcodes}
TAKEN = {  # how many things an instruction takes from the stack
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2},
    **dict.fromkeys(("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"), 2),
}
NAMES = {  # of classes and functions -> what they make
    "numpy.ndarray": "class of arrays",  # only ever the first argument of _reconstruct
    "numpy.dtype": "dtype",
    "_codecs.encode": "encoded",  # how protocol 2 writes bytes
    "mmengine.structures.instance_data.InstanceData": "fields",
    **{f"{module}.bytes": "bytes" for module in ("builtins", "__builtin__")},
    **{f"{module}.set": "set" for module in ("builtins", "__builtin__")},
    **{f"numpy.{core}.multiarray._reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "buffer" for core in ("core", "_core")},
}


class _RefusedError(Exception):
    """Its text says what in the pickle is not admitted."""


class _Kind(str):
    """A class or function of NAMES, by what it makes."""


class _Unbuilt:
    """What a pickle makes first and gives its state afterwards: an array, a dtype, or mmdetection's bag of fields."""

    def __init__(self, kind: str, arguments: tuple) -> None:
        self.kind, self.arguments = kind, arguments
        self.places: list[object] = []  # in the memo


def load_pickle(path: Path) -> object:
    """What the pickle holds: numbers, text, lists, tuples, dictionaries, and arrays.

    Text of Python 2 is read as latin1, and an InstanceData of mmdetection as the dictionary of its fields. Arrays are
    views of the bytes that were read, and cannot be written to.
    Raises UserError, naming what was asked for, for a pickle that wants any other class or function, and for one that
    is damaged or cut short.
    """
    try:
        # A map gives no more room than the file has bytes, whatever size a pickle declares.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _run(_instructions(data))
    except OSError:
        raise
    except _RefusedError as error:
        raise UserError(
            f"{path}: the pickle asks for {error}, which is refused; nothing of it was run. Only numbers, text, "
            "lists, dictionaries and numpy arrays of numbers are read: write the proposals anew as these."
        ) from None
    except Exception as error:  # a damaged pickle leads to whatever
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(f"{path}: not a pickle that can be read ({why}); fetch or write it again.") from None


def _instructions(data: Any) -> Iterator[tuple[str, Any]]:
    """Names and arguments, as pickletools.genops gives them, which takes text of Python 2 for ASCII."""
    while code := data.read(1):
        instruction = CODES[code.decode("latin1")]
        if instruction.name == "STRING":
            yield "STRING", codecs.escape_decode(data.readline().strip()[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]
        else:
            yield instruction.name, instruction.arg and instruction.arg.reader(data)


def _run(instructions: Iterable[tuple[str, Any]]) -> object:
    stack: list[Any] = []
    below: list[list[Any]] = []  # what is below each mark
    memo: dict[object, Any] = {}
    for name, argument in instructions:
        items = [stack.pop() for _ in range(TAKEN.get(name, 0))][::-1]
        if name in ("TUPLE", "LIST", "DICT", "APPENDS", "ADDITEMS", "SETITEMS"):  # all above the last mark
            items, stack = stack, below.pop()
        match name:
            case "LONG" | "LONG1" | "LONG4" if argument.bit_length() > 64:
                raise _RefusedError("a whole number of more than 64 bits")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "STRING" | "BINSTRING":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE":
                stack.append(tuple(items))
            case "EMPTY_LIST" | "LIST" | "EMPTY_SET":  # a set of names of fields, as a list: never hashed
                stack.append(items)
            case "EMPTY_DICT" | "DICT":
                stack.append(_fill({}, items))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                _fill(stack[-1], items)
            case "MARK":
                below.append(stack)
                stack = []
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                place = len(memo) if name == "MEMOIZE" else argument
                memo[place] = stack[-1]
                if isinstance(stack[-1], _Unbuilt):
                    stack[-1].places.append(place)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_kind(argument.replace(" ", ".")))  # as pickletools separates module and name
            case "STACK_GLOBAL":
                stack.append(_kind(".".join(items)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_make(name == "REDUCE", *items))
            case "BUILD":
                stack.append(_build(*items))
                memo.update(dict.fromkeys(items[0].places, stack[-1]))
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME" if name == "FRAME" or argument <= 5:
                pass
            case _:
                raise _RefusedError(f"the instruction {name}, which is not for data")
    raise ValueError("it is cut short")


def _fill(target: object, items: list[Any]) -> dict[Any, Any]:
    """The target with new items. Keys are text or numbers alone: to hash tuples of tuples may take for ever."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2 or not all(isinstance(k, (str, bytes, int)) for k in keys):
        raise _RefusedError("a dictionary whose keys are neither text nor numbers")
    target.update(zip(keys, items[1::2], strict=True))
    return target


def _kind(name: str) -> _Kind:
    if name not in NAMES:
        raise _RefusedError(name[:120])
    return _Kind(NAMES[name])


def _make(called: bool, kind: object, arguments: object) -> Any:
    """What a call of a function, or else a new object of a class, comes to."""
    if not isinstance(kind, _Kind) or not isinstance(arguments, tuple) or (kind != "fields" and not called):
        raise _RefusedError("an object, or a call of something else than a function")
    match kind, *arguments:
        case "array" | "dtype" | "fields", *_:
            return _Unbuilt(kind, arguments)
        case "buffer", data, dtype, shape, order:
            return _array(data, dtype, shape, order)
        case "scalar", dtype, data:
            return _array(data, dtype, ()).item()
        case ("bytes",):
            return b""
        case "set", list(names):
            return names
        case "encoded", str(text), "latin1" | "latin-1" | "iso-8859-1":
            return text.encode("latin1")
    raise _RefusedError(f"a call for {kind} with other arguments than Python or numpy write")


def _build(unbuilt: object, state: Any) -> Any:
    """An array, dtype or dictionary of fields, once its state is there."""
    if not isinstance(unbuilt, _Unbuilt) or not isinstance(state, (dict if unbuilt.kind == "fields" else tuple)):
        raise _RefusedError("the state of an object")
    if unbuilt.kind == "fields":
        return state
    if unbuilt.kind == "array":
        shape, dtype, fortran, data = state[-4:]
        return _array(data, dtype, shape, "F" if fortran else "C")
    spec = unbuilt.arguments[0]
    text = spec.decode("latin1") if isinstance(spec, bytes) else spec
    if not isinstance(text, str):  # nor shown: tuples of tuples would make a text without end
        raise _RefusedError("a dtype that is no text")
    if len(text) > 3 or text[:1] not in tuple("biuf") or any(state[2:5]) or state[1] not in ("<", ">", "|", "="):
        what = "objects" if text[:1] == "O" else "anything but plain numbers"
        raise _RefusedError(f"an array of {what} (dtype {text[:20]!r})")
    return np.dtype(text).newbyteorder(state[1])


def _array(data: object, dtype: object, shape: object, order: object = "C") -> np.ndarray:
    """An array over bytes of the pickle; what it declares must be what they are."""
    if not isinstance(dtype, np.dtype) or isinstance(data, list):
        raise _RefusedError("an array of objects, or without a dtype")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(n) is int and n >= 0 for n in sizes) or len(sizes) > 4 or not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("a numpy array of no proper shape")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise _RefusedError("a numpy array whose shape and bytes disagree")
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if order == "F" else "C")

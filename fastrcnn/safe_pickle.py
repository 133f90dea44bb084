"""Read data from untrusted pickles without running code in them.

A pickle is a program for a stack machine with a memo. This module parses it with pickletools and executes only opcodes
that create data. It does not import any class or function. Instead, the caller passes replacements for the classes and
functions that are allowed. A restricted pickle.Unpickler is not sufficient, because a pickle can make it hash deeply
nested tuples, which can take exponential time or overflow the stack, and can make it allocate any amount of memory.
"""

from __future__ import annotations

import codecs
import contextlib
import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from fastrcnn.errors import UserError

CODES = {instruction.code: instruction for instruction in pickletools.opcodes}
MARKED = ("TUPLE", "LIST", "DICT", "APPENDS", "ADDITEMS", "SETITEMS")  # opcodes that pop all items above the last mark
TAKEN = {  # number of items that other opcodes pop
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BINPERSID": 1},
    **dict.fromkeys(("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"), 2),
}
MOST_BITS = 128  # limit for integers; the magic number of torch's older files has 77 bits


class RefusedError(Exception):
    """The pickle contains something that is not allowed. The message names it, for example "a compressed record"."""


class Unbuilt:
    """A placeholder for an object whose state follows later in the pickle. build: converts the state to the object."""

    def __init__(self, build: Callable[[Any], object] = lambda state: state) -> None:
        self.build = build
        self.value: object = self


@contextlib.contextmanager
def as_user_error(path: Path, instead: str) -> Iterator[None]:
    """Raise UserError for errors that a malicious or damaged file causes. instead: advice that ends the message."""
    try:
        yield
    except RefusedError as error:
        raise UserError(
            f"{path}: cannot be read safely, because it contains {error}. No code in the file was run. {instead}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can cause any exception
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(f"{path}: cannot be read safely ({why}). {instead}") from None


def load_pickle(file: Any, admitted: Mapping[str, object], find_stored: Callable[[Any], object] | None = None) -> Any:
    """Read the next pickle in a file, and return its data.

    The data can consist of numbers, booleans, None, text, bytes, lists, tuples, dictionaries, and results of `admitted`
    and `find_stored`. Python 2 strings are decoded as latin1, and sets are returned as lists.

    file: an mmap or a BytesIO. Reads from these cannot allocate more memory than the file has bytes.
    admitted: maps the full names of the allowed classes and functions to their replacements: a function to call
        instead, `Unbuilt` for a class whose objects are replaced by their state, or a value to pass to such functions.
    find_stored: a function that takes a persistent id and returns its object. If None, persistent ids are refused.
    Raises RefusedError for any other content, and any kind of exception for a damaged pickle.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack below each mark
    memo: dict[int, Any] = {}
    handed = 0
    for name, argument in _instructions(file):
        if name in MARKED:
            items, stack = stack, below.pop()
        else:
            items = [stack.pop() for _ in range(TAKEN.get(name, 0))][::-1]
        match name:
            case "STOP":
                return stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                found = memo[argument]
                stack.append(found.value if isinstance(found, Unbuilt) else found)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                list.extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                fill(stack[-1], items)
            case "BINPERSID" if find_stored:
                stack.append(find_stored(*items))
            case "REDUCE" | "NEWOBJ" | "BUILD":
                handed += _size(items[1])
                if handed > file.tell():  # otherwise, many calls could each copy the same large text from the memo
                    raise RefusedError("calls whose arguments are larger than the file")
                stack.append(_call(name, *items))
            case "PROTO" | "FRAME" if name == "FRAME" or argument <= 5:
                pass
            case _:
                stack.append(_value(name, argument, items, admitted))
    raise ValueError("the pickle is truncated")


def fill(target: object, items: list[Any]) -> dict[Any, Any]:
    """Add `items`, alternating keys and values, to the dictionary `target`, and return it.

    Raises RefusedError if `target` is not a dictionary, or for keys other than text, bytes and integers from 0 to
    2**31 - 1, because hashing other keys can take exponential time.
    """
    keys = items[::2]
    if type(target) is not dict or len(items) % 2:
        raise RefusedError("dictionary items for an object that is not a dictionary")
    if not all(type(key) in (str, bytes) or (type(key) is int and 0 <= key < 2**31) for key in keys):
        raise RefusedError("a dictionary with keys other than text, bytes and small integers")
    target.update(zip(keys, items[1::2], strict=True))
    return target


def _instructions(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and arguments of opcodes as pickletools.genops does, but decode Python 2 strings as latin1."""
    while code := file.read(1):
        instruction = CODES[code.decode("latin1")]
        if instruction.name == "STRING":
            yield "STRING", codecs.escape_decode(file.readline().strip()[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]
        else:
            yield instruction.name, instruction.arg and instruction.arg.reader(file)


def _value(name: str, argument: Any, items: list[Any], admitted: Mapping[str, object]) -> object:
    """Return the value that the opcode `name` creates from its argument or from the items that it pops.

    Raises RefusedError for an opcode or value that is not allowed. admitted: allowed names, see load_pickle.
    """
    match name:
        case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" if argument.bit_length() > MOST_BITS:
            raise RefusedError(f"an integer of more than {MOST_BITS} bits")
        case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
            return argument
        case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "STRING" | "BINSTRING":
            return argument
        case "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
            return argument
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            return {"NEWTRUE": True, "NEWFALSE": False}.get(name)
        case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE":
            return tuple(items)
        case "EMPTY_LIST" | "LIST" | "EMPTY_SET":
            return items
        case "EMPTY_DICT" | "DICT":
            return fill({}, items)
        case "GLOBAL" | "STACK_GLOBAL":
            full = ".".join(items or argument.split(" "))  # pickletools separates module and name with a space
            if full not in admitted:
                raise RefusedError(f"a reference to {full[:120]}, which is not allowed")
            return admitted[full]
    raise RefusedError(f"the opcode {name}, which plain data does not need")


def _size(handed: Any) -> int:
    """Return the number of arguments in `handed`, plus the lengths of those that are text, bytes, lists or tuples."""
    return len(handed) + sum(len(part) for part in handed if isinstance(part, (str, bytes, bytearray, list, tuple)))


def _call(name: str, target: object, handed: Any) -> object:
    """Execute REDUCE (call a function), NEWOBJ (create an object) or BUILD (set its state), and return the result."""
    if name == "REDUCE" and isinstance(target, FunctionType) and isinstance(handed, tuple):
        try:
            return target(*handed)
        except TypeError:
            raise RefusedError(
                "a function call with arguments that pickles written by Python, NumPy or torch never contain"
            ) from None
    if name == "NEWOBJ" and target is Unbuilt:
        return Unbuilt()
    if name == "BUILD" and isinstance(target, Unbuilt):
        target.value = target.build(handed)
        return target.value
    if name == "BUILD" and type(target) is dict:
        return target  # an OrderedDict; its state has the version numbers of torch modules
    what = {"REDUCE": "call of something that is not a function", "NEWOBJ": "new object", "BUILD": "state of an object"}
    raise RefusedError(f"a {what[name]}, which is not allowed")

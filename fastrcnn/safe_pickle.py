"""Reads pickles of data from files of strangers, and runs nothing in them.

A pickle is a program for a machine with a stack and a memo. pickletools takes it apart here, and only the instructions
that build data are carried out. No class or function is looked up: the caller gives what replaces those that it admits.
Python's own reader cannot be kept from hashing tuples of tuples of tuples, for ever or until the stack is full, nor
from allocating whatever size a pickle declares.
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
MARKED = ("TUPLE", "LIST", "DICT", "APPENDS", "ADDITEMS", "SETITEMS")  # take all above the last mark
TAKEN = {  # how many values the other instructions take from the stack
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BINPERSID": 1},
    **dict.fromkeys(("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"), 2),
}
MOST_BITS = 128  # of a whole number; that at the beginning of torch's older files has 77


class RefusedError(Exception):
    """Its text says what in the file is not admitted."""


class Unbuilt:
    """What a pickle makes first and gives its state afterwards. build: from the state to the value."""

    def __init__(self, build: Callable[[Any], object] = lambda state: state) -> None:
        self.build = build
        self.value: object = self


@contextlib.contextmanager
def as_user_error(path: Path, instead: str) -> Iterator[None]:
    """Raises UserError for whatever a hostile or damaged file leads to. instead: what to do about it."""
    try:
        yield
    except RefusedError as error:
        raise UserError(
            f"{path}: cannot be read safely: it has {error}, which is refused; nothing in it was run. {instead}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # damage leads to whatever
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(f"{path}: cannot be read safely ({why}). {instead}") from None


def load_pickle(file: Any, admitted: Mapping[str, object], find_stored: Callable[[Any], object] | None = None) -> Any:
    """The content of the next pickle in a file: numbers, text, bytes, lists, tuples, dictionaries, and what `admitted`
    makes. Text of Python 2 is read as latin1, a set as a list.

    file: one that gives no more memory than it has bytes: mmap or BytesIO.
    admitted: by the full name of a class or function, the function to call in its place, `Unbuilt` for a class whose
        objects become their state, or any other value to hand to such functions.
    find_stored: gives what a persistent id refers to.
    Raises RefusedError for what asks for anything else, and any other exception for what is damaged.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what is below each mark
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
                if handed > file.tell():  # one text in the memo could be copied by every call
                    raise RefusedError("calls that take more than the file holds")
                stack.append(_call(name, *items))
            case "PROTO" | "FRAME" if name == "FRAME" or argument <= 5:
                pass
            case _:
                stack.append(_value(name, argument, items, admitted))
    raise ValueError("it is cut short")


def fill(target: object, items: list[Any]) -> dict[Any, Any]:
    """The target with new keys and values. Other keys could be chosen so that hashing them takes for ever."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2:
        raise RefusedError("items of something other than a dictionary")
    if not all(type(key) in (str, bytes) or (type(key) is int and 0 <= key < 2**31) for key in keys):
        raise RefusedError("a dictionary whose keys are neither text nor small whole numbers")
    target.update(zip(keys, items[1::2], strict=True))
    return target


def _instructions(file: Any) -> Iterator[tuple[str, Any]]:
    """Names and arguments, as pickletools.genops gives them, which takes text of Python 2 for ASCII."""
    while code := file.read(1):
        instruction = CODES[code.decode("latin1")]
        if instruction.name == "STRING":
            yield "STRING", codecs.escape_decode(file.readline().strip()[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]
        else:
            yield instruction.name, instruction.arg and instruction.arg.reader(file)


def _value(name: str, argument: Any, items: list[Any], admitted: Mapping[str, object]) -> object:
    """What an instruction makes out of its argument, or out of the items that it takes from the stack."""
    match name:
        case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" if argument.bit_length() > MOST_BITS:
            raise RefusedError(f"a whole number of more than {MOST_BITS} bits")
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
            full = ".".join(items or argument.split(" "))  # as pickletools separates module and name
            if full not in admitted:
                raise RefusedError(full[:120])
            return admitted[full]
    raise RefusedError(f"the instruction {name}, which is not for data")


def _size(handed: Any) -> int:
    """How much a call is given: arguments and what they hold."""
    return len(handed) + sum(len(part) for part in handed if isinstance(part, (str, bytes, bytearray, list, tuple)))


def _call(name: str, target: object, handed: Any) -> object:
    """The result of a function, a new object, or an object with the state that it is handed."""
    if name == "REDUCE" and isinstance(target, FunctionType) and isinstance(handed, tuple):
        try:
            return target(*handed)
        except TypeError:
            raise RefusedError("a call with other arguments than Python, numpy or torch write") from None
    if name == "NEWOBJ" and target is Unbuilt:
        return Unbuilt()
    if name == "BUILD" and isinstance(target, Unbuilt):
        target.value = target.build(handed)
        return target.value
    if name == "BUILD" and type(target) is dict:
        return target  # an OrderedDict, whose state is torch's version numbers of modules
    raise RefusedError("an object, the state of one, or a call of something other than a function")

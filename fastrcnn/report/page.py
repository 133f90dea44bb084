"""HTML pages from the templates beside this file. Each is one file that needs nothing else: style, scripts and images
are inside. Values are escaped (autoescape), so names of classes, files and images stay text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")
STYLE = TEMPLATES / "page.css"


def render(template: str, **values: Any) -> str:
    """The page of templates/`template` with `values`. A name in the template that has no value is an error."""
    return ENVIRONMENT.get_template(template).render(values)


def jpeg_source(jpeg: bytes) -> str:
    """A JPEG file as the source of an <img>."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def fraction(value: float | None, digits: int = 3) -> str:
    """A fraction as text; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"jpeg_source": jpeg_source, "fraction": fraction}
# `tojson` writes `<` as an escape, so that no text in the data can end its script element.
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


def document(title: str, parts: Iterable[str], script: str = "", data: Any = None) -> str:
    """A whole page of HTML parts.

    script: JavaScript to run at its end. data: what it finds as JSON in the element `data`; no text in there can end
    the element, as `<` is written as an escape.
    """
    tail = ""
    if data is not None:
        content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        tail += f"\n<script type='application/json' id='data'>{content}</script>"
    if script:
        tail += f"\n<script>\n{script}</script>"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + f"{tail}\n</body></html>\n"
    )


def tiles(values: Iterable[tuple[object, str]]) -> str:
    """Large figures with their names."""
    shown = "".join(f"<div class=tile><b>{escape(str(value))}</b>{escape(name)}</div>" for value, name in values)
    return f"<div class='tiles'>{shown}</div>"


def text_cell(text: str, kind: str = "") -> str:
    """A cell with text."""
    return f"<td class='{kind}'>{escape(text)}</td>" if kind else f"<td>{escape(text)}</td>"


def name_cell(text: str, explained: str = "") -> str:
    """The cell that names its row, with a word about it."""
    small = f"<small>{escape(explained)}</small>" if explained else ""
    return f"<th scope='row' class='name'>{escape(text)}{small}</th>"


def number_cell(value: object, extra: bool = False) -> str:
    """A cell with a number; `extra` ones are not shown on narrow screens."""
    shown = f"{value:,}" if isinstance(value, int) else escape(str(value))
    return f"<td class='number{' extra' if extra else ''}'>{shown}</td>"


def decimal_cell(value: float | None, digits: int = 3) -> str:
    """A cell with a fraction, or with a dash where there is none."""
    return f"<td class='number'>{'–' if value is None else f'{value:.{digits}f}'}</td>"


def heading(text: str, kind: str = "") -> str:
    """A heading of a column."""
    return f"<th scope='col' class='{kind}'>{escape(text)}</th>"


def table(head: Iterable[str], rows: Iterable[Sequence[str]], identity: str = "") -> str:
    """A table of HTML cells, which scrolls by itself where it is too wide. identity: its id."""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    named = f" id='{identity}'" if identity else ""
    return (
        f"<div class='scroll'><table{named}><thead><tr>{''.join(head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def headings(*columns: str) -> list[str]:
    """Headings of a column of names and of columns of numbers."""
    return [heading(column, "number" if i else "") for i, column in enumerate(columns)]


def sortable(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    identity: str = "",
    marks: Sequence[int] | None = None,
) -> str:
    """A table whose headings are buttons that sort its rows (page.js). The first column is text, the others numbers.

    identity: the table's id. marks: numbers by which a script knows the rows, as data-row.
    """
    heads = "".join(
        f"<th scope='col' aria-sort='none' class='{'number' if i else 'name'}'>"
        f"<button type='button'>{escape(title)}<span class='arrow' aria-hidden='true'></span></button></th>"
        for i, title in enumerate(columns)
    )
    body = "".join(
        f"<tr{f' data-row={marks[i]}' if marks is not None else ''}>{''.join(row)}</tr>" for i, row in enumerate(rows)
    )
    named = f" id='{identity}'" if identity else ""
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(caption)}'><table class='sortable'{named}>"
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(title: str, content: str) -> str:
    """Plain text, as of a file, that opens with a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(content)}</pre></details>"

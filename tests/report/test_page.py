"""The frame of pages: values stay text, data cannot end its script, and a forgotten value is an error."""

from __future__ import annotations

import json
import re

import pytest
from jinja2 import UndefinedError

from fastrcnn.report.page import ENVIRONMENT, render

HOSTILE = "</script><script>alert('1')</script>\"&<!--"


def from_text(text: str, **values: object) -> str:
    return ENVIRONMENT.from_string("{% from 'macros.html' import table, sortable, tiles, number_cell %}" + text).render(
        values
    )


def test_a_page_has_its_style_and_its_title_as_text() -> None:
    html = render("page.html", title=HOSTILE)
    assert html.startswith("<!doctype html>\n<html lang='en'>")
    assert "--ground: #fff" in html
    assert "<script" not in html
    assert "&lt;/script&gt;" in html


def test_data_is_json_that_cannot_end_its_element() -> None:
    html = from_text("<script>{{ data | tojson }}</script>", data={HOSTILE: [HOSTILE, 1.5, None]})
    assert html.count("<") == 2
    assert json.loads(html[len("<script>") : -len("</script>")]) == {HOSTILE: [HOSTILE, 1.5, None]}
    with pytest.raises(ValueError):
        from_text("{{ data | tojson }}", data=float("nan"))


def test_a_value_that_is_forgotten_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("page.html")


def test_numbers() -> None:
    assert from_text("{{ v | fraction }}", v=None) == "–"
    assert from_text("{{ v | fraction }} {{ v | fraction(1) }}", v=0.12345) == "0.123 0.1"
    assert from_text("{{ number_cell(v) }}", v=1234567) == "<td class='number'>1,234,567</td>"
    assert from_text("{{ number_cell(v, extra=true) }}", v="<") == "<td class='number extra'>&lt;</td>"
    assert from_text("{{ v | jpeg_source }}", v=b"\xff\xd8") == "data:image/jpeg;base64,/9g="


def test_tables_and_tiles_escape_what_they_are_given() -> None:
    text = "{% call table([h, h], id='x') %}<tr><td>1</td></tr>{% endcall %}{{ tiles([(h, h)]) }}"
    html = from_text(text + "{% call sortable(h, [h]) %}{% endcall %}", h=HOSTILE)
    assert "<td>1</td>" in html
    assert set(re.findall(r"</?(\w+)", html)) <= {"div", "table", "thead", "tbody", "tr", "td", "th", "caption", "b",
                                                  "button", "span"}  # fmt: skip
    for attribute in re.findall(r"aria-label='([^']*)'", html):
        assert attribute.startswith("&lt;/script&gt;")

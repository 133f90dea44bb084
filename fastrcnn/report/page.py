"""HTML pages from the templates beside this file. Each is one file that needs nothing else: style, scripts and images
are inside. Values are escaped (autoescape), so names of classes, files and images stay text.
"""

from __future__ import annotations

import base64
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


def thousands(value: int) -> str:
    """A number with commas."""
    return f"{value:,}"


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
ENVIRONMENT.filters |= {"jpeg_source": jpeg_source, "thousands": thousands, "fraction": fraction}
# `tojson` writes `<` as an escape, so that no text in the data can end its script element.
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}

"""The gallery of mistakes as HTML: a cut of the picture each, boxes drawn over it as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastrcnn.report.diagnosis import FALSE_KINDS, MISSED_KINDS
from fastrcnn.report.gallery import Case
from fastrcnn.report.page import jpeg_source

PARTS = {  # style of a box, and its name in the key
    "detection": ("", "detection"),
    "object": ("object", "object of that class"),
    "other object": ("other", "object of another class"),
    "better detection": ("better", "detection that counts"),
}


def gallery(cases: Sequence[Case], names: Sequence[str]) -> str:
    """The section. names: the classes that were evaluated."""
    if not cases:
        return "<h2>Mistakes to look at</h2><p>There is none.</p>"
    kinds = [k for k in (*FALSE_KINDS, *(f"missed: {m}" for m in MISSED_KINDS)) if any(_kind(c) == k for c in cases)]
    present = [name for name in names if any(c.name == name for c in cases)]
    unread = [c.problem for c in cases if c.problem]
    problem = (
        f"<p>{len(set(unread))} picture(s) could not be read, so that boxes are on an empty ground: "
        f"{escape(unread[0])}</p>"
        if unread
        else ""
    )
    return (
        "<h2>Mistakes to look at</h2><p class='soft'>The false detections of highest score and the largest missed "
        "objects, of every class and kind in turn.</p>"
        f"{problem}<p class='key'>{''.join(_key(part) for part in PARTS)}</p>"
        f"<div class='controls'>{_select('case-class', 'Class', 'all classes', present)}"
        f"{_select('case-kind', 'Kind', 'all kinds', kinds)}"
        f"<span id='count' role='status'>{len(cases)} shown</span></div>"
        f"<div class='cases'>{''.join(_figure(c) for c in cases)}</div>"
        "<p><button type='button' class='more' id='more' hidden></button></p>"
    )


def _kind(case: Case) -> str:
    return f"missed: {case.kind}" if case.missed else case.kind


def _select(identity: str, label: str, everything: str, values: Sequence[str]) -> str:
    options = "".join(f"<option value='{escape(v)}'>{escape(v)}</option>" for v in values)
    return f"<label>{label} <select id='{identity}'><option value=''>{everything}</option>{options}</select></label>"


def _key(part: str) -> str:
    style, name = PARTS[part]
    box = "x='3' y='3' width='34' height='10'"
    return (
        f"<span><svg viewBox='0 0 40 16' aria-hidden='true'><rect class='shade' {box}/>"
        f"<rect class='box {style}' {box}/></svg> {name}</span> "
    )


def _figure(case: Case) -> str:
    why = case.kind + (f" ({case.other})" if case.other else "")
    if case.missed:
        caption, spoken = f"missed <b>{escape(case.name)}</b>", f"Missed {case.name}"
    else:
        caption, spoken = f"<b>{escape(case.name)}</b> {case.score:.2f}", f"Detection of {case.name}, {case.score:.2f}"
        why += f", IoU {case.overlap:.2f}" if case.overlap else ""
    spoken += f": {why}, in {case.image_id}"
    image = ""
    if case.jpeg is not None:
        size = f"width='{case.width:g}' height='{case.height:g}'"
        image = f"<image {size} preserveAspectRatio='none' href='{jpeg_source(case.jpeg)}'/>"
    boxes = "".join(_rect("shade", box) + _rect(f"box {PARTS[part][0]}", box) for part, box in reversed(case.boxes))
    return (
        f"<figure data-class='{escape(case.name)}' data-kind='{escape(_kind(case))}'>"
        f"<svg viewBox='0 0 {case.width:g} {case.height:g}' role='img' aria-label='{escape(spoken)}'>"
        f"{image}{boxes}</svg><figcaption>{caption}: {escape(why)}<br>{escape(case.image_id)}</figcaption></figure>"
    )


def _rect(style: str, box: tuple[float, float, float, float]) -> str:
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1, 0.0), max(y2 - y1, 0.0)  # boxes of saved detections may be inverted
    return f"<rect class='{style}' x='{x1:.1f}' y='{y1:.1f}' width='{width:.1f}' height='{height:.1f}'/>"

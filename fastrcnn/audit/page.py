"""The report on a data set as one HTML page that needs nothing else: no scripts, no fonts, pictures within.

Everything that comes from the user's files passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastrcnn.audit.report import Range, Recall, Report
from fastrcnn.audit.text import percent, verdict
from fastrcnn.data.annotations.problems import Problem, by_kind
from fastrcnn.report.page import document, heading, jpeg_source, number_cell, table, text_cell, tiles

MOST = 200  # problems of a kind that are listed; report.json has them all
FEW = 20  # errors of a kind that are shown without a click


def page(report: Report, pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """The page; `pictures` are captions and JPEG files, of the data set with its truth drawn in."""
    body = [
        f"<h1>{escape(report.name)}</h1><p class='soft'>{escape(report.root)}</p>",
        f"<p class='verdict {'bad' if report.errors else 'good'}'>{escape(verdict(report))}</p>",
        _summary(report),
        _problems(report.root, "Errors", report.errors, "Training refuses these, or leaves them out if told to.", True),
        _problems(report.root, "Notes", report.notes, "Worth knowing; nothing here stops a training.", False),
        _pictures(pictures),
        _splits(report),
        _classes(report),
        _sizes(report),
        _proposals(report),
        _sampling(report),
    ]
    return document(f"{report.name}: data set report", body)


def _summary(report: Report) -> str:
    values: list[tuple[object, str]] = [
        (f"{sum(s.images for s in report.splits):,}", "images"),
        (f"{sum(s.objects for s in report.splits):,}", "objects"),
        (len(report.classes), "classes"),
    ]
    if report.proposals:
        values.append((f"{report.proposals.mean:,.0f}", "proposals a picture"))
        values.append((percent(report.proposals.all.at_50), "objects found at IoU .5"))
    return tiles(values)


def _below(file: str, root: str) -> str:
    """The path as it continues after the data set's folder, where it is in there."""
    return file[len(root) :].lstrip("/\\") or file if file.startswith(root) else file


def _problems(root: str, title: str, problems: Sequence[Problem], what: str, opened: bool) -> str:
    if not problems:
        return ""
    parts = [f"<h2>{title} ({len(problems):,})</h2><p class='soft'>{what}</p>"]
    for group in by_kind(problems).values():
        numbers = any(p.object or p.line for p in group)
        rows = []
        for p in group[:MOST]:
            place = f"line {p.line}" if p.line else f"{p.object} {p.name or ''}" if p.object else ""
            rows.append([text_cell(_below(p.file, root)), *([text_cell(place)] if numbers else []), text_cell(p.what)])
        shown = " open" if opened and len(group) <= FEW else ""
        head = [heading(h) for h in ("file", *(["object or line"] if numbers else []), "what")]
        more = f"<p class='soft'>and {len(group) - MOST:,} more, in report.json</p>" if len(group) > MOST else ""
        parts.append(
            f"<details{shown}><summary>{escape(group[0].title)} ({len(group):,})</summary>"
            f"<p><b>To do:</b> {escape(group[0].mend)}</p>{table(head, rows)}{more}</details>"
        )
    return "".join(parts)


def _pictures(pictures: Sequence[tuple[str, bytes]]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f"<figure><img alt='{escape(caption)}' src='{jpeg_source(jpeg)}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, jpeg in pictures
    )
    return (
        "<h2>Pictures with their truth</h2><p class='soft'>Boxes that are shifted, turned or swapped here are so in "
        f"the annotations, or follow another convention.</p><div class='pictures'>{figures}</div>"
    )


def _splits(report: Report) -> str:
    names, extra = ("images", "objects", "unusable"), ("without objects", "difficult", "truncated")
    rows = [
        [
            text_cell(s.name, "name"),
            text_cell(s.role),
            *(number_cell(n) for n in (s.images, s.objects, s.unreadable)),
            *(number_cell(n, extra=True) for n in (s.negatives, s.difficult, s.truncated)),
        ]
        for s in report.splits
    ]
    head = [heading("list"), heading("for"), *(heading(n, "number") for n in names)]
    head += [heading(n, "number extra") for n in extra]
    return f"<h2>Lists of pictures</h2>{table(head, rows)}"


def _classes(report: Report) -> str:
    if not report.classes:
        return ""
    totals = {name: sum(s.classes[name].objects for s in report.splits) for name in report.classes}
    most = max([1, *totals.values()])
    rows = []
    for name in sorted(report.classes, key=lambda n: -totals[n]):
        train = sum(s.classes[name].objects for s in report.splits if s.role == "train")
        images = sum(s.classes[name].images for s in report.splits)
        difficult = sum(s.classes[name].difficult for s in report.splits)
        cells = [*(number_cell(n) for n in (train, totals[name] - train))]
        cells += [number_cell(n, extra=True) for n in (difficult, images)]
        rows.append([text_cell(name, "name"), *cells, _bars(totals[name] / most, train / most)])
    head = [
        heading("class"),
        *(heading(n, "number") for n in ("train", "test")),
        *(heading(n, "number extra") for n in ("difficult", "images")),
        heading("objects"),
    ]
    return f"<h2>Objects of each class</h2><p class='soft'>Dark: to train on; light: to test on.</p>{table(head, rows)}"


def _sizes(report: Report) -> str:
    p, b = report.pictures, report.boxes
    ranges = [
        ("picture width", p.width),
        ("picture height", p.height),
        ("picture width / height", p.aspect),
        ("box width", b.width),
        ("box height", b.height),
        ("box width / height", b.aspect),
    ]
    rows = [[text_cell(name), *(number_cell(v) for v in _values(values))] for name, values in ranges]
    total = max(1, sum(b.sizes.values()))
    meaning = {"small": "below 32 x 32 pixels", "medium": "below 96 x 96", "large": "the rest"}
    sizes = [
        [
            text_cell(f"{name}, {meaning[name]}", "name"),
            number_cell(n),
            number_cell(percent(n / total)),
            _bars(n / total),
        ]
        for name, n in b.sizes.items()
    ]
    cells = "".join(
        f"<p>At a short side of {escape(side)} pixels in training, <b>{n:,}</b> of {sum(b.sizes.values()):,} boxes are "
        "narrower or lower than 16 pixels, one cell of conv5_3.</p>"
        for side, n in b.below_cell.items()
    )
    stored = ", ".join(f"{n:,} {escape(colour)}" for colour, n in p.colours.items())
    turned = f"; {p.turned:,} with an EXIF rotation" if p.turned else ""
    head = [heading("pixels"), *(heading(n, "number") for n in ("least", "median", "most"))]
    columns = [heading("boxes"), heading("number", "number"), heading("share", "number"), heading("")]
    return (
        f"<h2>Sizes</h2><p class='soft'>Pictures as stored: {stored or 'none'}{turned}.</p>{table(head, rows)}"
        f"<h3>Boxes by area</h3>{table(columns, sizes)}{cells}"
    )


def _proposals(report: Report) -> str:
    found = report.proposals
    if found is None:
        return "<h2>Proposals</h2><p>None yet. <code>fastrcnn propose</code> makes them.</p>"
    groups = [
        ("all", {"all": found.all, **found.splits}),
        ("size", found.sizes),
        ("class", dict(sorted(found.classes.items(), key=lambda item: item[1].at_50 or 0))),
    ]
    parts = [
        f"<h2>Proposals</h2><p>{found.images:,} pictures with {found.mean:,.0f} boxes on average ({found.fewest:,} to "
        f"{found.most:,}). {found.untouched:,} object(s) are touched by none.</p><p class='soft'>The share of objects, "
        "difficult ones left out, that a proposal overlaps: light at IoU .5, dark at .7. What has no proposal cannot "
        f"be found.</p><p class='soft'>{escape(', '.join(found.stores))}</p>"
    ]
    for title, recalls in groups:
        head = [
            heading(title),
            heading("objects", "number extra"),
            *(heading(n, "number") for n in ("at .5", "at .7")),
            heading(""),
        ]
        parts.append(table(head, [_recall_row(name, recall) for name, recall in recalls.items()]))
    return "<p></p>".join(parts)


def _recall_row(name: str, recall: Recall) -> list[str]:
    cells = [
        number_cell(recall.objects, extra=True),
        number_cell(percent(recall.at_50)),
        number_cell(percent(recall.at_70)),
    ]
    return [text_cell(name, "name"), *cells, _bars(recall.at_50 or 0, recall.at_70 or 0)]


def _sampling(report: Report) -> str:
    s = report.sampling
    if s is None:
        return ""
    rows: list[tuple[str, object]] = [
        ("RoIs to draw of a picture", s.rois_per_image),
        ("of them foreground, at most", s.fg_quota),
        ("can be drawn on average", f"{s.drawn:.1f}"),
        ("foreground RoIs there are, truth included", f"{s.foreground:.1f}"),
        ("background RoIs there are", f"{s.background:.1f}"),
        ("pictures with less foreground than may be drawn", percent(s.few_foreground)),
        ("pictures with too little background to fill up", percent(s.few_background)),
    ]
    body = [[text_cell(name), number_cell(value)] for name, value in rows]
    return f"<h2>What a training step draws</h2><p class='soft'>Means over {s.images:,} training pictures.</p>" + table(
        [heading(""), heading("", "number")], body
    )


def _values(values: Range) -> list[str]:
    return ["-" if v is None else f"{v:,.2f}".rstrip("0").rstrip(".") for v in (values.min, values.median, values.max)]


def _bars(*shares: float) -> str:
    """A cell with one bar, or a light one and a dark one over it; shares of the full width."""
    only = " class='only'" if len(shares) == 1 else ""
    bars = "".join(f"<i{only} style='width:{100 * share:.1f}%'></i>" for share in shares)
    return f"<td class='barcell'><div class='track'>{bars}</div></td>"

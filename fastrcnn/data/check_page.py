"""The report on a data set as one HTML page that needs nothing else: no scripts, no fonts, pictures within.

Everything that comes from the user's files passes through `escape`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from fastrcnn.data.check_problems import KINDS, by_kind
from fastrcnn.data.check_report import Range, Recall, Report
from fastrcnn.data.check_text import percent, verdict
from fastrcnn.data.truth import Problem

MOST = 200  # problems of a kind that are listed; report.json has them all
FEW = 20  # errors of a kind that are shown without a click

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f5f6f8; --line: #d9dde3; --text: #1d2330; --soft: #5b6473;
  --bar: #3b6fd4; --bar2: #9db8ea; --bad: #b3261e; --badground: #fdecea; --good: #1b6e3c; --goodground: #e7f5ec; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --panel: #1d222b; --line: #343b48; --text: #e6e9ef;
  --soft: #9aa4b5; --bar: #6d9bf1; --bar2: #3a558c; --bad: #ff8f87; --badground: #3a1d1c; --good: #7fd6a0;
  --goodground: #16301f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.2rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; }
.soft { color: var(--soft); }
.verdict { padding: .7rem 1rem; border-radius: .5rem; font-weight: 600; margin: 1rem 0; }
.bad { background: var(--badground); color: var(--bad); }
.good { background: var(--goodground); color: var(--good); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
.name { min-width: 7rem; }
.barcell { width: 35%; min-width: 6rem; }
.track { position: relative; height: .8rem; margin: .35rem 0; background: var(--panel); border-radius: .2rem; }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: .2rem; background: var(--bar2); }
.track i + i, .track i.only { background: var(--bar); }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; }
.tile { background: var(--panel); border-radius: .5rem; padding: .6rem .9rem; }
.tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .8rem; }
@media (max-width: 36rem) { body { padding: .8rem; } .extra { display: none; } th, td { padding: .3rem; }
  .name { min-width: 6.5rem; } .barcell { min-width: 4rem; } }
figure { margin: 0; }
figure img { width: 100%; height: auto; border-radius: .4rem; display: block; }
figcaption { color: var(--soft); font-size: .88rem; }
"""


def page(report: Report, pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """The page; `pictures` are captions and JPEG files, of the data set with its truth drawn in."""
    body = [
        f"<h1>{escape(report.name)}</h1><p class='soft'>{escape(report.root)}</p>",
        f"<p class='verdict {'bad' if report.errors else 'good'}'>{escape(verdict(report))}</p>",
        _tiles(report),
        _problems(report.root, "Errors", report.errors, "Training refuses these, or leaves them out if told to.", True),
        _problems(report.root, "Notes", report.notes, "Worth knowing; nothing here stops a training.", False),
        _pictures(pictures),
        _splits(report),
        _classes(report),
        _sizes(report),
        _proposals(report),
        _sampling(report),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(report.name)}: data set report</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _tiles(report: Report) -> str:
    values: list[tuple[object, str]] = [
        (f"{sum(s.images for s in report.splits):,}", "images"),
        (f"{sum(s.objects for s in report.splits):,}", "objects"),
        (len(report.classes), "classes"),
    ]
    if report.proposals:
        values.append((f"{report.proposals.mean:,.0f}", "proposals a picture"))
        values.append((percent(report.proposals.all.at_50), "objects found at IoU .5"))
    return (
        f"<div class='tiles'>{''.join(f'<div class=tile><b>{value}</b>{name}</div>' for value, name in values)}</div>"
    )


def _below(file: str, root: str) -> str:
    """The path as it continues after the data set's folder, where it is in there."""
    return file[len(root) :].lstrip("/\\") or file if file.startswith(root) else file


def _problems(root: str, title: str, problems: Sequence[Problem], what: str, opened: bool) -> str:
    if not problems:
        return ""
    parts = [f"<h2>{title} ({len(problems):,})</h2><p class='soft'>{what}</p>"]
    for kind, group in by_kind(problems).items():
        numbers = any(p.object or p.line for p in group)
        rows = []
        for p in group[:MOST]:
            place = f"line {p.line}" if p.line else f"{p.object} {p.name or ''}" if p.object else ""
            rows.append([_text(_below(p.file, root)), *([_text(place)] if numbers else []), _text(p.what)])
        shown = " open" if opened and len(group) <= FEW else ""
        head = ["file", *(["object or line"] if numbers else []), "what"]
        more = f"<p class='soft'>and {len(group) - MOST:,} more, in report.json</p>" if len(group) > MOST else ""
        parts.append(
            f"<details{shown}><summary>{escape(KINDS[kind].title)} ({len(group):,})</summary>"
            f"<p><b>To mend:</b> {escape(KINDS[kind].mend)}</p>{_table([_head(h) for h in head], rows)}{more}</details>"
        )
    return "".join(parts)


def _pictures(pictures: Sequence[tuple[str, bytes]]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f"<figure><img alt='{escape(caption)}' src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'>"
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
            _text(s.name, "name"),
            _text(s.role),
            *(_number(n) for n in (s.images, s.objects, s.unreadable)),
            *(_number(n, extra=True) for n in (s.negatives, s.difficult, s.truncated)),
        ]
        for s in report.splits
    ]
    head = [_head("list"), _head("for"), *(_head(n, "number") for n in names)]
    head += [_head(n, "number extra") for n in extra]
    return f"<h2>Lists of pictures</h2>{_table(head, rows)}"


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
        cells = [*(_number(n) for n in (train, totals[name] - train))]
        cells += [_number(n, extra=True) for n in (difficult, images)]
        rows.append([_text(name, "name"), *cells, _bars(totals[name] / most, train / most)])
    head = [
        _head("class"),
        *(_head(n, "number") for n in ("train", "test")),
        *(_head(n, "number extra") for n in ("difficult", "images")),
        _head("objects"),
    ]
    return (
        f"<h2>Objects of each class</h2><p class='soft'>Dark: to train on; light: to test on.</p>{_table(head, rows)}"
    )


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
    rows = [[_text(name), *(_number(v) for v in _values(values))] for name, values in ranges]
    total = max(1, sum(b.sizes.values()))
    meaning = {"small": "below 32 x 32 pixels", "medium": "below 96 x 96", "large": "the rest"}
    sizes = [
        [_text(f"{name}, {meaning[name]}", "name"), _number(n), _number(percent(n / total)), _bars(n / total)]
        for name, n in b.sizes.items()
    ]
    cells = "".join(
        f"<p>At a short side of {escape(side)} pixels in training, <b>{n:,}</b> of {sum(b.sizes.values()):,} boxes are "
        "narrower or lower than 16 pixels, one cell of conv5_3.</p>"
        for side, n in b.below_cell.items()
    )
    stored = ", ".join(f"{n:,} {escape(colour)}" for colour, n in p.colours.items())
    turned = f"; {p.turned:,} with an EXIF rotation" if p.turned else ""
    head = [_head("pixels"), *(_head(n, "number") for n in ("least", "median", "most"))]
    columns = [_head("boxes"), _head("number", "number"), _head("share", "number"), _head("")]
    return (
        f"<h2>Sizes</h2><p class='soft'>Pictures as stored: {stored or 'none'}{turned}.</p>{_table(head, rows)}"
        f"<h3>Boxes by area</h3>{_table(columns, sizes)}{cells}"
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
            _head(title),
            _head("objects", "number extra"),
            *(_head(n, "number") for n in ("at .5", "at .7")),
            _head(""),
        ]
        parts.append(_table(head, [_recall_row(name, recall) for name, recall in recalls.items()]))
    return "<p></p>".join(parts)


def _recall_row(name: str, recall: Recall) -> list[str]:
    cells = [_number(recall.objects, extra=True), _number(percent(recall.at_50)), _number(percent(recall.at_70))]
    return [_text(name, "name"), *cells, _bars(recall.at_50 or 0, recall.at_70 or 0)]


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
    body = [[_text(name), _number(value)] for name, value in rows]
    return (
        f"<h2>What a training step draws</h2><p class='soft'>Means over {s.images:,} training pictures.</p>"
        + _table([_head(""), _head("", "number")], body)
    )


def _values(values: Range) -> list[str]:
    return ["-" if v is None else f"{v:,.2f}".rstrip("0").rstrip(".") for v in (values.min, values.median, values.max)]


def _bars(*shares: float) -> str:
    """A cell with one bar, or a light one and a dark one over it; shares of the full width."""
    only = " class='only'" if len(shares) == 1 else ""
    bars = "".join(f"<i{only} style='width:{100 * share:.1f}%'></i>" for share in shares)
    return f"<td class='barcell'><div class='track'>{bars}</div></td>"


def _text(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{escape(text)}</td>" if kind else f"<td>{escape(text)}</td>"


def _number(value: object, extra: bool = False) -> str:
    """A cell with a number; `extra` ones are not shown on narrow screens."""
    text = f"{value:,}" if isinstance(value, int) else escape(str(value))
    return f"<td class='number{' extra' if extra else ''}'>{text}</td>"


def _head(text: str, kind: str = "") -> str:
    return f"<th class='{kind}'>{escape(text)}</th>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{''.join(head)}</tr>{body}</table></div>"

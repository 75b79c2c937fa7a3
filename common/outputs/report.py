"""A report page: sections of text, tables and figures in one HTML file that opens from disk, with nothing outside it.

Every function takes plain text and escapes it, and gives back HTML; parameters named `html` or `blocks` take what
these functions gave. A value that is missing or not finite is printed as a dash, with the reason under its table.
"""

import math
import re
from html import escape
from numbers import Number
from pathlib import Path

from common.errors import InputError
from common.files import atomic_write
from common.outputs.style import style_sheet

DASH = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"
NO_VALUE = "no value could be computed"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<div class="page">
<header>
<div class="label">{label}</div>
<h1>{title}</h1>
{head}
</header>
<nav aria-label="Sections">
{links}
</nav>
<main>
{sections}
</main>
<footer>{footer}</footer>
</div>
</body>
</html>
"""


def is_missing(value) -> bool:
    """Whether a cell has nothing to print: None, or a number that is not finite."""
    return value is None or (isinstance(value, Number) and not math.isfinite(value))


def number(value, digits: int = 3, *, signed: bool = False) -> str:
    """Plain text of a number with that many decimals, a true minus sign, and a dash where it is not finite."""
    if is_missing(value):
        return DASH
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def paragraph(text: str, *, kind: str = "") -> str:
    return f"<p{css_class(kind)}>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def css_class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def notice(text: str, *, label: str = "Note", warn: bool = False) -> str:
    """A sentence that must not be overlooked; warn colours its label."""
    return f'<div class="notice{" warn" if warn else ""}"><b>{escape(label)}</b><p>{escape(text)}</p></div>'


def findings_list(texts: list[str]) -> str:
    return '<ul class="findings">' + "".join(f"<li>{escape(str(text))}</li>" for text in texts) + "</ul>"


def column(key: str, label: str | None = None, kind: str = "number", digits: int = 3, signed: bool = False) -> dict:
    """A column of `table`: the key in each record, its heading, and how to print it.

    kind: "number", "value" (text that stands where numbers do), "text" (may wrap), "name" (row heading) or "bar" (value
    as a bar from zero, see `table`).
    """
    return {"key": key, "label": key if label is None else label, "kind": kind, "digits": digits, "signed": signed}


def table(
    columns: list[dict], records: list[dict], *, caption: str = "", why: str = NO_VALUE, strong=(), kind: str = ""
) -> str:
    """Records as a table that scrolls sideways inside its own box.

    columns: from `column`; records: dicts, a key that is absent counts as missing; why: the reason printed below
    where any number is missing; strong: indices of records in bold. Bars share one scale per column.
    """
    spans = {c["key"]: bar_span([r.get(c["key"]) for r in records]) for c in columns if c["kind"] == "bar"}
    head = "".join(f'<th scope="col"{css_class(side(c))}>{escape(c["label"])}</th>' for c in columns)
    lines = []
    for index, record in enumerate(records):
        cells = "".join(cell(c, record.get(c["key"]), spans.get(c["key"])) for c in columns)
        lines.append(f"<tr{css_class('strong' if index in strong else '')}>{cells}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if any(c["label"] for c in columns) else ""
    title = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    label = escape(caption or "Table", quote=True)
    missing = any(is_missing(record.get(c["key"])) for record in records for c in columns)
    html = f'{title}<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{css_class(kind)}>'
    html += head + "<tbody>" + "\n".join(lines) + "</tbody></table></div>"
    return html + (f'<p class="why">{DASH} {escape(why)}</p>' if missing else "")


def frame_table(frame, *, digits: int = 3, signed=(), caption: str = "", why: str = NO_VALUE) -> str:
    """A DataFrame as it is: text columns as row headings, whole numbers plain, others with `digits` decimals.

    signed: names of the columns whose numbers are printed with their sign.
    """
    columns = []
    for name in frame.columns:
        whole, numeric = frame[name].dtype.kind in "iu", frame[name].dtype.kind in "iuf"
        options = {"digits": 0 if whole else digits, "signed": name in signed}
        columns.append(column(name, str(name).replace("_", " "), "number" if numeric else "name", **options))
    return table(columns, frame.to_dict("records"), caption=caption, why=why)


def side(c: dict) -> str:
    return "n" if c["kind"] in ("number", "value") else ""


def cell(c: dict, value, span) -> str:
    if c["kind"] == "bar":
        return f"<td>{bar(value, *span)}</td>"
    if is_missing(value):
        inner = f'<span class="none">{DASH}</span>'
    else:
        inner = escape(number(value, c["digits"], signed=c["signed"]) if c["kind"] == "number" else str(value))
    if c["kind"] == "name":
        return f'<th scope="row"><span>{breakable(inner)}</span></th>'
    return f"<td{css_class(side(c) or 'text')}>{inner}</td>"


def breakable(html: str) -> str:
    """The same text with places to break a line after underscores, which long names are made of."""
    return html.replace("_", "_<wbr>")


def bar_span(values) -> tuple[float, float]:
    known = [float(v) for v in values if not is_missing(v)]
    low, high = min([0.0, *known]), max([0.0, *known])
    return (low, high) if high > low else (0.0, 1.0)


def bar(value, low: float, high: float) -> str:
    """Bar from zero to value on the scale low..high, with a hair line at zero where the scale crosses it."""
    if is_missing(value):
        return f'<span class="none">{DASH}</span>'
    start, end = sorted((position(0, low, high), position(value, low, high)))
    kind = ' class="minus"' if value < 0 else ""
    zero = f'<u style="left:{position(0, low, high):.2f}%"></u>' if low < 0 else ""
    return f'<span class="bar"><i{kind} style="left:{start:.2f}%;width:{end - start:.2f}%"></i>{zero}</span>'


def position(value: float, low: float, high: float) -> float:
    """Place of value on the scale low..high in percent, held inside it."""
    return 100 * min(1.0, max(0.0, (value - low) / (high - low)))


def ladder(items: list[dict], *, low: float = 0.0, high: float = 1.0, digits: int = 4, solid: bool = False) -> str:
    """Values on one scale, a line each: label, mark, number.

    items: {"label", "value", "note" (optional), "strong" (optional), "interval": (low, high) (optional)}; an item
    without a value is left out. solid: bars in place of dots.
    """
    html = []
    for item in items:
        if is_missing(item["value"]):
            continue
        strong = " strong" if item.get("strong") else ""
        note = f"<small>{escape(item['note'])}</small>" if item.get("note") else ""
        zero, at = position(0, low, high), position(item["value"], low, high)
        mark = f'<i style="left:{min(zero, at):.2f}%;width:{abs(at - zero):.2f}%"></i><b style="left:{at:.2f}%"></b>'
        if item.get("interval") and not any(map(is_missing, item["interval"])):
            a, b = (position(edge, low, high) for edge in item["interval"])
            mark += f'<u style="left:{a:.2f}%;width:{b - a:.2f}%"></u>'
        html.append(
            f'<div class="name{strong}">{breakable(escape(item["label"]) + note)}</div>\n'
            f'<div class="track{strong}">{mark}</div>'
        )
        html.append(f'<div class="count{strong}">{number(item["value"], digits)}</div>')
    return f'<div class="bars{" solid" if solid else ""}">' + "\n".join(html) + "</div>"


def figure(html: str, *, title: str = "", caption: str = "", hero: bool = False) -> str:
    """A drawing (from `inline_svg`) with its title and caption above; hero: takes the room of four panels."""
    text = (f"<b>{escape(title)}</b> " if title else "") + escape(caption)
    return f"<figure{css_class('hero' if hero else '')}><figcaption>{text}</figcaption>\n{html}</figure>"


def panels(blocks: list[str], *, pairs: bool = False) -> str:
    """Figures side by side where there is room, below each other on a phone; pairs: two to a line."""
    return f'<div class="panels{" pairs" if pairs else ""}">' + "\n".join(blocks) + "</div>"


def details(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def headline(value: str, label: str, text: str) -> str:
    """The one number of the page, what it is called, and a sentence that says what it means."""
    label = f"<small>{escape(label)}</small>"
    return f'<div class="headline"><div class="value">{label}{escape(value)}</div><p>{escape(text)}</p></div>'


def anchor(title: str, taken: set[str]) -> str:
    """Address of a section inside the page: letters, digits and dashes, not in `taken`, to which it is added."""
    base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    name, count = base, 2
    while name in taken:
        name, count = f"{base}-{count}", count + 1
    taken.add(name)
    return name


def page(report: dict) -> str:
    """The whole page as text; `report` as in `write_report`."""
    taken, links, sections = set(), [], []
    for part in report["sections"]:
        name, title = anchor(part["title"], taken), escape(part["title"])
        links.append(f'<a href="#{name}">{escape(part.get("short") or part["title"])}</a>')
        body = "\n".join(part["blocks"])
        sections.append(f'<section id="{name}">\n<h2><a href="#{name}">{title}</a></h2>\n{body}\n</section>')
    return PAGE.format(
        title=escape(report["title"]),
        label=escape(report.get("label", "")),
        style=style_sheet(),
        head="\n".join(report.get("head", [])),
        links="\n".join(links),
        sections="\n".join(sections),
        footer=escape(report.get("footer", "")),
    )


def write_report(path: str | Path, report: dict) -> Path:
    """Write the page, whole or not at all; returns its path.

    report: {"title": text, "label": text above the title, "head": [html], "sections": [{"title": text, "short": text
    for the navigation (optional), "blocks": [html]}], "footer": text}. InputError where there is no section.
    """
    if not report.get("sections"):
        raise InputError(f"{path}: a report needs at least one section")
    return atomic_write(path, page(report))

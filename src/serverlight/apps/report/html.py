"""The page as one HTML file that needs no other, no script and no network."""

from __future__ import annotations

import base64
import html
import importlib.resources
import pathlib
import re
from collections.abc import Iterator

from serverlight.apps.report.blocks import Block, Code, Page, Picture, Section, Table

__all__ = ["as_html"]

TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def as_html(page: Page, folder: pathlib.Path) -> str:
    """The whole file; pictures are read from ``folder`` and put into it."""
    style = (importlib.resources.files("serverlight.apps.report") / "page.css").read_text("utf-8")
    contents = "".join(f'<li><a href="#{_escape(s.name)}">{_escape(s.title)}</a></li>' for s in page.sections)
    body = "\n".join(_section(section, folder) for section in page.sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{_escape(page.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header><h1>{_escape(page.title)}</h1><p>{_inline(page.lead)}</p></header>\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _section(section: Section, folder: pathlib.Path) -> str:
    blocks = "\n".join(_block(block, folder) for block in section.blocks)
    return f'<section id="{_escape(section.name)}">\n<h2>{_escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block, folder: pathlib.Path) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _picture(block, folder)
    if isinstance(block, Code):
        return f"<pre><code>{_escape(block.text)}</code></pre>"
    kind = "gap" if block.is_gap else "note" if block.is_note else ""
    return f"<p{f' class={kind}' if kind else ''}>{_inline(block.text)}</p>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_class(i, table)}>{_escape(name)}</th>' for i, name in enumerate(table.columns))
    rows = "\n".join(f"<tr>{''.join(_cells(table, i))}</tr>" for i in range(len(table.rows)))
    body = f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    if table.folded:
        return f"<details><summary>{_escape(table.title)}</summary>\n{body}\n</details>"
    return (f"<h3>{_escape(table.title)}</h3>\n" if table.title else "") + body


def _cells(table: Table, row: int) -> Iterator[str]:
    for column, text in enumerate(table.rows[row]):
        tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
        inside = _inline(text)
        if (row, column) in table.marked:
            inside = f"<mark>{inside}</mark>"
        yield f"<{tag}{scope}{_class(column, table)}>{inside}</{tag}>"


def _class(column: int, table: Table) -> str:
    return "" if column in table.words else " class=number"


def _picture(picture: Picture, folder: pathlib.Path) -> str:
    path = folder / picture.file
    data = base64.b64encode(path.read_bytes()).decode()
    title = _escape(picture.title)
    return (
        f'<figure><img alt="{title}" src="data:{TYPES[path.suffix]};base64,{data}">'
        f"<figcaption>{_inline(picture.title)}</figcaption></figure>"
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    """Escaped, with code between backticks and bold words.

    >>> _inline("`a<b` is **not** <i>")
    '<code>a&lt;b</code> is <strong>not</strong> &lt;i&gt;'
    """
    escaped = _escape(text)
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", coded)

"""The page as Markdown; its pictures are files beside it."""

from __future__ import annotations

from collections.abc import Iterator

from serverlight.apps.report.blocks import Block, Code, Page, Picture, Table

__all__ = ["as_markdown"]


def as_markdown(page: Page) -> str:
    """The whole file."""
    parts = [f"# {page.title}", page.lead]
    for section in page.sections:
        parts += [f"## {section.title}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return "\n".join(_table(block))
    if isinstance(block, Picture):
        return f"![{_cell(block.title)}]({block.file})"
    if isinstance(block, Code):
        return f"```console\n{block.text}\n```"
    return block.text


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"### {table.title}", "")
    yield _row(list(map(_cell, table.columns)))
    yield _row(["---" if i in table.words else "---:" for i in range(len(table.columns))])
    for i, row in enumerate(table.rows):
        yield _row([f"**{_cell(text)}**" if (i, j) in table.marked else _cell(text) for j, text in enumerate(row)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Without what would end a cell, or begin a tag.

    >>> _cell("a|b <c>")
    'a\\\\|b &lt;c>'
    """
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

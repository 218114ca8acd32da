"""What a page is made of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from serverlight.errors import ConfigError

__all__ = ["Block", "Code", "Page", "Picture", "Section", "Table", "Text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph; what stands between backticks is code, between double asterisks bold."""

    text: str
    is_note: bool = False
    """Whether it is small print."""

    is_gap: bool = False
    """Whether it says that something is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Words in some columns, figures in the others."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    """Columns of words."""

    title: str = ""
    marked: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    """Row and column of cells to stand out."""

    folded: bool = False
    """Whether a reader opens it when they want it; on paper it is open."""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ConfigError("rows", f"of {self.title!r} are not all {len(self.columns)} cells long")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure in a file."""

    file: str
    """Its path within the folder of the page, with slashes."""

    title: str
    """What it shows, for those who do not see it, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Lines to type."""

    text: str


Block = Text | Table | Picture | Code


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading with what stands below it."""

    name: str
    """Of the link to it: lower case, dashes."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """All of it."""

    title: str
    lead: str
    """Says what the page is, and where, when and with what it was made."""

    sections: Sequence[Section]

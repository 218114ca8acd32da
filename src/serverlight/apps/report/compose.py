"""The page from what was measured: all sections in their order."""

from __future__ import annotations

from serverlight.apps.report.blocks import Page
from serverlight.apps.report.found import Found
from serverlight.apps.report.html import as_html
from serverlight.apps.report.markdown import as_markdown
from serverlight.apps.report.sections import about, codec, depth, fleet, language, load, rates

__all__ = ["compose", "write"]

TITLE = "SLICER reproduced: what a cut saves, and what it costs"

SECTIONS = (
    about.claims,
    rates.reductions,
    rates.quality_by_cut,
    load.server_time,
    load.figure_two,
    depth.figure_three,
    depth.memory,
    codec.ablations,
    language.drift,
    language.questions,
    codec.device_cost,
    codec.metadata,
    fleet.fleet,
    about.provenance,
)


def compose(found: Found) -> Page:
    """The page; its figures are drawn on the way."""
    return Page(title=TITLE, lead=about.lead(), sections=[section(found) for section in SECTIONS])


def write(found: Found) -> None:
    """Writes ``report.html`` and ``report.md`` into the folder."""
    page = compose(found)
    (found.out / "report.html").write_text(as_html(page, found.out), encoding="utf-8")
    (found.out / "report.md").write_text(as_markdown(page), encoding="utf-8")

"""``serverlight demo`` with a language model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from serverlight.apps.terminal import STDOUT, print_lines, print_table, progress_bar, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.demo.language import LanguageSetup
    from serverlight.apps.demo.language_report import WritingRow
    from serverlight.apps.demo.shown import Shown
    from serverlight.link import LinkConfig

__all__ = ["NUM_TOKENS", "demo_writing"]

NUM_TOKENS = 64
"""Tokens to write after each prompt."""


def demo_writing(
    spec: str, shown: Shown, num_prompts: int | None, num_tokens: int, link: LinkConfig | None, json: str | None
) -> None:
    """Measures and prints; raises :class:`ConfigError` for more than one cut."""
    from serverlight.apps.demo.language import MODES, measure_writing, prepare_writing
    from serverlight.apps.demo.language_report import COLUMNS, summarise, writing_cells, writing_rows
    from serverlight.codec import warm_up

    if len(shown.cuts) > 1:
        raise ConfigError("cut", f"a language model is shown at one cut, got {len(shown.cuts)}; leave some away")
    setup = prepare_writing(spec, next(iter(shown.cuts), None), num_prompts, num_tokens, link, shown.codec)
    with progress_bar("compiling the codec (once)", len(MODES) * len(setup.prompts)) as (bar, task):
        warm_up()  # else device and servers would all compile at once
        bar.update(task, description="starting processes")
        texts = measure_writing(
            setup, on_ready=lambda: bar.update(task, description="writing"), on_text=lambda: bar.advance(task)
        )
    rows = writing_rows(texts, setup)
    if json:
        write_json(json, _document(setup, shown, rows))
    if json != STDOUT:
        print_table(COLUMNS, writing_cells(rows), left=2)
        print_lines(_caption(setup), f"The model is {shown.reason}.", summarise(rows))


def _document(setup: LanguageSetup, shown: Shown, rows: list[WritingRow]) -> dict[str, Any]:
    from serverlight.apps.demo.modes import CODED
    from serverlight.evaluation import measured_document

    return measured_document(
        {
            "model": setup.model,
            "revision": setup.revision,
            "cut": setup.cut,
            "prompts": len(setup.prompts),
            "prompt_tokens": sum(map(len, setup.prompts)),
            "tokens": setup.num_tokens,
            "link": str(setup.link) if setup.link else None,
            "codec": {mode: setup.codec(mode).to_dict() for mode in CODED},
            "cut_by": shown.source,
        },
        [dataclasses.asdict(row) for row in rows],
    )


def _caption(setup: LanguageSetup) -> str:
    from serverlight.evaluation import describe_environment

    where = describe_environment()
    return (
        f"{setup.model}, {len(setup.prompts)} prompts, {setup.num_tokens} tokens after each, all figures a token that was written, "
        f"prompt included; one device and the servers on {where['cores']} cores ({where['cpu']}), "
        f"{f'a link of {setup.link}' if setup.link else 'no link imitated'}, {where['date']}."
    )

"""``serverlight eval --tasks``: a language model on tasks of lm-evaluation-harness, cut and uncut."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serverlight.apps.codec_grid import settings_text
from serverlight.apps.terminal import STDOUT, check_writable, format_bytes, print_lines, print_table, write_json
from serverlight.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from serverlight.codec import CodecConfig
    from serverlight.evaluation.task_scores import TaskScore
    from serverlight.plan import Plan

__all__ = ["CutRow", "TaskRun", "evaluate_tasks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRun:
    """What all models of a run have in common, and where the cut ones are."""

    model: str
    server: str | None = None
    plan: str | None = None
    dtype: str = "auto"
    data: str | None = None
    limit: int | None = None
    run_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CutRow:
    """One cut with its settings."""

    plan: Plan
    num_tokens: int
    """Tokens that crossed, those of each choice with all of its context."""

    bits_per_element: float
    """Bits of frames, headers included, for each element that crossed."""

    uplink_bytes_per_token: float
    """Bytes sent for each token; over a server gRPC and HTTP/2 framing included."""

    scores: list[TaskScore]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "cut": self.plan.cut,
            "return_cut": self.plan.return_cut,
            "config": self.plan.codec.to_dict(),
            "num_tokens": self.num_tokens,
            "bits_per_element": round(self.bits_per_element, 4),
            "uplink_bytes_per_token": round(self.uplink_bytes_per_token, 2),
            "scores": [_finite(dataclasses.asdict(score)) for score in self.scores],
        }


def evaluate_tasks(
    run: TaskRun, tasks: Sequence[str], settings: Sequence[tuple[str, CodecConfig]], *, threads: int, json: str | None
) -> None:
    """Runs the uncut model, then each cut one, and prints the differences.

    Raises :class:`ConfigError` for what cannot be, before the first model runs where that can be known by then.
    """
    import torch

    from serverlight.evaluation import describe_environment
    from serverlight.evaluation.task_files import task_folder
    from serverlight.models.loader import is_language_model
    from serverlight.plan import model_key

    check_writable("json", json)
    if bool(run.plan) == bool(settings):
        raise ConfigError(
            "cut", "give --cut NAME, once or more, or --plan FILE; `serverlight cuts MODEL` lists the cuts"
        )
    if not is_language_model(run.model):
        raise ModelError(f"{run.model!r} is no language model; leave --tasks away for an image classifier")
    torch.set_num_threads(threads)
    with task_folder(run.data) as folder:
        rows = _measure(run, tasks, settings, folder)
    if json:
        head = {"model": model_key(run.model), "tasks": list(tasks), "limit": run.limit, "server": bool(run.server)}
        write_json(json, {**describe_environment(), **head, "rows": [row.to_dict() for row in rows]})
    if json != STDOUT:
        _print_rows(rows, over_a_server=bool(run.server))


def _measure(
    run: TaskRun, tasks: Sequence[str], settings: Sequence[tuple[str, CodecConfig]], folder: str | None
) -> list[CutRow]:
    from serverlight.evaluation.lm_eval import SplitLM, evaluate_model, task_names, uncut_model
    from serverlight.evaluation.task_scores import compare_results

    names = task_names(tasks, folder)
    how: dict[str, Any] = {"folder": folder, "limit": run.limit, "run_code": run.run_code}
    models = [
        SplitLM(run.model, server=run.server, dtype=run.dtype, **arguments) for arguments in _arguments(run, settings)
    ]
    print("running the uncut model", file=sys.stderr)
    uncut = evaluate_model(uncut_model(run.model, run.dtype), names, **how)
    rows = []
    for model in models:
        plan, traffic = model.metered.plan, model.traffic
        print(f"running {plan.cut} {settings_text(plan.codec)}", file=sys.stderr)
        scores = compare_results(evaluate_model(model, names, **how), uncut)
        per_token = traffic.frame_bytes / traffic.num_tokens
        row = CutRow(
            plan=plan,
            num_tokens=traffic.num_tokens,
            bits_per_element=8 * per_token / model.metered.head.hidden_size,
            uplink_bytes_per_token=traffic.uplink_bytes / traffic.num_tokens,
            scores=scores,
        )
        rows.append(row)
    return rows


def _arguments(run: TaskRun, settings: Sequence[tuple[str, CodecConfig]]) -> list[Mapping[str, Any]]:
    if run.plan:
        return [{"plan": run.plan}]
    return [{"cut": cut, **_fields(codec)} for cut, codec in settings]


def _fields(codec: CodecConfig) -> dict[str, Any]:
    return {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec)}


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN, which is the error of a single question."""
    return {
        name: _finite(value) if isinstance(value, dict) else None if value != value else value
        for name, value in fields.items()
    }


def _print_rows(rows: Sequence[CutRow], *, over_a_server: bool) -> None:
    print_table(["cut", "settings", "bits/element", "up B/token", "tokens"], [_cost_cells(row) for row in rows], left=2)
    columns = ["cut", "settings", "task", "metric", "uncut", "cut", "difference", "95 %", "p", "same"]
    print_table(columns, [_score_cells(row, score) for row in rows for score in row.scores], left=4)
    first = rows[0].scores[0]
    sent = "the bytes are those sent" if over_a_server else "in one process, the bytes are those of frames"
    print_lines(
        f"{first.num_samples} questions of {first.task}. +- is one standard error; the difference is cut less uncut on the same "
        "questions, p by McNemar's exact test for right or wrong, else by the normal approximation; same is the share of equal "
        f"answers. Each choice crosses with its context: {sent}."
    )


def _names(row: CutRow) -> list[str]:
    cut = row.plan.cut if row.plan.return_cut is None else f"{row.plan.cut} to {row.plan.return_cut}"
    return [cut, settings_text(row.plan.codec) or row.plan.codec.profile]


def _cost_cells(row: CutRow) -> list[str]:
    return [
        *_names(row),
        f"{row.bits_per_element:.3f}",
        f"{row.uplink_bytes_per_token:.1f}",
        format_bytes(row.num_tokens),
    ]


def _score_cells(row: CutRow, score: TaskScore) -> list[str]:
    difference = score.difference
    return [
        *_names(row),
        score.task,
        score.metric if score.filter == "none" else f"{score.metric} ({score.filter})",
        f"{score.uncut:.4g} +- {score.uncut_stderr:.2g}",
        f"{score.cut:.4g} +- {score.cut_stderr:.2g}",
        f"{difference.value:+.2g} +- {difference.stderr:.2g}",
        f"{difference.low:+.2g} to {difference.high:+.2g}",
        f"{difference.p_value:.2g}",
        "" if score.same_answers is None else f"{score.same_answers:.1%}",
    ]

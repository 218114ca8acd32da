"""``serverlight eval``."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.options import (
    DataOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    ThreadsOption,
    parse_list,
)
from serverlight.apps.terminal import (
    STDOUT,
    check_writable,
    format_bytes,
    print_lines,
    print_table,
    progress_bar,
    write_json,
)
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.codec import CodecConfig
    from serverlight.evaluation import VisionRow

__all__ = ["evaluate", "settings_text"]

VISION_SPARSITY, LANGUAGE_SPARSITY = "0.5,0.7,0.8,0.9", "0.2"


def evaluate(
    model: ModelArgument = "demo-vision",
    cut: Annotated[
        list[str] | None, typer.Option("--cut", metavar="NAME", help="Where to cut; may be repeated.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Of a language model: tasks of lm-evaluation-harness, such as `hellaswag,piqa`."
        ),
    ] = None,
    profile: Annotated[str, typer.Option(metavar="LIST", help="Codecs: serverlight, slicer, fp16.")] = "serverlight",
    sparsity: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Shares of elements to drop; 0.5,0.7,0.8,0.9, of language models 0.2."),
    ] = None,
    groups: Annotated[str, typer.Option(metavar="LIST", help="Numbers of magnitude groups (slicer).")] = "1",
    distortion: Annotated[str, typer.Option(metavar="LIST", help="Distortion budgets, or `auto`.")] = "auto",
    asymmetry: Annotated[str, typer.Option(metavar="LIST", help="Worth of a negative element.")] = "1",
    asymmetry_mode: Annotated[
        str, typer.Option(metavar="LIST", help="What that weighs: the `score` of each, or the `budget` of all.")
    ] = "score",
    data: DataOption = None,
    limit: LimitOption = None,
    plan: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --tasks: cut and settings from a plan.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="With --tasks: a server with the rest of the model; else it is loaded here."
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code", help="With --tasks: let tasks run what the model wrote, unguarded, on this machine."
        ),
    ] = False,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Measure bytes and accuracy for each combination of cut and codec settings, against the uncut model.

    An image classifier runs in one process. With --tasks it is a language model, on tasks of lm-evaluation-harness; --data is
    then a folder of task files and their data. Examples:
    `serverlight eval demo-vision --cut layer2.2 --cut layer3.0 --profile serverlight,slicer --sparsity 0.7,0.8`
    `serverlight eval demo-lm --tasks hellaswag,piqa --cut layers.2 --sparsity 0,0.2,0.5 --limit 100`
    """
    if tasks is not None:
        from serverlight.apps.task_eval import TaskRun, evaluate_tasks

        knobs = (profile, sparsity or LANGUAGE_SPARSITY, groups, distortion, asymmetry, asymmetry_mode)
        settings = [] if plan else list(itertools.product(cut or [], _configs(*knobs)))
        run = TaskRun(model=model, server=server, plan=plan, dtype=dtype, data=data, limit=limit, run_code=run_code)
        evaluate_tasks(run, parse_list("tasks", tasks, str.strip), settings, threads=threads, json=json)
        return
    for name, given in (("plan", plan), ("server", server), ("run_code", run_code)):
        if given:
            raise ConfigError(name, "is for language models; give --tasks as well, or leave it away")
    if not cut:
        raise ConfigError("cut", "give --cut NAME, once or more; `serverlight cuts MODEL` lists the cuts")
    knobs = (profile, sparsity or VISION_SPARSITY, groups, distortion, asymmetry, asymmetry_mode)
    _evaluate_images(model, cut, knobs, data=data, limit=limit, threads=threads, json=json)


def _evaluate_images(
    model: str,
    cuts: list[str],
    knobs: tuple[str, str, str, str, str, str],
    *,
    data: str | None,
    limit: int | None,
    threads: int,
    json: str | None,
) -> None:
    import torch

    from serverlight.apps.vision import load_model_images
    from serverlight.evaluation import describe_environment, evaluate_vision
    from serverlight.models import load_model

    check_writable("json", json)
    settings = list(itertools.product(cuts, _configs(*knobs)))
    torch.set_num_threads(threads)
    loaded = load_model(model)
    images = load_model_images(loaded, data, limit)
    with progress_bar("measuring", len(settings) * len(images)) as (bar, task):
        rows = evaluate_vision(
            loaded, images, settings, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if json:
        head = {"model": loaded.name, "revision": loaded.revision, "data": data or model, "images": len(images)}
        write_json(json, {**describe_environment(), **head, "rows": [row.to_dict() for row in rows]})
    if json != STDOUT:
        _print_rows(rows)


def _configs(
    profile: str, sparsity: str, groups: str, distortion: str, asymmetry: str, asymmetry_mode: str
) -> list[CodecConfig]:
    from serverlight.codec import CodecConfig

    grid = itertools.product(
        parse_list("profile", profile, str),
        parse_list("sparsity", sparsity, float),
        parse_list("groups", groups, int),
        parse_list("distortion", distortion, _number_or_auto),
        parse_list("asymmetry", asymmetry, float),
        parse_list("asymmetry_mode", asymmetry_mode, str),
    )
    return [
        CodecConfig(profile=p, sparsity=s, num_groups=m, distortion=d, asymmetry=a, asymmetry_mode=mode)
        for p, s, m, d, a, mode in grid
    ]


def _number_or_auto(text: str) -> float | None:
    return None if text.strip() == "auto" else float(text)


def _print_rows(rows: tuple[VisionRow, ...]) -> None:
    columns = [
        "cut", "profile", "settings", "bits/element", "bytes/image", "x fp16", "accuracy", "pp", "95 %", "agreement",
    ]  # fmt: skip
    print_table(columns, [_cells(row) for row in rows], left=3)
    print_lines(
        f"{rows[0].num_images} images; the uncut model has {100 * rows[0].uncut_accuracy:.2f} %. Bytes are those of the frames, "
        "headers included; x fp16 says how many times as many plain halves take. pp is the difference from the uncut model."
    )


def _cells(row: VisionRow) -> list[str]:
    low, high = row.accuracy_delta_low_pp, row.accuracy_delta_high_pp
    return [
        row.cut,
        row.config.profile,
        settings_text(row.config),
        f"{row.bits_per_element:.3f}",
        format_bytes(row.bytes_per_image),
        f"{row.ratio_vs_fp16:.1f}",
        f"{100 * row.accuracy:.2f} %",
        f"{row.accuracy_delta_pp:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{100 * row.agreement:.2f} %",
    ]


def settings_text(config: CodecConfig) -> str:
    """What of theta plays a part in the profile."""
    if config.profile == "fp16":
        return ""
    groups = f" M={config.num_groups}" if config.profile == "slicer" else ""
    distortion = "" if config.distortion is None else f" delta={config.distortion:g}"
    asymmetry = "" if config.asymmetry == 1 else f" lambda={config.asymmetry:g}"
    if config.asymmetry_mode == "budget":
        asymmetry = f" lambda={config.asymmetry:g} of budget"
    return f"s={config.sparsity:g}{asymmetry}{groups}{distortion}"

"""``serverlight eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from serverlight.apps.codec_grid import CodecGrid
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import (
    DataOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    ThreadsOption,
    parse_list,
)
from serverlight.errors import ConfigError

__all__ = ["evaluate"]

IMAGE_SPARSITY, TEXT_SPARSITY = "0.5,0.7,0.8,0.9", "0.2"


@takes_options(grid=CodecGrid)
def evaluate(
    grid: CodecGrid,
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
    coco: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of a detector: annotations in COCO's form, with --images.")
    ] = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help="With --coco: the folder of the images.")] = None,
    sts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of a sentence encoder: scored pairs, a file of STS-B.")
    ] = None,
    data: DataOption = None,
    limit: LimitOption = None,
    within: Annotated[
        float, typer.Option(metavar="PP", help="Loss in percentage points that the table judges by.")
    ] = 1.0,
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
        typer.Option("--run-code", help="With --tasks: let tasks run what the model wrote, on this machine."),
    ] = False,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Measure bytes and quality for each combination of cut and codec settings, against the uncut model on the same samples.

    An image classifier (--data), a detector (--coco) or a sentence encoder (--sts) runs in one process. With --tasks it is a
    language model, on tasks of lm-evaluation-harness; --data is then a folder of task files and their data. Examples:
    `serverlight eval demo-vision --cut layer2.2 --cut layer3.0 --profile serverlight,slicer --sparsity 0.7,0.8`
    `serverlight eval PekingU/rtdetr_r18vd --coco instances_val2017.json --images val2017 --cut NAME --limit 500`
    `serverlight eval sentence-transformers/all-MiniLM-L6-v2 --sts sts-test.csv --cut encoder.layer.2`
    `serverlight eval demo-lm --tasks hellaswag,piqa --cut layers.2 --sparsity 0,0.2,0.5 --limit 100`
    """
    given = {"tasks": tasks, "coco": coco, "sts": sts}
    if len(several := [f"--{name}" for name, value in given.items() if value is not None]) > 1:
        raise ConfigError(several[0][2:], f"does not go with {several[1]}; give one of them")
    if tasks is not None:
        from serverlight.apps.task_eval import TaskRun, evaluate_tasks

        settings = [] if plan else grid.over(cut or [], sparsity=TEXT_SPARSITY)
        run = TaskRun(model=model, server=server, plan=plan, dtype=dtype, data=data, limit=limit, run_code=run_code)
        evaluate_tasks(run, parse_list("tasks", tasks, str.strip), settings, threads=threads, json=json)
        return
    for name, value in (("plan", plan), ("server", server), ("run_code", run_code)):
        if value:
            raise ConfigError(name, "is for language models; give --tasks as well, or leave it away")
    if not cut:
        raise ConfigError("cut", "give --cut NAME, once or more; `serverlight cuts MODEL` lists the cuts")
    from serverlight.apps.paired_eval import PairedRun, evaluate_paired

    settings = grid.over(cut, sparsity=IMAGE_SPARSITY if sts is None else TEXT_SPARSITY)
    paired = PairedRun(
        model=model, settings=settings, data=data, coco=coco, images=images, sts=sts, limit=limit, within_pp=within
    )
    evaluate_paired(paired, threads=threads, json=json)

"""``serverlight demo``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.commands.demo_writing import NUM_TOKENS, demo_writing
from serverlight.apps.options import DataOption, JsonOption, LimitOption, ModelArgument
from serverlight.apps.terminal import STDOUT, check_writable, print_lines, print_table, progress_bar, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.demo.measure import DemoSetup
    from serverlight.apps.demo.report import Row
    from serverlight.apps.demo.shown import Shown

__all__ = ["demo"]


def demo(
    model: ModelArgument = "demo-vision",
    cut: Annotated[
        list[str] | None,
        typer.Option(
            "--cut",
            metavar="NAME",
            help="Where to cut; up to three times. `auto`, by default, is where the last search chose, else as built in.",
        ),
    ] = None,
    data: DataOption = None,
    limit: LimitOption = None,
    clients: Annotated[int, typer.Option(metavar="N", min=1, help="Device processes.")] = 3,
    link: Annotated[
        str | None, typer.Option(metavar="RATE,DELAY", help="Imitate a link for each device, like `10mbit,20ms`.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Save the table as a figure, PATH.png and PATH.svg.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Tokens to write after each prompt; language models only.")
    ] = NUM_TOKENS,
    json: JsonOption = None,
) -> None:
    """Show what cutting a model saves and costs: a real server, several devices, real images, one table.

    Compares sending the image, fp16 features, frames of SLICER and of our own codec, and doing all on the device. The server
    and the devices are processes of this machine; one request at a time from each device, one image a request.

    With a language model, such as `demo-lm`, one device writes greedily with servers that have all of the model or its tail.

    Example: `serverlight demo --link 10mbit,20ms --plot demo --json demo.json`
    """
    import torch

    from serverlight.apps.demo.measure import measure
    from serverlight.apps.demo.report import COLUMNS, make_rows, summary, table_cells
    from serverlight.apps.demo.shown import what_to_show
    from serverlight.codec import warm_up
    from serverlight.link import LinkConfig
    from serverlight.models.loader import is_language_model

    check_writable("json", json)
    check_writable("plot", plot)
    parsed_link = LinkConfig.parse(link) if link else None
    shown = what_to_show(model, cut or [])
    torch.set_num_threads(1)
    if is_language_model(model):
        if data or plot:
            raise ConfigError("data" if data else "plot", f"is for images, and {model!r} writes text; leave it away")
        demo_writing(model, shown, limit, tokens, parsed_link, json)
        return
    setup, labels = _prepare(model, shown, data, limit, clients, parsed_link)
    with progress_bar("compiling the codec (once)", len(setup.modes) * setup.num_images) as (bar, task):
        warm_up()  # else server and devices would all compile at once
        bar.update(task, description="starting processes")
        measured = measure(
            setup,
            on_ready=lambda: bar.update(task, description="classifying"),
            on_answer=lambda: bar.advance(task),
        )
    rows = make_rows(setup.modes, measured, labels)
    if json:
        write_json(json, _document(setup, shown, rows))
    if json != STDOUT:
        print_table(COLUMNS, table_cells(rows, setup.modes), left=2)
        print_lines(_caption(setup), f"The model is {shown.reason}.", summary(rows))
    if plot:
        from serverlight.apps.plots import plot_demo

        plot_demo(rows, [mode.title for mode in setup.modes], _caption(setup), plot)


def _prepare(
    spec: str, shown: Shown, data: str | None, limit: int | None, clients: int, link: Any
) -> tuple[DemoSetup, list[int]]:
    from serverlight.apps.demo.measure import DemoSetup
    from serverlight.apps.demo.modes import make_modes
    from serverlight.apps.demo.settings import choose_cuts
    from serverlight.apps.vision import load_model_images
    from serverlight.models import load_model
    from serverlight.partition import partition

    model = load_model(spec)
    images = load_model_images(model, data, limit)
    parts = partition(model.module, model.example_inputs)
    cuts = [cut.name for cut in choose_cuts(spec, parts, list(shown.cuts))]
    first, last = parts.cuts[0].name, parts.cuts[-1].name
    setup = DemoSetup(
        model=spec,
        revision=model.revision,
        modes=make_modes(spec, model.revision, cuts, first=first, last=last, chosen=shown.codec),
        cuts=[first, *cuts],
        data=data,
        num_images=len(images),
        num_clients=min(clients, len(images)),
        link=link,
    )
    return setup, images.labels.tolist()


def _document(setup: DemoSetup, shown: Shown, rows: list[Row]) -> dict[str, Any]:
    from serverlight.apps.demo.measure import LEAD_IN, ROUNDS, WARM_UP
    from serverlight.apps.demo.report import settings
    from serverlight.apps.vision import JPEG_QUALITY
    from serverlight.evaluation import measured_document

    return measured_document(
        {
            "model": setup.model,
            "revision": setup.revision,
            "data": setup.data or setup.model,
            "images": setup.num_images,
            "clients": setup.num_clients,
            "link": str(setup.link) if setup.link else None,
            "batch": 1,
            "rounds": ROUNDS,
            "warm_up_requests": WARM_UP,
            "lead_in_requests": LEAD_IN,
            "jpeg_quality": JPEG_QUALITY,
            "codec": settings(setup.modes),
            "cut_by": shown.source,
        },
        [dataclasses.asdict(row) for row in rows],
    )


def _caption(setup: DemoSetup) -> str:
    from serverlight.evaluation import describe_environment

    where = describe_environment()
    link = f"a link of {setup.link} for each" if setup.link else "no link imitated"
    return (
        f"{setup.model}, {setup.num_images} images, {setup.num_clients} devices and the server on {where['cores']} cores "
        f"({where['cpu']}), {link}, {where['date']}."
    )

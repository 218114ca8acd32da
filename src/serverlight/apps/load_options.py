"""Options of ``serverlight bench runtime``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "CLIENTS",
    "NOTHING",
    "RANDOM_LLAMA",
    "RANDOM_RESNET",
    "ClientsOption",
    "DeviceTimeOption",
    "DurationOption",
    "LinkOption",
    "LmCutOption",
    "LmOption",
    "MaxBatchDelayOption",
    "QuickOption",
    "RateOption",
    "RoundsOption",
    "TextOption",
    "TokensOption",
    "VisionCutOption",
    "VisionOption",
    "WarmupOption",
]

CLIENTS = "1,2,4,8,16,32,64"
RANDOM_LLAMA = "random-llama"
"""About 125 M parameters; how fast it is does not depend on what they are."""

RANDOM_RESNET = "random-resnet"
"""A ResNet-50, of the size that people serve: how fast it is does not depend on its weights either."""

NOTHING = "none"

VisionOption = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=f"Model of images; `{RANDOM_RESNET}` is made for the purpose (a ResNet-50), `{NOTHING}` for none.",
    ),
]
LmOption = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=f"Language model; `{RANDOM_LLAMA}` is made for the purpose (125 M parameters), `{NOTHING}` for none.",
    ),
]
ClientsOption = Annotated[str, typer.Option(metavar="LIST", help="Devices at a time, a row for each number.")]
VisionCutOption = Annotated[
    list[str] | None, typer.Option("--vision-cut", metavar="NAME", help="A deep cut of images; may be repeated.")
]
LmCutOption = Annotated[
    list[str] | None, typer.Option("--lm-cut", metavar="NAME", help="A cut such as `layers.4`; may be repeated.")
]
TextOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="What the language model reads; a shipped text unless told otherwise."),
]
TokensOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Tokens after each prompt, then the text begins anew.")
]
DurationOption = Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds of a turn.")]
WarmupOption = Annotated[
    float, typer.Option(metavar="S", min=0.0, help="Seconds before a turn that do not count: those of the prompts.")
]
RoundsOption = Annotated[int, typer.Option(metavar="N", min=1, help="Turns of each row; all rows take turns.")]
RateOption = Annotated[
    float | None,
    typer.Option(metavar="PER_S", min=0.001, help="Images due in a second at random times (an open loop)."),
]
DeviceTimeOption = Annotated[
    bool, typer.Option("--device-time", help="Devices take the time of head and codec between requests.")
]
LinkOption = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="RATE,DELAY", help="A link for each device, like `10mbit,20ms`; several go round."),
]
MaxBatchDelayOption = Annotated[
    float | None,
    typer.Option(
        metavar="MS", min=0.0, help="How long the server lets requests wait for others; its own default else."
    ),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="A look in a minute: one short turn, shipped models.")]

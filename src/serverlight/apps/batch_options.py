"""Options of a server that runs requests together."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MaxBatchDelayOption", "MaxBatchRequestsOption"]

MaxBatchRequestsOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Requests that run together at most; 1 runs one after the other.")
]

MaxBatchDelayOption = Annotated[
    float, typer.Option(metavar="MS", min=0.0, help="Longest that a request waits for others to run with, in ms.")
]

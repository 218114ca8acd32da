"""``serverlight token``."""

from __future__ import annotations

import datetime
import sys
from typing import Annotated

import typer

__all__ = ["token"]


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client's name: A-Z a-z 0-9 . _ - only.")],
    file: Annotated[
        str, typer.Option(metavar="FILE", help="Where clients are kept; made if it is not there.")
    ] = "tokens.toml",
    days: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=36500, help="For how long it is good; for ever if not given.")
    ] = None,
) -> None:
    """Make a token for a client and add its hash to the file that `serverlight serve --tokens FILE` reads.

    The token is printed once, on standard output, and kept nowhere. A server that runs takes it up by itself. To withdraw
    it, delete the client's section from the file.

    Example: `serverlight token phone-7 --file tokens.toml`
    """
    from serverlight.runtime.tokens import add_client

    expires = None if days is None else datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    print(add_client(file, name, expires=expires))
    print(f"added {name} to {file}; this is the only time that the token is shown", file=sys.stderr)

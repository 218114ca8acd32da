"""The command ``serverlight``: parse, call, print, exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from serverlight import __version__
from serverlight.apps.commands.bench_codec import bench
from serverlight.apps.commands.bench_runtime import bench_runtime
from serverlight.apps.commands.calibrate import calibrate
from serverlight.apps.commands.chaos import chaos
from serverlight.apps.commands.cuts import cuts
from serverlight.apps.commands.demo import demo
from serverlight.apps.commands.edge import edge
from serverlight.apps.commands.evaluate import evaluate
from serverlight.apps.commands.generate import generate
from serverlight.apps.commands.inspect_frame import inspect_frame
from serverlight.apps.commands.link import link
from serverlight.apps.commands.profile import profile
from serverlight.apps.commands.report import report
from serverlight.apps.commands.run import run
from serverlight.apps.commands.search import search
from serverlight.apps.commands.serve import serve
from serverlight.apps.commands.simulate import simulate
from serverlight.apps.commands.token import token
from serverlight.errors import Infeasible, MissingDependency, ServerlightError

__all__ = ["app", "main"]

EXIT_BUG, EXIT_USER_ERROR, EXIT_INFEASIBLE, EXIT_INTERRUPTED = 1, 2, 3, 130

DEBUG = "--debug"

EXTRA_OF_PACKAGE = {
    "torch": "torch",
    "safetensors": "torch",
    "PIL": "torch",
    "grpc": "grpc",
    "grpc_health": "grpc",
    "google": "grpc",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "fastapi": "edge",
    "starlette": "edge",
    "uvicorn": "edge",
    "matplotlib": "plot",
    "prometheus_client": "watch",
    "ray": "ray",
    "numba": "cpu",
    "lm_eval": "eval",
    "accelerate": "eval",
}
"""Package that a command may miss -> the extra that brings it."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Cut a deep network between devices and a server, and compress what crosses.",
)
app.command()(demo)
app.command()(serve)
app.command()(token)
app.command()(run)
app.command()(generate)
app.command()(edge)
app.command()(chaos)
app.command()(link)
app.command()(cuts)
app.command()(profile)
app.command()(calibrate)
app.command()(search)
app.command()(simulate)
app.command("eval")(evaluate)
app.command("inspect")(inspect_frame)
app.command()(report)
bench.command("runtime")(bench_runtime)
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"serverlight {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """``main`` looks for --debug itself, and the callback of --version acts: both stand here for the help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 when it worked, 2 for a wrong input, 3 where no plan keeps all caps, 130 after Ctrl-C, 1 for a
    bug of ours.
    """
    # Two processes that spin on the same cores slow each other down many times over. OpenMP reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # gRPC writes a line of its own for each handshake that fails: a stranger could fill a server's log with them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted before and after the command's name.
    debug = DEBUG in words
    sys.exit(_run([word for word in words if word != DEBUG], debug=debug))


def _run(words: list[str], *, debug: bool) -> int:
    try:
        return app(words, prog_name="serverlight", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left to print
        return EXIT_BUG
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    if isinstance(error, Infeasible):
        return str(error), EXIT_INFEASIBLE
    if isinstance(error, ServerlightError):
        return str(error), EXIT_USER_ERROR
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").split(".")[0]) in EXTRA_OF_PACKAGE:
        return str(MissingDependency(package, EXTRA_OF_PACKAGE[package])), EXIT_USER_ERROR
    if hasattr(error, "format_message"):  # a wrong command line, as typer reports it
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "serverlight"
        return f"{error.format_message().rstrip('.')}; see `{command} --help`", EXIT_USER_ERROR
    return f"{type(error).__name__}: {error}; this is a bug or the model's own error, {DEBUG} shows where", EXIT_BUG

"""``serverlight generate``."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.cut_options import CutOptions
from serverlight.apps.generation_options import CapOptions, SamplingOptions
from serverlight.apps.live_text import writer
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import (
    DtypeOption,
    JsonOption,
    ModelArgument,
    ReturnCutOption,
    ThreadsOption,
    read_dtype,
)
from serverlight.apps.security_options import CredentialOptions
from serverlight.apps.terminal import STDOUT, check_writable, format_bytes, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.generation import DecoderLoopback, LoadedDecoder, LoopbackToken
    from serverlight.plan import Plan
    from serverlight.runtime.credentials import Credentials
    from serverlight.runtime.decoder_client import DecoderClient, Exit, Token
    from serverlight.runtime.exits import Caps
    from serverlight.text import TextStream

    _Tokens = Generator[Token, None, None] | Generator[LoopbackToken, None, None]

__all__ = ["generate"]


@takes_options(where=CutOptions, how=SamplingOptions, within=CapOptions, trust=CredentialOptions)
def generate(
    model: ModelArgument,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What the text begins with; `-` reads it from standard input.")
    ],
    where: CutOptions,
    how: SamplingOptions,
    within: CapOptions,
    trust: CredentialOptions,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where `serverlight serve` listens; more are taken when one dies. Or its `ray+http://...`.",
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="No server: head and tail in this process.")] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write, at most.")
    ] = 128,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.")
    ] = None,
    return_cut: ReturnCutOption = None,
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Continue a text with a language model whose head runs here and whose tail runs on a server.

    Text goes to standard output as it comes. Should the server die, the sequence is replayed to another one, or to the
    same one when it is back.

    Example: `serverlight generate demo-lm --server 127.0.0.1:50051 --cut layers.4 "Once upon a time"`
    """
    import torch

    from serverlight.generation import LoadedDecoder
    from serverlight.text import Tokenizer

    check_writable("json", json)
    if bool(server) == local:
        raise ConfigError("server", "give --server HOST:PORT, or --local for one process, one of them")
    planned = where.read_for_text(model)
    sampling, caps, credentials = how.read(), within.read(), trust.read(*server or [])
    if local and caps:
        raise ConfigError("local", "no cut moves in one process; leave --device-memory and --step-deadline away")
    torch.set_num_threads(threads)
    numbers = read_dtype(dtype)
    assert planned.cut is not None
    head = LoadedDecoder.head(model, planned.cut, dtype=numbers)
    tokenizer = Tokenizer.load(model, head.part.vocab_size)
    plan = planned.plan_for(head.name, head.revision, return_cut)
    ids = tokenizer.encode(sys.stdin.read() if prompt == "-" else prompt)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop_ids": tokenizer.stop_ids}
    exits: list[Exit] = []
    stream: _Tokens
    if local:
        stream = _loopback(plan, head, numbers).stream(ids, **settings)
    else:
        client = _client(plan, head, numbers, server or [], caps, credentials)
        stream = client.stream(ids, on_exit=exits.append, **settings)
    run = _Run(plan=plan, hidden_size=head.part.hidden_size, num_prompt_tokens=len(ids), exits=exits)
    try:
        _write(run, stream, tokenizer.stream(ids, stop or ()), tokenizer.stop_ids, quiet=json == STDOUT)
    finally:
        if json:
            write_json(json, run.document())
        if json != STDOUT and run.token_ids:
            print(run.summary(), file=sys.stderr)


def _loopback(plan: Plan, head: LoadedDecoder, dtype: Any) -> DecoderLoopback:
    from serverlight.codec import warm_up
    from serverlight.generation import DecoderLoopback, LoadedDecoder

    warm_up()
    tail = LoadedDecoder.tail(head.name, plan.return_cut or plan.cut, dtype=dtype)
    between = LoadedDecoder.middle(head.name, plan.cut, plan.return_cut, dtype=dtype) if plan.return_cut else None
    return DecoderLoopback(plan, head, tail, between)


def _client(
    plan: Plan, head: LoadedDecoder, dtype: Any, addresses: list[str], caps: Caps | None, credentials: Credentials
) -> DecoderClient:
    from serverlight.generation import LoadedDecoder
    from serverlight.runtime.decoder_client import DecoderClient

    tail = LoadedDecoder.tail(head.name, plan.return_cut, dtype=dtype) if plan.return_cut else None
    return DecoderClient(addresses, plan=plan, head=head, tail=tail, caps=caps, credentials=credentials)


def _write(run: _Run, stream: _Tokens, text: TextStream, stop_ids: frozenset[int], *, quiet: bool) -> None:
    with contextlib.closing(stream), writer(quiet=quiet) as shown:
        try:
            for token in stream:
                run.count(token)
                piece = "" if token.token_id in stop_ids else text.push(token.token_id)
                run.text += piece
                shown.write(piece, run.summary())
                if text.is_stopped:
                    break
        finally:  # also where no server could go on: the text so far is the user's
            rest = text.finish()
            run.text += rest
            shown.write(rest, run.summary())


@dataclass(kw_only=True, slots=True)
class _Run:
    """What a text took so far."""

    plan: Plan
    hidden_size: int
    num_prompt_tokens: int
    exits: list[Exit]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_recoveries: int = 0
    _uplink_bytes: list[int] = field(default_factory=list)
    _server_ms: list[float] = field(default_factory=list)
    _times_s: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def count(self, token: Token | LoopbackToken) -> None:
        """Takes note of one token."""
        self.token_ids.append(token.token_id)
        self._times_s.append(time.perf_counter())
        from serverlight.generation import LoopbackToken

        if isinstance(token, LoopbackToken):
            self._uplink_bytes.append(token.frame_bytes)
            self._server_ms.append(token.tail_ms)
            return
        self._uplink_bytes.append(token.cost.uplink_bytes)
        self._server_ms.append(token.cost.server.total_ms)
        self.num_recoveries = token.num_recoveries

    def summary(self) -> str:
        """One line for people."""
        if not self.token_ids:
            return "the prompt is on its way"
        figures = self.figures()
        step = (
            ""
            if len(self.token_ids) < 2
            else (
                f", {figures['tokens_per_s']:.1f} tokens/s, a token {format_bytes(figures['uplink_bytes_per_token'])} bytes up "
                f"and {figures['server_ms_per_token']:.2f} ms of the server"
            )
        )
        events = [str(exit) for exit in self.exits]
        if self.num_recoveries:
            events.append(f"{self.num_recoveries} x over to another server")
        return "; ".join(
            [
                f"{len(self.token_ids)} tokens after a prompt of {self.num_prompt_tokens} "
                f"({format_bytes(figures['prompt_uplink_bytes'])} bytes up, {figures['first_token_ms']:.0f} ms){step}",
                *events,
            ]
        )

    def figures(self) -> dict[str, Any]:
        """What it took. A token's share is told without the first one, which has the prompt's."""
        times, later = self._times_s, len(self.token_ids) - 1
        num_elements = (self.num_prompt_tokens + later) * self.hidden_size
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "prompt_uplink_bytes": self._uplink_bytes[0],
            "first_token_ms": (times[1] - times[0]) * 1e3,
            "tokens_per_s": later / (times[-1] - times[1]) if later else None,
            "uplink_bytes_per_token": statistics.fmean(self._uplink_bytes[1:]) if later else None,
            "server_ms_per_token": statistics.fmean(self._server_ms[1:]) if later else None,
            "bits_per_element": 8 * sum(self._uplink_bytes) / num_elements,
        }

    def document(self) -> dict[str, Any]:
        """Everything, for machines."""
        from serverlight.evaluation import describe_environment

        return {
            **describe_environment(),
            "plan": self.plan.to_dict(),
            "text": self.text,
            "token_ids": self.token_ids,
            **(self.figures() if self.token_ids else {}),
            "num_recoveries": self.num_recoveries,
            "exits": [dataclasses.asdict(exit) for exit in self.exits],
        }

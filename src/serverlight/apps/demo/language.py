"""The demo of a language model: a device writes greedily with servers that have all, some or nothing of the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from serverlight.apps.demo.children import Family
from serverlight.apps.demo.modes import DEVICE, FP16, OURS, SLICER
from serverlight.apps.demo.settings import codec_for_text, cut_for_text
from serverlight.apps.demo.writing import TokenConnection, WholeModel
from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.evaluation.tasks.tokens import token_ids
from serverlight.generation import LoadedDecoder, check_length, layer_of
from serverlight.huggingface import find_folder
from serverlight.link import LinkConfig, LinkProxy
from serverlight.plan import Plan
from serverlight.runtime.decoder_client import DecoderClient

__all__ = ["FULL", "MODES", "PROMPTS", "LanguageSetup", "Text", "measure_writing", "prepare_writing"]

FULL = "tokens"
"""The mode in which token ids go up, and the server does it all."""

MODES = (FULL, FP16, SLICER, OURS, DEVICE)

PROMPTS = (
    "Once upon a time there was a poor miller who had three sons, and",
    "The old woman looked out of the window and said,",
    "“I do not know where the path goes,” said the boy, “but",
    "It was a cold evening in December, and the snow",
    "The king had promised his daughter to whoever could",
    "She opened the little door very carefully, and there",
    "When the ship had been at sea for seven days, the captain",
    "There lived in the forest, not far from the village, a",
)
"""Beginnings in the manner of the books that the shipped model was trained on, taken from none of them."""

WARM_UP_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageSetup:
    """What to run."""

    model: str
    """Folder, hub id or shipped name."""

    revision: str
    """Digest of the checkpoint."""

    cut: str
    """Where it is cut, such as ``layers.4``."""

    vocab_size: int
    prompts: Sequence[list[int]]
    """Token ids of each."""

    num_tokens: int
    """Tokens to write after each prompt."""

    link: LinkConfig | None
    """The device's link; none for plain loopback."""

    chosen: CodecConfig | None = None
    """The settings that a search chose for the cut, in the mode of their profile."""

    def codec(self, mode: str) -> CodecConfig:
        """Settings of the codec in a mode that has a cut."""
        if mode == FP16:
            return CodecConfig(profile=FP16)
        if self.chosen is not None and self.chosen.profile == mode:
            return self.chosen
        return codec_for_text(self.model, self.cut, mode)


@dataclass(kw_only=True, slots=True)
class Text:
    """What was written after one prompt in one mode, and what that took."""

    token_ids: list[int] = field(default_factory=list)
    num_likeliest: int = 0
    """Tokens that the uncut model, given the same text so far, would have written too."""

    seconds: list[float] = field(default_factory=list)
    """From the token before, or the prompt, to each token."""

    uplink_bytes: int = 0
    """All that was sent for it, the prompt included."""

    step_bytes: int = 0
    """Of these, those sent for the tokens after the first."""

    device_ms: float = 0.0
    """Head and encoding, or the whole model."""

    server_cpu_ms: float = 0.0
    """CPU time of the whole server process meanwhile."""


Writer: TypeAlias = Callable[[list[int], int], Text]


def prepare_writing(
    spec: str,
    cut: str | None,
    num_prompts: int | None,
    num_tokens: int,
    link: Any,
    chosen: CodecConfig | None = None,
) -> LanguageSetup:
    """Reads the model's settings and turns the prompts into token ids; ``chosen`` are a search's settings for the cut.

    Raises :class:`ConfigError` for a cut that leaves one side without layers, :class:`ContextExceeded` for more tokens than
    the model holds, and what loading raises.
    """
    embedding = LoadedDecoder.head(spec, "layers.0", dtype=torch.float32)
    num_layers = embedding.part.num_layers
    cut = cut or cut_for_text(num_layers)
    if not 0 < layer_of(cut) < num_layers:
        raise ConfigError(
            "cut", f"{cut!r} leaves one side without layers; name one of layers.1 to layers.{num_layers - 1}"
        )
    prompts = token_ids(find_folder(spec, ["tokenizer.json"]), PROMPTS[:num_prompts])
    for prompt in prompts:
        check_length(embedding.part, prompt, num_tokens)
    return LanguageSetup(
        model=spec,
        revision=embedding.revision,
        cut=cut,
        vocab_size=embedding.part.vocab_size,
        prompts=prompts,
        num_tokens=num_tokens,
        link=link,
        chosen=chosen,
    )


def measure_writing(
    setup: LanguageSetup, *, on_ready: Callable[[], None], on_text: Callable[[], None]
) -> dict[str, list[Text]]:
    """A text after each prompt in every mode; the modes take turns, so that a slow minute falls on all of them.

    Raises :class:`~serverlight.errors.PeerUnavailable`, with its last words, when a server process fails.
    """
    with contextlib.ExitStack() as stack:
        whole = WholeModel.load(setup.model)
        writers = _start(setup, whole, stack)
        for write in writers.values():
            write(setup.prompts[0], WARM_UP_TOKENS)
        on_ready()
        texts: dict[str, list[Text]] = {mode: [] for mode in MODES}
        for i, prompt in enumerate(setup.prompts):
            for mode in _rotated(MODES, i):
                text = writers[mode](prompt, setup.num_tokens)
                text.num_likeliest = whole.num_likeliest(prompt, text.token_ids)
                texts[mode].append(text)
                on_text()
    return texts


def _start(setup: LanguageSetup, whole: WholeModel, stack: contextlib.ExitStack) -> dict[str, Writer]:
    """Two server processes, and a writer for each mode."""
    family = stack.enter_context(Family())
    tail = ["serverlight", "serve", setup.model, "--cut", setup.cut, "--dtype", "float32", "--port", "0"]
    servers = {
        family.start("full server", "serverlight.apps.demo.writing", setup.model): "full",
        family.start("server", *tail, "--json", "-", "--until-eof"): "tail",
    }
    head = LoadedDecoder.head(setup.model, setup.cut, dtype=torch.float32)
    addresses = {servers[child]: message["address"] for child, message in (family.hear() for _ in servers)}
    if setup.link:
        for i, (name, address) in enumerate(addresses.items()):
            addresses[name] = stack.enter_context(LinkProxy(address, setup.link, seed=i)).address
    connection = TokenConnection(addresses["full"], setup.vocab_size)
    stack.callback(connection.close)
    stamp = _Stamp()
    writers: dict[str, Writer] = {FULL: _FullServer(connection), DEVICE: lambda ids, n: _write_alone(whole, ids, n)}
    for mode in (FP16, SLICER, OURS):
        plan = Plan(model=setup.model, revision=setup.revision, cut=setup.cut, codec=setup.codec(mode))
        writers[mode] = _CutModel(DecoderClient([addresses["tail"]], plan=plan, head=head), stamp)
    return writers


def _rotated(modes: Sequence[str], by: int) -> Iterator[str]:
    for i in range(len(modes)):
        yield modes[(i + by) % len(modes)]


# -- one text ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stamp:
    """CPU time of a server process as it last said, so that all it does between two texts counts."""

    cpu_ms: float = 0.0

    def since(self, now_ms: float) -> float:
        """Milliseconds since the stamp before; this is the new one."""
        spent_ms, self.cpu_ms = now_ms - self.cpu_ms, now_ms
        return spent_ms


class _FullServer:
    """Token ids of the prompt up, tokens down as they are written."""

    def __init__(self, connection: TokenConnection) -> None:
        self._connection, self._stamp = connection, _Stamp()

    def __call__(self, prompt: list[int], num_tokens: int) -> Text:
        text, before_s = Text(), time.perf_counter()
        text.uplink_bytes = self._connection.ask(prompt, num_tokens)
        for token, cpu_ms in self._connection.answers(num_tokens):
            before_s = _add(text, token, before_s)
            text.server_cpu_ms += self._stamp.since(cpu_ms)
        return text


class _CutModel:
    """Frames up, tokens down; all modes with a cut share a server process, and so its stamp."""

    def __init__(self, client: DecoderClient, stamp: _Stamp) -> None:
        self._client, self._stamp = client, stamp

    def __call__(self, prompt: list[int], num_tokens: int) -> Text:
        text, before_s = Text(), time.perf_counter()
        with contextlib.closing(self._client.stream(prompt, max_new_tokens=num_tokens)) as tokens:
            for token in tokens:
                before_s, cost = _add(text, token.token_id, before_s), token.cost
                text.uplink_bytes += cost.uplink_bytes
                text.step_bytes += cost.uplink_bytes if len(text.token_ids) > 1 else 0
                text.device_ms += cost.head_ms + cost.encode_ms
                text.server_cpu_ms += self._stamp.since(cost.server.process_cpu_ms)
        return text


def _write_alone(whole: WholeModel, prompt: list[int], num_tokens: int) -> Text:
    text, before_s = Text(), time.perf_counter()
    for token in whole.write(prompt, num_tokens):
        before_s = _add(text, token, before_s)
    text.device_ms = 1e3 * sum(text.seconds)
    return text


def _add(text: Text, token: int, before_s: float) -> float:
    now_s = time.perf_counter()
    text.token_ids.append(token)
    text.seconds.append(now_s - before_s)
    return now_s

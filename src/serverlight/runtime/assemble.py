"""Puts a loaded model, its cuts and what runs them together to what a server holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from serverlight.codec import Basis, CodecConfig, warm_up
from serverlight.errors import ConfigError
from serverlight.models import LoadedModel
from serverlight.partition import CutPoint, Partition, partition
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.runtime.catalogue import Engine
from serverlight.runtime.server_config import ServerConfig
from serverlight.runtime.worker import Worker

if TYPE_CHECKING:
    from serverlight.generation import LoadedDecoder

__all__ = ["make_engine"]

_ELEMENT_BYTES, _MESSAGE_BYTES = 8, 1 << 16
"""More than an element takes in any frame or tensor, and than all else of a message."""


def make_engine(
    model: LoadedModel | LoadedDecoder,
    cuts: Sequence[str] | None,
    *,
    codec: CodecConfig | None = None,
    bases: Mapping[str, Basis] | None = None,
    config: ServerConfig | None = None,
    parts: Partition | None = None,
) -> Engine:
    """A model that is ready to be served; arguments and errors are those of :class:`serverlight.runtime.server.Server`.

    Without cuts, ``None``, it is served at all that `serverlight cuts` lists, or that its part of a language model reaches.
    """
    if cuts is not None and not cuts:
        raise ConfigError("cuts", "name at least one cut; `serverlight cuts MODEL` lists them")
    config = config or ServerConfig()
    if not isinstance(model, LoadedModel):
        if parts is not None:
            raise ConfigError("parts", "a language model has none; leave it away")
        if bases:
            raise ConfigError("bases", "sessions of language models take no frames under a basis yet; leave it away")
        return _of_decoder(model, cuts, codec, config)
    parts = parts or partition(model.module, model.example_inputs)
    # A cut may have aliases; the handshake compares its one name.
    points = parts.offered if cuts is None else tuple(parts.cut(cut) for cut in cuts)
    named = {parts.cut(cut).name: basis for cut, basis in (bases or {}).items()}
    names = [point.name for point in points]
    warm_up()
    return Engine(
        plans=_plans(model, names, {name: basis.digest.hex() for name, basis in named.items()}),
        runner=Worker(model, parts, names, bases=named, max_batch=config.max_batch),
        codec=codec,
        head_shares={point.name: _head_share(point) for point in points},
        most_bytes={point.name: _most_bytes(_elements(point) * config.max_batch) for point in points if point.index},
        num_bytes=_num_bytes(model.module),
    )


def _of_decoder(
    model: LoadedDecoder, cuts: Sequence[str] | None, codec: CodecConfig | None, config: ServerConfig
) -> Engine:
    from serverlight.generation import layer_of  # transformers, which vision models do without
    from serverlight.partition.decoder import DecoderWhole
    from serverlight.runtime.decoders import DecoderWorker

    part = model.part
    cuts = [f"layers.{layer}" for layer in range(part.first, part.last + 1)] if cuts is None else cuts
    warm_up()
    worker = DecoderWorker(model, cuts, max_tokens=config.max_session_tokens, max_kv_bytes=config.max_kv_bytes)
    sends = TOKEN_IDS if isinstance(part, DecoderWhole) else None
    plans = _plans(model, cuts)
    return Engine(
        plans={c: dataclasses.replace(plan, return_cut=model.return_cut, sends=sends) for c, plan in plans.items()},
        runner=worker,
        codec=codec,
        head_shares={cut: layer_of(cut) / part.num_layers for cut in cuts},
        most_bytes=dict.fromkeys(cuts, _most_bytes(worker.most_elements)),
        num_bytes=_num_bytes(part),
    )


def _head_share(cut: CutPoint) -> float:
    return cut.head_macs / max(1, cut.head_macs + cut.tail_macs)


def _elements(cut: CutPoint) -> int:
    return sum(spec.elements_per_sample for spec in cut.tensors)


def _most_bytes(num_elements: int) -> int:
    return _MESSAGE_BYTES + _ELEMENT_BYTES * num_elements


def _plans(
    model: LoadedModel | LoadedDecoder, cuts: Sequence[str], bases: Mapping[str, str] | None = None
) -> dict[str, Plan]:
    digests = bases or {}
    return {cut: Plan(model=model.name, revision=model.revision, cut=cut, basis=digests.get(cut)) for cut in cuts}


def _num_bytes(module: nn.Module) -> int:
    """What parameters and buffers take; one that several share counts once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensors.values())

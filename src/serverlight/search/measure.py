"""One call that measures what a model costs on this machine."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from serverlight.codec import CodecConfig
from serverlight.environment import describe_environment
from serverlight.errors import ConfigError
from serverlight.models import LoadedModel, load_model
from serverlight.models.checkpoint import checkpoint_digest
from serverlight.models.loader import is_language_model
from serverlight.partition import partition
from serverlight.partition.inputs import as_call
from serverlight.runtime.memory import keep_freed_memory
from serverlight.search.codec_cost import (
    OTHER_SETTINGS,
    OTHER_SETTINGS_OF_MAPS,
    measure_codec,
    sample_map,
    sample_signed_map,
    sample_tokens,
)
from serverlight.search.depth import anchors_of
from serverlight.search.energy import find_sources, measure_watts
from serverlight.search.profile import Profile, Side
from serverlight.search.profile_cache import ProfileCache
from serverlight.search.rehearsal import (
    as_rehearsed,
    codec_as_rehearsed,
    message_cost,
    rehearse_single_shot,
)
from serverlight.search.serving import served
from serverlight.search.single_shot import candidate_cuts, example_batch, measure_single_shot, weight_bytes
from serverlight.search.steady import CoreWatch

__all__ = ["Progress", "profile_model"]

Progress = Callable[[int, int], None]
"""Is told how many steps are done, of how many."""

OTHERS_S = 3.0
"""For each codec that is not the default: half the time of that."""

DEVICE_BATCHES, SERVER_BATCHES = (1, 2), (1, 2, 4, 8, 16)


def profile_model(
    model: str,
    *,
    on: Side | None = None,
    dtype: str | None = None,
    threads: int = 1,
    fresh: bool = False,
    cache: ProfileCache | None = None,
    progress: Progress = lambda done, total: None,
) -> Profile:
    """Measures a model on this machine, or finds what was measured before.

    It takes half a minute to two for the shipped models; what was measured while others had a part of the processor is measured
    again, for a further 20 s at the most. Times are those of the runtime: heads of one sample or prompt, tails
    in the server's own worker, and what messages add by a rehearsal over loopback with a server in a process of its own. Unless it
    is to be a device, this process keeps freed memory from then on, as a server does.

    Args:
        model: What the commands take for MODEL.
        on: Which side the machine is to be; ``device`` leaves out batches. Both sides by default.
        dtype: Element type of a language model's weights, such as ``bfloat16``; as stored by default.
        threads: Threads of PyTorch, on both sides.
        fresh: Measure anew, even where the cache has a profile.
        cache: Where profiles are kept; by default in the user's cache folder.
        progress: Hears how far it is.

    Raises:
        ConfigError: no such side.
        ModelError: there is no such model, or it cannot be loaded.
        NotExportable: it cannot be cut at all.
        PeerUnavailable: the server of the rehearsal did not start.
    """
    if on not in (None, "device", "server"):
        raise ConfigError("on", f"must be device or server, got {on!r}; leave it out for both")
    cache, is_language, before = cache or ProfileCache(), is_language_model(model), torch.get_num_threads()
    torch.set_num_threads(threads)
    if on != "device":
        keep_freed_memory()  # as `serverlight serve` does, whose tails these are
    try:
        loaded = None if is_language else load_model(model)
        revision = checkpoint_digest(model) if loaded is None else loaded.revision
        machine = {**describe_environment(), "side": on}
        key = {**machine, "date": None, "model": model, "revision": revision, "dtype": dtype}
        profile = None if fresh else cache.find(key)
        if profile is None:
            if loaded is None:
                profile = _of_language_model(model, revision, machine, dtype, progress)
            else:
                profile = _of_single_shot(loaded, machine, progress)
            cache.store(key, profile)
        return profile
    finally:
        torch.set_num_threads(before)


def _of_single_shot(model: LoadedModel, machine: dict[str, Any], progress: Progress) -> Profile:
    batches = DEVICE_BATCHES if machine["side"] == "device" else SERVER_BATCHES
    watch = CoreWatch()
    with served(model.name, threads=machine["torch_threads"]) as serving:
        parts = partition(model.module, model.example_inputs)
        names = [cut.name for cut in candidate_cuts(parts)]
        rehearsed = [names[depth] for depth in anchors_of(len(names))]
        advance = _counter(progress, len(batches) + len(rehearsed) + 3)
        cuts = measure_single_shot(model, parts, batches=batches, watch=watch, advance=advance)
        codec = measure_codec(CodecConfig(), sample_map)
        others = {
            name: measure_codec(other, sample_signed_map if name == "cosine" else sample_map, budget_s=OTHERS_S)
            for name, other in OTHER_SETTINGS_OF_MAPS.items()
        }
        advance()
        exchanges = rehearse_single_shot(
            model, parts, serving.address(rehearsed), rehearsed, watch=watch, advance=advance
        )
    args, kwargs = as_call(example_batch(model, 1))
    watts = _watts(lambda: model.module(*args, **kwargs))
    advance()
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in model.module.parameters()}
    return Profile(
        model=model.name,
        revision=model.revision,
        kind="single-shot",
        machine={**machine, "loop_ms": watch.usual_ms},
        dtype=", ".join(sorted(dtypes)) or "float32",
        cuts=as_rehearsed(cuts, exchanges),
        codec=codec_as_rehearsed(codec, cuts, exchanges),
        other_codecs={
            name: codec_as_rehearsed(other, cuts, exchanges, rehearsed=codec) for name, other in others.items()
        },
        message=message_cost(exchanges),
        watts=watts,
        weight_bytes=weight_bytes(model.module),
    )


def _of_language_model(
    model: str, revision: str, machine: dict[str, Any], dtype: str | None, progress: Progress
) -> Profile:
    # They bring transformers, which single-shot models do without.
    from serverlight.generation import LANGUAGE_CODEC
    from serverlight.search.language import measure_language
    from serverlight.search.language_parts import LanguageParts
    from serverlight.search.language_rehearsal import rehearse_language

    watch = CoreWatch()
    with served(model, threads=machine["torch_threads"], dtype=dtype) as serving:
        parts = LanguageParts.load(model, dtype=getattr(torch, dtype) if dtype else None)
        head = parts.head.part
        rehearsed = [f"layers.{depth}" for depth in anchors_of(parts.num_layers + 1)]
        advance = _counter(progress, len(rehearsed) + 5)
        cuts = measure_language(parts, on=machine["side"], watch=watch, advance=advance)
        sample = functools.partial(sample_tokens, hidden=head.hidden_size)
        codec = measure_codec(LANGUAGE_CODEC, sample)
        others = {name: measure_codec(other, sample, budget_s=OTHERS_S) for name, other in OTHER_SETTINGS.items()}
        advance()
        exchanges = rehearse_language(parts, serving.address(rehearsed), rehearsed, watch=watch, advance=advance)
    token = torch.zeros(1, 1, dtype=torch.int64)
    watts = _watts(lambda: head(token))
    advance()
    return Profile(
        model=model,
        revision=revision,
        kind="language-model",
        machine={**machine, "loop_ms": watch.usual_ms},
        dtype=str(head.dtype).removeprefix("torch."),
        cuts=as_rehearsed(cuts, exchanges),
        codec=codec_as_rehearsed(codec, cuts, exchanges),
        other_codecs={
            name: codec_as_rehearsed(other, cuts, exchanges, rehearsed=codec) for name, other in others.items()
        },
        message=message_cost(exchanges),
        watts=watts,
        weight_bytes=cuts[-1].head_weight_bytes,
    )


def _watts(work: Callable[[], object]) -> float | None:
    with torch.inference_mode():
        return measure_watts(work, find_sources())


def _counter(progress: Progress, total: int) -> Callable[[], None]:
    """Tells the progress from the first call on, one step at a time."""
    steps = itertools.count(1)
    progress(0, total)
    return lambda: progress(next(steps), total)

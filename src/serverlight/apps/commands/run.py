"""``serverlight run``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.cut_options import CutOptions
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import DataOption, JsonOption, LimitOption, ModelArgument, ThreadsOption
from serverlight.apps.security_options import CredentialOptions
from serverlight.apps.terminal import (
    STDOUT,
    check_writable,
    format_bytes,
    format_times,
    print_lines,
    print_table,
    progress_bar,
    write_json,
)
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.models import LoadedModel
    from serverlight.partition import CutPoint
    from serverlight.plan import Plan
    from serverlight.runtime import Client, InferResult

__all__ = ["run"]

FP16_BYTES = 2

EXAMPLE_REQUESTS = 10
"""Requests for a model without images of its own, unless --limit says otherwise."""


@takes_options(where=CutOptions, trust=CredentialOptions)
def run(
    model: ModelArgument,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where `serverlight serve` listens.")],
    where: CutOptions,
    trust: CredentialOptions,
    data: DataOption = None,
    limit: LimitOption = None,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Run the head of a model here and its tail on a server, one sample a request, and say what it takes.

    A vision model runs on labelled images; any other model on its example inputs, again and again. Settings that are
    not given are the codec's defaults; without a cut those that a search chose, or mild ones.

    Example: `serverlight run demo-vision --server 127.0.0.1:50051 --cut layer2.2 --sparsity 0.8`
    """
    import torch

    from serverlight.apps.demo.settings import middle_cut
    from serverlight.models import load_model
    from serverlight.partition import partition
    from serverlight.runtime import connect

    check_writable("json", json)
    planned, credentials = where.read(model), trust.read(server)
    if planned.sends:
        raise ConfigError("token_ids", "are for language models; leave them away, or run `serverlight generate`")
    torch.set_num_threads(threads)
    loaded = load_model(model)
    parts = partition(loaded.module, loaded.example_inputs)
    if planned.cut is None:
        planned = planned.built_in(model, *middle_cut(model, parts))
    plan = planned.plan_for(loaded.name, loaded.revision)
    samples = _samples(loaded, data, limit)
    with connect(server, plan=plan, model=parts, basis=planned.basis, credentials=credentials) as client:
        results = _send(client, samples.inputs)
    figures = _figures(client.plan, parts.cut(plan.cut), samples, results)
    if json:
        write_json(json, figures)
    if json != STDOUT:
        _print(figures)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Samples:
    """What to send, and what is known of it."""

    inputs: Sequence[Any]
    labels: Sequence[int] | None = None
    jpeg_bytes: float | None = None


def _samples(model: LoadedModel, data: str | None, limit: int | None) -> _Samples:
    if model.preprocess is None:
        if data is not None:
            raise ConfigError("data", f"{model.name!r} has no known image preprocessing; leave --data away")
        return _Samples(inputs=[_first_sample(model.example_inputs)] * (limit or EXAMPLE_REQUESTS))
    from serverlight.apps.vision import JPEG_QUALITY, load_model_images
    from serverlight.models.images import encode_jpeg

    images = load_model_images(model, data, limit)
    return _Samples(
        inputs=[model.preprocess(image[None]) for image in images.images],
        labels=images.labels.tolist(),
        jpeg_bytes=statistics.fmean(len(encode_jpeg(image, JPEG_QUALITY)) for image in images.images),
    )


def _first_sample(example: Any) -> Any:
    """Example inputs hold two samples."""
    if isinstance(example, dict):
        return {name: _first_sample(value) for name, value in example.items()}
    if isinstance(example, tuple):
        return tuple(map(_first_sample, example))
    return example[:1] if hasattr(example, "shape") and example.shape[:1] == (2,) else example


def _send(client: Client, inputs: Sequence[Any]) -> list[InferResult]:
    client.infer(inputs[0])  # the first request pays for memory and code that later ones find ready
    with progress_bar("requests", len(inputs)) as (bar, task):
        return [_send_one(client, x, lambda: bar.advance(task)) for x in inputs]


def _send_one(client: Client, inputs: Any, done: Callable[[], None]) -> InferResult:
    result = client.infer_detailed(inputs)
    done()
    return result


def _figures(plan: Plan, cut: CutPoint, samples: _Samples, results: Sequence[InferResult]) -> dict[str, Any]:
    from serverlight.apps.vision import predicted_class
    from serverlight.evaluation import describe_environment

    uplink_bytes = statistics.fmean(result.uplink_bytes for result in results)
    frame_bytes = statistics.fmean(result.frame_bytes for result in results)
    elements = sum(spec.elements_per_sample for spec in cut.tensors if spec.is_feature)
    accuracy = None
    if samples.labels is not None:
        right = [predicted_class(r.outputs) == label for r, label in zip(results, samples.labels, strict=True)]
        accuracy = statistics.fmean(right)
    return {
        **describe_environment(),
        "plan": plan.to_dict(),
        "requests": len(results),
        "accuracy": accuracy,
        "uplink_bytes_per_request": uplink_bytes,
        "frame_bytes_per_request": frame_bytes,
        "bits_per_element": 8 * frame_bytes / elements if elements else None,
        "ratio_vs_fp16": FP16_BYTES * cut.elements_per_sample / uplink_bytes,
        "ratio_vs_jpeg": samples.jpeg_bytes / uplink_bytes if samples.jpeg_bytes else None,
        "ms": {part: _spread(times) for part, times in _times_ms(results)},
    }


def _times_ms(results: Sequence[InferResult]) -> Iterator[tuple[str, list[float]]]:
    """Where the time went: the server's parts lie within the wait."""
    yield "head", [r.head_ms for r in results]
    yield "encode", [r.encode_ms for r in results]
    yield "wait", [r.wait_ms for r in results]
    for part in ("queue", "decode", "tail", "cpu"):
        yield f"server {part}", [getattr(r.server, f"{part}_ms") for r in results]


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(ordered),
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
    }


def _print(figures: dict[str, Any]) -> None:
    plan = figures["plan"]
    lines = [
        f"{plan['model']} cut at {plan['cut']}, profile {plan['codec']['profile']}, {figures['requests']} requests"
    ]
    if figures["accuracy"] is not None:
        lines.append(f"accuracy {100 * figures['accuracy']:.2f} %")
    rate = f", {figures['bits_per_element']:.3f} bits an element in the frames" if figures["bits_per_element"] else ""
    lines.append(
        f"{format_bytes(figures['uplink_bytes_per_request'])} bytes up a request (every byte of the message){rate}"
    )
    against = [f"{format_times(figures['ratio_vs_fp16'], 'less', 'more')} than the bare values of fp16 features"]
    if figures["ratio_vs_jpeg"]:
        against.append(f"{format_times(figures['ratio_vs_jpeg'], 'less', 'more')} than a JPEG")
    print_lines(*lines, " and ".join(against))
    spreads = [
        [part, *(f"{times[key]:.2f}" for key in ("mean", "p50", "p95"))] for part, times in figures["ms"].items()
    ]
    print_table(["time, ms", "mean", "p50", "p95"], spreads)

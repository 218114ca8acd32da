"""A server's sums for Prometheus; the only file that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from serverlight.runtime.tally import PARTS, Histogram, Series, Tally, Work

__all__ = ["Metrics"]

_SERIES = ("model", "cut", "kind")
_UP, _DOWN = "up", "down"

_HISTOGRAMS: dict[str, tuple[str, Callable[[Work], Histogram]]] = {
    "serverlight_queue_seconds": ("From reading a request to starting on it.", lambda work: work.queue),
    "serverlight_request_seconds": ("From reading a request to its reply.", lambda work: work.total),
    "serverlight_batch_size": ("Requests that ran together, counted at each of them.", lambda work: work.batch),
    "serverlight_bits_per_element": ("Bits of frames for each element that they hold.", lambda work: work.bits),
}


class Metrics:
    """What ``/metrics`` answers.

    Args:
        tally: the sums; whoever calls :meth:`render` sees to it that they keep still meanwhile.
        gauges: name without its prefix, to what it says and how to find it out; one that ends in ``_total`` only rises.
        info: labels of ``serverlight_info``: versions, say.
    """

    def __init__(
        self, tally: Tally, gauges: Mapping[str, tuple[str, Callable[[], float]]], info: Mapping[str, str]
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Sums(tally, gauges, info))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text that a scraper with this ``Accept`` header reads, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Sums(Collector):
    """Makes the families anew for each scrape: between scrapes they cost nothing."""

    def __init__(
        self, tally: Tally, gauges: Mapping[str, tuple[str, Callable[[], float]]], info: Mapping[str, str]
    ) -> None:
        self._tally, self._gauges, self._info = tally, gauges, info

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("serverlight", "What is served, and by which version.", value=dict(self._info))
        for name, (text, value) in self._gauges.items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"serverlight_{name}", text, value=value())
        work = self._tally.work
        yield from self._requests(work)
        for name, (text, of) in _HISTOGRAMS.items():
            yield _histograms(name, text, {series: of(done) for series, done in work.items()})
        yield from self._sessions()

    def _requests(self, work: Mapping[Series, Work]) -> Iterator[Metric]:
        yield _counter(
            "requests", "Requests answered by the compute thread, by `ok` or the class of the error.", (*_SERIES, "code"),
            ((*series, code, count) for series, done in work.items() for code, count in done.requests.items()),
        )  # fmt: skip
        yield _counter(
            "server_seconds", "Time of the compute thread, by what it did.", (*_SERIES, "part"),
            ((*series, part, done.seconds[part]) for series, done in work.items() for part in PARTS),
        )  # fmt: skip
        yield _counter(
            "batches", "Runs of the model, each with the requests that ran together.", _SERIES,
            ((*series, done.runs) for series, done in work.items()),
        )  # fmt: skip
        yield _counter(
            "cpu_seconds", "CPU time of the compute thread.", _SERIES,
            ((*series, done.cpu_s) for series, done in work.items()),
        )  # fmt: skip
        yield _counter(
            "frames", "Payloads that came up, and outputs or frames that went down.", (*_SERIES, "direction"),
            _both_ways(work, lambda done: (done.up_frames, done.down_frames)),
        )  # fmt: skip
        yield _counter(
            "payload_bytes", "Their bytes, without the messages around them.", (*_SERIES, "direction"),
            _both_ways(work, lambda done: (done.up_bytes, done.down_bytes)),
        )  # fmt: skip
        yield _counter(
            "frame_bytes", "Bytes of frames of features that came up.", _SERIES,
            ((*series, done.frame_bytes) for series, done in work.items()),
        )  # fmt: skip
        yield _counter(
            "elements", "Elements that those frames held.", _SERIES,
            ((*series, done.elements) for series, done in work.items()),
        )  # fmt: skip
        yield _counter(
            "tokens", "Tokens chosen by the server.", _SERIES,
            ((*series, done.tokens) for series, done in work.items() if series.kind == "step"),
        )  # fmt: skip

    def _sessions(self) -> Iterator[Metric]:
        tally = self._tally
        yield _counter(
            "errors", "Requests and streams that failed, also those that never reached the compute thread.",
            ("what", "code"), ((*key, count) for key, count in tally.errors.items()),
        )  # fmt: skip
        yield _counter("streams_opened", "Streams since the start.", (), [(tally.num_streams,)])
        yield _counter(
            "sessions_opened", "Sequences that began.", ("model", "cut"),
            ((*key, count) for key, count in tally.sessions_opened.items()),
        )  # fmt: skip
        yield _counter("sessions_ended", "Sequences that ended, by how.", ("how",), tally.sessions_ended.items())
        yield _counter("exits", "Cuts that moved in mid-sequence, by how.", ("how",), tally.exits.items())


def _counter(name: str, text: str, labels: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Metric:
    family = CounterMetricFamily(f"serverlight_{name}", text, labels=tuple(labels))
    for *values, count in rows:
        family.add_metric(values, count)
    return family


def _both_ways(
    work: Mapping[Series, Work], of: Callable[[Work], tuple[int, int]]
) -> Iterator[tuple[str, str, str, str, int]]:
    for series, done in work.items():
        for direction, count in zip((_UP, _DOWN), of(done), strict=True):
            yield (*series, direction, count)


def _histograms(name: str, text: str, rows: Mapping[Series, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=_SERIES)
    for series, histogram in rows.items():
        bounds = [*map(repr, map(float, histogram.bounds)), "+Inf"]
        buckets = list(zip(bounds, histogram.cumulative(), strict=True))
        family.add_metric(series, buckets, sum_value=histogram.total)
    return family

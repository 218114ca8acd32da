"""A link that changes with time, in pieces, and files that record one."""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from serverlight.errors import ConfigError
from serverlight.link.config import LinkConfig

__all__ = ["LinkPiece", "LinkTrace"]

COLUMNS = ("time_s", "rate_bits_per_s", "delay_ms")
"""Of a file; the last may be left out."""

MAX_BYTES = 64 << 20
"""Of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPiece:
    """From some moment until the next piece begins."""

    start_s: float
    """Seconds since the start."""

    link: LinkConfig | None
    """What the link is like; ``None`` where it is cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkTrace:
    """Pieces one after the other; the last one stays. A :class:`~serverlight.link.models.LinkModel` that has no chance in it.

    >>> trace = LinkTrace.read_csv("time_s,rate_bits_per_s\\n0,1e6\\n10,0\\n12,5e5\\n")
    >>> [str(trace.at(now_s)) for now_s in (0, 9.9, 11, 60)]
    ['1mbit,0ms', '1mbit,0ms', 'None', '0.5mbit,0ms']
    """

    pieces: tuple[LinkPiece, ...]
    """In the order of time, the first at zero."""

    def __post_init__(self) -> None:
        starts_s = [piece.start_s for piece in self.pieces]
        if not starts_s or starts_s[0] != 0:
            raise ConfigError("time_s", f"a trace starts at 0 s, got {starts_s[:1]}; shift its times")
        for before_s, after_s in itertools.pairwise(starts_s):
            if not before_s < after_s < math.inf:
                raise ConfigError("time_s", f"times must rise, got {after_s!r} after {before_s!r}; sort the trace")

    @classmethod
    def of(cls, pieces: Iterable[LinkPiece], until_s: float) -> Self:
        """The pieces that begin before ``until_s``, for instance of a model that goes on for ever."""
        return cls(pieces=tuple(itertools.takewhile(lambda piece: piece.start_s < until_s, pieces)))

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Reads a CSV file; raises :class:`ConfigError`, with the line, for what is not as it should be."""
        path = pathlib.Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ConfigError("trace", f"{path} is larger than {MAX_BYTES >> 20} MiB; shorten it")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("trace", f"cannot read {path}: {error}; give a CSV file") from None
        return cls.read_csv(text)

    @classmethod
    def read_csv(cls, text: str) -> Self:
        """Reads ``time_s,rate_bits_per_s[,delay_ms]`` lines below a header; a rate of 0 is a link that is cut.

        Raises :class:`ConfigError`, with the line, for anything else.
        """
        rows = csv.reader(text.splitlines())
        header = tuple(name.strip() for name in next(rows, []))
        if header not in (COLUMNS, COLUMNS[:2]):
            raise ConfigError("trace", f"line 1 must be {','.join(COLUMNS)} (the last may be left out), got {header}")
        pieces = [_read_row(row, number, len(header)) for number, row in enumerate(rows, start=2) if row]
        if not pieces:
            raise ConfigError("trace", "has no lines below its header; write one for each change of the link")
        return cls(pieces=tuple(pieces))

    def to_csv(self) -> str:
        """The inverse of :meth:`read_csv`; jitter is not kept, nor can a link without limit be written."""
        lines = [",".join(COLUMNS)]
        for piece in self.pieces:
            if piece.link is not None and piece.link.rate_bits_per_s is None:
                raise ConfigError("rate_bits_per_s", f"the link at {piece.start_s} s has no limit; give it a rate")
            rate, delay = (piece.link.rate_bits_per_s, piece.link.delay_ms) if piece.link else (0, 0)
            lines.append(f"{piece.start_s!r},{rate!r},{delay!r}")
        return "\n".join(lines) + "\n"

    def at(self, now_s: float) -> LinkConfig | None:
        """What the link is like then; before the start as at the start, ``None`` where it is cut."""
        index = bisect.bisect_right(self.pieces, now_s, key=lambda piece: piece.start_s)
        return self.pieces[max(0, index - 1)].link

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """Its pieces, whatever the seed."""
        yield from self.pieces

    def typical(self, outage: float | None = None) -> LinkConfig:
        """One link that stands for it: the mean rate, or the one that is there but for a share ``outage`` of the time.

        The last piece counts for the mean length of the others. Raises :class:`ConfigError` where that rate is none.
        """
        starts_s = [piece.start_s for piece in self.pieces]
        last_s = starts_s[-1] / (len(starts_s) - 1) if len(starts_s) > 1 else 1.0
        lengths_s = [after - before for before, after in itertools.pairwise([*starts_s, starts_s[-1] + last_s])]
        return typical_link([piece.link for piece in self.pieces], lengths_s, outage)


def typical_link(
    links: Sequence[LinkConfig | None], lengths_s: Sequence[float], outage: float | None = None
) -> LinkConfig:
    """One link for several that each have their share of the time; see :meth:`LinkTrace.typical`."""
    check_outage(outage)
    rates = [_rate_of(link) for link in links]
    whole_s = sum(lengths_s)
    if outage is None:
        rate = sum(rate * length_s for rate, length_s in zip(rates, lengths_s, strict=True)) / whole_s
    else:
        ordered = sorted(zip(rates, lengths_s, strict=True))
        below_s = itertools.accumulate(length_s for _, length_s in ordered)
        rate = next(each for (each, _), sum_s in zip(ordered, below_s, strict=True) if sum_s > outage * whole_s)
    if not rate:
        raise ConfigError("outage", f"the link is cut for more than {outage:g} of the time; allow more")
    up_s = [0.0 if link is None else length_s for link, length_s in zip(links, lengths_s, strict=True)]
    delays = [
        sum(getattr(link, name) * length_s for link, length_s in zip(links, up_s, strict=True) if link) / sum(up_s)
        for name in ("delay_ms", "jitter_ms")
    ]
    return LinkConfig(rate_bits_per_s=None if rate == math.inf else rate, delay_ms=delays[0], jitter_ms=delays[1])


def check_outage(outage: float | None) -> None:
    """Raises :class:`ConfigError` unless it is a share of the time."""
    if outage is not None and not 0 < outage < 1:
        raise ConfigError("outage", f"must be between 0 and 1, got {outage!r}; leave it out for the mean")


def _rate_of(link: LinkConfig | None) -> float:
    if link is None:
        return 0.0
    return math.inf if link.rate_bits_per_s is None else link.rate_bits_per_s


def _read_row(row: Sequence[str], line: int, num_columns: int) -> LinkPiece:
    try:
        time_s, rate, *rest = map(float, row)
    except ValueError:
        raise ConfigError("trace", f"line {line}: cannot read {','.join(row)!r}; write numbers") from None
    if len(row) != num_columns:
        raise ConfigError("trace", f"line {line} has {len(row)} columns, the header {num_columns}; write as many")
    delay_ms = rest[0] if rest else 0.0
    for name, value in zip(COLUMNS, (time_s, rate, delay_ms), strict=True):
        if not 0 <= value < math.inf:
            raise ConfigError(name, f"line {line} of the trace: must be zero or more, got {value!r}")
    return LinkPiece(start_s=time_s, link=LinkConfig(rate_bits_per_s=rate, delay_ms=delay_ms) if rate else None)

"""What compression costs in quality and brings in bytes: a table of cuts and codec settings, measured or predicted."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from serverlight.codec.config import CodecConfig
from serverlight.errors import ConfigError
from serverlight.json_files import load_json, save_json

__all__ = ["QualityRow", "QualityTable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityRow:
    """One cut with one codec setting on the calibration set."""

    cut: str
    codec: CodecConfig

    bits_per_element: float
    """Bits of the whole frames, every header included, per element of the features."""

    frame_bytes: float
    """Mean bytes of one frame (all features of a sample, or of one token at decode steps)."""

    prompt_bits_per_element: float | None = None
    """The same for the frames of a prompt, of a language model."""

    rel_mse: float
    """Squared error of the features over their squared signal."""

    kl: float
    """Mean divergence of the outputs from those of the uncut model, in nats."""

    loss_pp: float
    """Loss in percentage points: of the task's score where labels are there, else of top-1 agreement; at least zero."""

    loss_interval_pp: tuple[float, float]
    """95 % interval of it; of a predicted row, by the errors on held-out rows."""

    is_measured: bool
    """Whether it was run in full, or is what the sampling plan predicts."""

    loss_by_position_pp: tuple[float, ...] = ()
    """Of a language model: the loss within each bucket of :attr:`QualityTable.position_edges`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityTable:
    """All rows of one model on one calibration set."""

    model: str
    revision: str
    metric: str
    """What :attr:`QualityRow.loss_pp` is of: ``agreement`` or the task's own name for its score."""

    num_samples: int
    rows: tuple[QualityRow, ...]
    held_out_error_pp: float | None = None
    """Median absolute error of predicted losses on rows that were kept from the fit; none where nothing was predicted."""

    held_out_error_bits: float | None = None
    """Median relative error of their bits per element, likewise."""

    tail_share: float | None = None
    """Runs of the tail that the table took, as a share of those of all its rows in full; runs of the uncut model aside."""

    position_edges: tuple[int, ...] = ()
    """Of a language model: bucket ``i`` holds the tokens from ``edges[i]`` up to, but without, ``edges[i + 1]``, from 0 on."""

    def front(self) -> tuple[QualityRow, ...]:
        """Of each cut, by ascending bits, the rows that no other row of it beats in both bits and divergence."""
        found, least = list[QualityRow](), dict[str, float]()
        for row in sorted(self.rows, key=lambda row: (row.bits_per_element, row.kl)):
            if row.kl < least.get(row.cut, math.inf):
                least[row.cut] = row.kl
                found.append(row)
        places = {row.cut: place for place, row in reversed(list(enumerate(self.rows)))}
        return tuple(sorted(found, key=lambda row: places[row.cut]))

    def loss_over(self, row: QualityRow, num_tokens: int) -> float:
        """Loss in percentage points over the first tokens of a sequence, prompt included.

        Beyond the longest text of the calibration set, tokens lose what its last bucket does; without positions every token
        loses what the row does.
        """
        if not row.loss_by_position_pp:
            return row.loss_pp
        ends = (*self.position_edges[1:-1], math.inf)
        tokens = [max(min(end, num_tokens) - start, 0) for start, end in zip(self.position_edges, ends, strict=False)]
        return sum(n * loss for n, loss in zip(tokens, row.loss_by_position_pp, strict=True)) / sum(tokens)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; raises :class:`ConfigError` for anything else."""
        try:
            rows = tuple(
                QualityRow(
                    **{
                        **row,
                        "codec": CodecConfig(**row["codec"]),
                        "loss_interval_pp": tuple(row["loss_interval_pp"]),
                        "loss_by_position_pp": tuple(row.get("loss_by_position_pp", ())),
                    }
                )
                for row in fields["rows"]
            )
            edges = tuple(fields.get("position_edges", ()))
            return cls(**{**fields, "rows": rows, "position_edges": edges})
        except (KeyError, TypeError) as error:
            raise ConfigError("quality", f"cannot be read: {error}; make it with `serverlight calibrate`") from None

    def save(self, path: str | pathlib.Path) -> None:
        """Writes JSON."""
        save_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Reads what :meth:`save` wrote; raises :class:`ConfigError`."""
        return cls.from_dict(load_json(path, "quality"))

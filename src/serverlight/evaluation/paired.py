"""What a cut and a codec setting cost, whatever the task: one row beside the uncut model, on the same samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.codec import CodecConfig
from serverlight.evaluation.statistics import PairedDifference

__all__ = ["PairedRow", "PairedScore", "Progress", "Settings", "ignore_progress"]

Settings = Sequence[tuple[str, CodecConfig]]
"""Names of cuts, each with the codec's settings there."""

Progress = Callable[[int, int], None]
"""Called now and then with the work done and the work in all, both in samples times settings."""

FP16_BYTES = 2
"""Bytes of one element of a plain half-precision feature, the base of every ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedScore:
    """One figure of merit of the cut model and of the uncut one; the more the better."""

    metric: str
    """What is measured: ``top-1``, ``mAP``, ``Spearman``."""

    uncut: float
    """The uncut model's figure, as a share: 1 is perfect."""

    cut: float
    """The cut model's."""

    difference: PairedDifference
    """Cut less uncut, with the 95 % interval, both models on the same samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedRow:
    """One cut with one codec setting, measured."""

    cut: str
    """Name of the cut point, as it was asked for."""

    config: CodecConfig
    """The codec's settings."""

    num_samples: int
    """Images or sentences that crossed."""

    bits_per_element: float
    """Bits of the whole message, headers and checksums included, per element that crosses the cut."""

    bytes_per_sample: float
    """Mean bytes of one sample's message: one frame for each tensor that crosses."""

    ratio_vs_fp16: float
    """Bytes of the same elements as plain halves, without any header, over :attr:`bytes_per_sample`."""

    scores: tuple[PairedScore, ...]
    """The task's own figure first."""

    agreement: float | None = None
    """Share of samples on which the answer is that of the uncut model, right or wrong; ``None`` where nothing is chosen."""

    @classmethod
    def of(
        cls,
        cut: str,
        config: CodecConfig,
        scores: tuple[PairedScore, ...],
        *,
        num_samples: int,
        num_elements: int,
        num_bytes: int,
        agreement: float | None = None,
    ) -> PairedRow:
        """A row from sums over all samples: elements that crossed, and the bytes that they took."""
        return cls(
            cut=cut,
            config=config,
            num_samples=num_samples,
            bits_per_element=8 * num_bytes / num_elements,
            bytes_per_sample=num_bytes / num_samples,
            ratio_vs_fp16=FP16_BYTES * num_elements / num_bytes,
            scores=scores,
            agreement=agreement,
        )

    @property
    def score(self) -> PairedScore:
        """The task's own figure."""
        return self.scores[0]

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "config": self.config.to_dict(),
            "scores": [dataclasses.asdict(score) for score in self.scores],
        }


def ignore_progress(done: int, total: int) -> None:
    """Progress that nobody watches."""

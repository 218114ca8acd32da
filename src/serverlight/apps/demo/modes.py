"""The ways to get an image classified that the demo compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.apps.demo.settings import codec_for
from serverlight.codec import CodecConfig
from serverlight.plan import Plan

__all__ = ["CODED", "DEVICE", "FP16", "JPEG", "OURS", "PNG", "RAW", "SLICER", "Mode", "make_modes"]

PNG, JPEG, FP16, SLICER, OURS, DEVICE = "png", "jpeg", "fp16", "slicer", "serverlight", "device"
RAW = (PNG, JPEG)
"""Modes that send the image and let the server do it all."""

CODED = (SLICER, OURS)
"""Modes that send a compressed feature; they are named after the codec's profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """One row of the table."""

    mode: str
    """``png``, ``jpeg``, ``fp16``, ``slicer``, ``serverlight`` or ``device``."""

    cut: str
    """Where the model is cut."""

    plan: Plan | None
    """What device and server agree on; none where there is no server."""

    @property
    def key(self) -> str:
        """Tells the rows of one table apart."""
        return f"{self.mode}@{self.cut}"

    @property
    def title(self) -> str:
        """For people."""
        return {
            PNG: "full server, PNG",
            JPEG: "full server, JPEG",
            FP16: f"{self.cut}, fp16",
            SLICER: f"{self.cut}, SLICER",
            OURS: f"{self.cut}, serverlight",
            DEVICE: "all on the device",
        }[self.mode]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a worker."""
        return {"mode": self.mode, "cut": self.cut, "plan": self.plan.to_dict() if self.plan else None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Mode:
        """The inverse of :meth:`to_dict`."""
        plan = Plan.from_dict(fields["plan"]) if fields["plan"] else None
        return cls(mode=fields["mode"], cut=fields["cut"], plan=plan)


def make_modes(
    model: str, revision: str, cuts: Sequence[str], *, first: str, last: str, chosen: CodecConfig | None = None
) -> list[Mode]:
    """All rows: raw input, each cut with plain halves and with both codecs, everything on the device.

    ``first`` and ``last`` are the names of the model's outermost cuts; ``chosen`` stands for the demo's settings of its profile.
    """

    def at(cut: str, codec: CodecConfig) -> Plan:
        return Plan(model=model, revision=revision, cut=cut, codec=codec)

    def settings(cut: str, profile: str) -> CodecConfig:
        return chosen if chosen is not None and chosen.profile == profile else codec_for(model, cut, profile)

    fp16 = CodecConfig(profile="fp16")
    return [
        Mode(mode=PNG, cut=first, plan=at(first, fp16)),
        Mode(mode=JPEG, cut=first, plan=at(first, fp16)),
        *(Mode(mode=FP16, cut=cut, plan=at(cut, fp16)) for cut in cuts),
        *(Mode(mode=coded, cut=cut, plan=at(cut, settings(cut, coded))) for coded in CODED for cut in cuts),
        Mode(mode=DEVICE, cut=last, plan=None),
    ]

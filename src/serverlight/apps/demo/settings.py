"""Where the demo cuts a model, and any command for which no search was made; and with which codec settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.partition import CutPoint, Partition

__all__ = ["CAUTIOUS", "MAX_CUTS", "choose_cuts", "codec_for", "codec_for_text", "cut_for_text", "middle_cut"]

DEMO_VISION_SETTINGS = {
    ("slicer", "layer1"): CodecConfig(profile="slicer", sparsity=0.75, num_groups=1, distortion=0.1),
    ("slicer", "layer2"): CodecConfig(profile="slicer", sparsity=0.75, num_groups=2, distortion=0.25),
    ("slicer", "layer3.0"): CodecConfig(profile="slicer", sparsity=0.9, num_groups=1, distortion=0.25),
    ("serverlight", "layer1"): CodecConfig(profile="serverlight", sparsity=0.92),
    ("serverlight", "layer2"): CodecConfig(profile="serverlight", sparsity=0.9),
    ("serverlight", "layer3.0"): CodecConfig(profile="serverlight", sparsity=0.94),
}
"""Settings for ``demo-vision``, chosen on its 200 calibration images, never on test images, by one rule for both profiles:
the fewest bytes of the grid that changed none of the 200 answers, neither as they are nor with the next higher sparsity.

The grid: ``serverlight eval demo-vision --data demo-vision:calibration --cut layer1 --cut layer2 --cut layer3.0 --sparsity
0.7,0.75,0.8,0.85,0.9,0.92,0.94,0.96``, with ``--profile slicer --groups 1,2,3 --distortion 0.1,0.15,0.25`` or with
``--profile serverlight``.
"""

CAUTIOUS = {
    "slicer": CodecConfig(profile="slicer", sparsity=0.6, num_groups=2, distortion=0.05),
    "serverlight": CodecConfig(profile="serverlight", sparsity=0.6),
}
"""Settings for every other model and cut: mild, since nobody has calibrated them."""

DEMO_LM_SETTINGS = {
    ("slicer", "layers.4"): CodecConfig(profile="slicer", sparsity=0.2552, num_groups=2, distortion=0.03),
    ("serverlight", "layers.4"): CodecConfig(profile="serverlight", sparsity=0.232),
}
"""Settings for ``demo-lm``, by ``python benchmarks/lm_settings.py``: the fewest bits, in frames of one token, that keep the
divergence on training text within 0.01 nats."""

CAUTIOUS_FOR_TEXT = {
    "slicer": CodecConfig(profile="slicer", sparsity=0.2, num_groups=2, distortion=0.03),
    "serverlight": CodecConfig(sparsity=0.2),
}
"""Settings for every other language model and cut; the second are :data:`serverlight.generation.LANGUAGE_CODEC`."""

MAX_CUTS = 3

WORK_ON_DEVICE = (0.5, 0.8, 0.9)
"""Shares of the multiply-accumulates that lie before the cuts of a model that the demo does not know."""


def codec_for(model: str, cut: str, profile: str) -> CodecConfig:
    """The codec settings of the demo."""
    found = DEMO_VISION_SETTINGS.get((profile, cut)) if model == "demo-vision" else None
    return found or CAUTIOUS[profile]


def codec_for_text(model: str, cut: str, profile: str) -> CodecConfig:
    """The same for language models."""
    found = DEMO_LM_SETTINGS.get((profile, cut)) if model == "demo-lm" else None
    return found or CAUTIOUS_FOR_TEXT[profile]


def cut_for_text(num_layers: int) -> str:
    """The middle of a language model."""
    return f"layers.{num_layers // 2}"


def choose_cuts(model: str, parts: Partition, wanted: list[str]) -> list[CutPoint]:
    """The cuts to show, from shallow to deep: those wanted, or some sensible ones.

    Raises :class:`ConfigError` for too many and :class:`CutNotFound` for unknown ones.
    """
    if len(wanted) > MAX_CUTS:
        raise ConfigError("cut", f"the demo shows at most {MAX_CUTS} cuts, got {len(wanted)}; leave some away")
    names = wanted or ([cut for _, cut in DEMO_VISION_SETTINGS] if model == "demo-vision" else _spread_cuts(parts))
    chosen = {cut.index: cut for cut in map(parts.cut, names)}
    for end in (parts.cuts[0], parts.cuts[-1]):
        if end.index in chosen:
            raise ConfigError("cut", f"{end.name!r} is shown anyway; name a cut between input and output")
    return [chosen[index] for index in sorted(chosen)]


def middle_cut(model: str, parts: Partition) -> tuple[str, CodecConfig]:
    """The middle one of those that the demo shows, with its settings; raises :class:`ConfigError` where there is none."""
    cuts = choose_cuts(model, parts, [])
    cut = cuts[len(cuts) // 2].name
    return cut, codec_for(model, cut, "serverlight")


def _spread_cuts(parts: Partition) -> list[str]:
    inner = [cut for cut in parts.cuts[1:-1] if cut.is_module_exit and len(cut.tensors) == 1]
    if not inner:
        raise ConfigError("cut", "the model has no place where a single tensor crosses; name a cut with --cut")
    total = parts.cuts[0].tail_macs
    nearest = [min(inner, key=lambda cut: abs(cut.head_macs - share * total)) for share in WORK_ON_DEVICE]
    return [cut.name for cut in nearest]

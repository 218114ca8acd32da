"""Options that lay a grid of codec settings over cuts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.options import parse_list

if TYPE_CHECKING:
    from serverlight.codec import CodecConfig

__all__ = ["CodecGrid", "settings_text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecGrid:
    """Lists of what the codec may be set to; every combination counts."""

    profile: Annotated[str, typer.Option(metavar="LIST", help="Codecs: serverlight, slicer, fp16.")] = "serverlight"
    sparsity: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Shares of elements to drop; of images 0.5,0.7,0.8,0.9, of texts 0.2 by default."
        ),
    ] = None
    groups: Annotated[str, typer.Option(metavar="LIST", help="Numbers of magnitude groups (slicer).")] = "1"
    distortion: Annotated[str, typer.Option(metavar="LIST", help="Distortion budgets, or `auto`.")] = "auto"
    asymmetry: Annotated[str, typer.Option(metavar="LIST", help="Worth of a negative element.")] = "1"
    asymmetry_mode: Annotated[
        str, typer.Option(metavar="LIST", help="What that weighs: the `score` of each, or the `budget` of all.")
    ] = "score"
    trellis: Annotated[bool, typer.Option("--trellis", help="Lead tokens along a trellis (serverlight).")] = False
    transform: Annotated[
        str, typer.Option(metavar="LIST", help="Of feature maps: `cosine` waves or `none` (serverlight).")
    ] = "none"
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction", help="Send what planes lack in the mean (serverlight).")
    ] = False

    def over(self, cuts: list[str], *, sparsity: str) -> list[tuple[str, CodecConfig]]:
        """Every setting at each cut, with that ``sparsity`` where none was asked for; raises :class:`ConfigError`."""
        from serverlight.codec import CodecConfig

        grid = itertools.product(
            parse_list("profile", self.profile, str),
            parse_list("sparsity", self.sparsity or sparsity, float),
            parse_list("groups", self.groups, int),
            parse_list("distortion", self.distortion, _number_or_auto),
            parse_list("asymmetry", self.asymmetry, float),
            parse_list("asymmetry_mode", self.asymmetry_mode, str),
            parse_list("transform", self.transform, str),
        )
        configs = [
            CodecConfig(
                profile=p,
                sparsity=s,
                num_groups=m,
                distortion=d,
                asymmetry=a,
                asymmetry_mode=mode,
                trellis=self.trellis and p == "serverlight",
                transform=transform if p == "serverlight" else "none",
                bias_correction=self.bias_correction and p == "serverlight",
            )
            for p, s, m, d, a, mode, transform in grid
        ]
        return list(itertools.product(cuts, configs))


def _number_or_auto(text: str) -> float | None:
    return None if text.strip() == "auto" else float(text)


def settings_text(config: CodecConfig) -> str:
    """What of theta plays a part in the profile."""
    if config.profile == "fp16":
        return ""
    groups = f" M={config.num_groups}" if config.profile == "slicer" else ""
    distortion = "" if config.distortion is None else f" delta={config.distortion:g}"
    asymmetry = "" if config.asymmetry == 1 else f" lambda={config.asymmetry:g}"
    if config.asymmetry_mode == "budget":
        asymmetry = f" lambda={config.asymmetry:g} of budget"
    trellis = " trellis" if config.trellis else ""
    transform = f" {config.transform}" if config.transform != "none" else ""
    correction = " corrected" if config.bias_correction else ""
    return f"s={config.sparsity:g}{asymmetry}{groups}{distortion}{transform}{trellis}{correction}"

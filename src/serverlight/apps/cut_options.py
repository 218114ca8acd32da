"""Where to cut and how to compress: options that every command of a device has, and the plan that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.kept_search import find_plan, is_auto, say_built_in
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.codec import Basis, CodecConfig
    from serverlight.plan import Plan

__all__ = ["CutOptions", "PlannedCut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOptions:
    """What the user wrote; ``None`` is not given."""

    cut: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where to cut; without it, or `auto`, where `serverlight search` chose last, else in the middle.",
        ),
    ] = None
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="Cut and codec settings from a plan.")] = None
    profile: Annotated[str | None, typer.Option(help="Codec profile, like `slicer`, or `fp16` for plain halves.")] = (
        None
    )
    sparsity: Annotated[float | None, typer.Option(help="Share of elements to drop, in [0, 1).")] = None
    groups: Annotated[int | None, typer.Option(help="Magnitude groups, 1 to 256.")] = None
    distortion: Annotated[float | None, typer.Option(help="Distortion budget.")] = None
    asymmetry: Annotated[float | None, typer.Option(help="Worth of a negative element.")] = None
    asymmetry_mode: Annotated[
        str | None, typer.Option(help="What that weighs: the `score` of each, or the `budget` of all.")
    ] = None
    trellis: Annotated[
        bool | None,
        typer.Option("--trellis/--no-trellis", help="Lead tokens along a trellis: fewer bits, slower to encode."),
    ] = None
    transform: Annotated[
        str | None, typer.Option(help="Of feature maps: `cosine` codes the waves of each plane, `none` its elements.")
    ] = None
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction", help="Send beside feature maps what each plane lacks in the mean."
        ),
    ] = None
    basis: Annotated[str | None, typer.Option(metavar="FILE", help="The basis that features are sent in.")] = None
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Of a language model at layers.0: send token ids, and no features.")
    ] = False

    def read(self, model: str, base: CodecConfig | None = None) -> PlannedCut:
        """Reads the files and checks the settings; raises :class:`ConfigError` before any model is loaded.

        ``base`` has the settings that are not given, by default the codec's own; where the cut is left to a search of the
        model, those that it chose. Where there was none, the result has no cut yet.
        """
        from serverlight.codec import Basis, CodecConfig
        from serverlight.plan import TOKEN_IDS, Plan

        if self.cut and self.plan:
            raise ConfigError("cut", "give --cut NAME or --plan FILE, one of them")
        knobs = {
            "profile": self.profile,
            "sparsity": self.sparsity,
            "num_groups": self.groups,
            "distortion": self.distortion,
            "asymmetry": self.asymmetry,
            "asymmetry_mode": self.asymmetry_mode,
            "trellis": self.trellis,
            "transform": self.transform,
            "bias_correction": self.bias_correction,
        }
        given: dict[str, Any] = {name: value for name, value in knobs.items() if value is not None}
        is_open = is_auto(self.cut, self.plan)
        agreed = Plan.load(self.plan) if self.plan else None
        source = agreed or (find_plan(model) if is_open else None)
        base = source.codec if source else base or CodecConfig()
        return PlannedCut(
            cut=source.cut if source else None if is_open else self.cut,
            codec=base if agreed else dataclasses.replace(base, **given),
            basis=Basis.load(self.basis) if self.basis else None,
            agreed=agreed,
            sends=TOKEN_IDS if self.token_ids else source.sends if source else None,
            given=given,
        )

    def read_for_text(self, model: str) -> PlannedCut:
        """The same for a language model, with the settings that suit one; raises :class:`ConfigError` for a basis, and for token
        ids elsewhere than at ``layers.0``.
        """
        from serverlight.apps.demo.settings import codec_for_text, cut_for_text
        from serverlight.generation import LANGUAGE_CODEC, num_layers_of

        planned = self.read(model, LANGUAGE_CODEC)
        if planned.cut is None:
            cut = "layers.0" if self.token_ids else cut_for_text(num_layers_of(model))
            planned = planned.built_in(model, cut, codec_for_text(model, cut, "serverlight"))
        if self.token_ids and planned.cut != "layers.0":
            raise ConfigError(
                "token_ids", f"go to a server that runs all layers; cut at layers.0, not at {planned.cut}"
            )
        if planned.basis or (planned.agreed and planned.agreed.basis):
            raise ConfigError("basis", "sessions of language models take no frames under a basis yet; leave it away")
        return planned


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCut:
    """Cut and settings, for whichever model."""

    cut: str | None
    """Its name; ``None`` where it is left to a search and there was none."""

    codec: CodecConfig
    """A plan's settings; without one, the options that were given, and defaults."""

    basis: Basis | None
    """What features are turned by."""

    agreed: Plan | None
    """The plan that was given."""

    sends: str | None = None
    """As :attr:`Plan.sends`."""

    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings among the options."""

    def built_in(self, model: str, cut: str, codec: CodecConfig) -> PlannedCut:
        """The same with a cut and settings that come with the package, and says so."""
        say_built_in(model, cut)
        return dataclasses.replace(self, cut=cut, codec=dataclasses.replace(codec, **self.given))

    def plan_for(self, name: str, revision: str, return_cut: str | None = None) -> Plan:
        """The plan for a model; raises :class:`PlanMismatch` where the one that was given is for another."""
        from serverlight.plan import Plan

        assert self.cut is not None
        ours = Plan(
            model=name,
            revision=revision,
            cut=self.cut,
            codec=self.codec,
            basis=self.basis.digest.hex() if self.basis else None,
            return_cut=return_cut or (self.agreed.return_cut if self.agreed else None),
            sends=self.sends,
        )
        if self.agreed:
            ours.check_compatible(self.agreed)
            self.agreed.check_basis(self.basis)
        return ours

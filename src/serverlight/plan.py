"""The plan: what device and server agree on before the first feature crosses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

from serverlight.codec.config import CodecConfig
from serverlight.errors import ConfigError, PlanMismatch

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which model, which weights, cut where, compressed how.

    >>> plan = Plan(model="demo-vision", revision="0f3a", cut="stage2", codec=CodecConfig(sparsity=0.8))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    model: str
    """The model's name as it was asked for: a hub id, a folder, ``demo-vision``, ``package.module:function``."""

    revision: str
    """Digest of the weights, so that two models of one name are told apart."""

    cut: str
    """Name of the cut point; see :attr:`serverlight.partition.CutPoint.name`."""

    codec: CodecConfig = field(default_factory=CodecConfig)
    """How features are compressed on their way up."""

    def __post_init__(self) -> None:
        for name in ("model", "revision", "cut"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(name, "must be a non-empty string")
        if not isinstance(self.codec, CodecConfig):
            raise ConfigError("codec", f"must be a CodecConfig, got {type(self.codec).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal plans give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of :meth:`to_json`; raises :class:`ConfigError` that names the wrong field."""
        try:
            fields = json.loads(text)
        except ValueError as exc:
            raise ConfigError("plan", f"is not JSON: {exc}") from None
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Any) -> Plan:
        """Builds a plan from plain data that may come from a stranger."""
        if not isinstance(fields, dict):
            raise ConfigError("plan", "must be a JSON object")
        expected = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - expected):
            raise ConfigError(unknown[0], "unknown field in the plan")
        if missing := sorted(expected - set(fields)):
            raise ConfigError(missing[0], "missing from the plan")
        if not isinstance(fields["codec"], dict):
            raise ConfigError("codec", "must be a JSON object")
        return cls(**{**fields, "codec": CodecConfig.from_dict(fields["codec"])})

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the plan as indented JSON."""
        pathlib.Path(path).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Plan:
        """Reads a plan that :meth:`save` wrote."""
        try:
            text = pathlib.Path(path).read_text()
        except OSError as exc:
            raise ConfigError("plan", f"cannot read {path}: {exc.strerror}") from None
        return cls.from_json(text)

    @property
    def digest(self) -> str:
        """SHA-256 over :meth:`to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check_compatible(self, theirs: Plan) -> None:
        """Raises :class:`PlanMismatch` for the first field in which the two sides must agree but do not.

        The codec's settings may differ: a frame describes itself, so the device may change them as its link moves.
        """
        for name in ("model", "revision", "cut"):
            ours, other = getattr(self, name), getattr(theirs, name)
            # Where a model's files lie is each side's own business; that they are the same, the revision tells.
            if ours != other and (name != "model" or _last_part(ours) != _last_part(other)):
                raise PlanMismatch(name, ours, other)


def _last_part(model: str) -> str:
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]

"""The plan: what device and server agree on before the first feature crosses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from serverlight.codec.basis import Basis
from serverlight.codec.config import CodecConfig
from serverlight.errors import ConfigError, PlanMismatch

__all__ = ["TOKEN_IDS", "Plan", "id_bytes", "model_key", "same_revision"]

DIGEST = re.compile("[0-9a-f]{16}")

TOKEN_IDS = "token-ids"
"""What a plan sends whose server has the embeddings of a language model."""

OPTIONAL = {"basis", "return_cut", "sends"}
"""Fields that a plan need not have."""


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

    basis: str | None = None
    """Digest, in hex, of the :class:`~serverlight.codec.Basis` that features are in; its file lies beside the plan."""

    return_cut: str | None = None
    """Second cut of a language model, where hidden states come back to the device, which then has both ends of the model."""

    sends: str | None = None
    """``token-ids``: where a language model is cut at ``layers.0``, the ids of its tokens go up and no frames, without loss."""

    def __post_init__(self) -> None:
        for name in ("model", "revision", "cut"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(name, "must be a non-empty string")
        if not isinstance(self.codec, CodecConfig):
            raise ConfigError("codec", f"must be a CodecConfig, got {type(self.codec).__name__}")
        if self.return_cut is not None and not (isinstance(self.return_cut, str) and self.return_cut):
            raise ConfigError("return_cut", f"must be the name of a cut or nothing, got {self.return_cut!r}")
        if self.sends not in (None, TOKEN_IDS) or (self.sends and self.return_cut):
            raise ConfigError(
                "sends", f"must be {TOKEN_IDS!r} or nothing, and nothing with a second cut; got {self.sends!r}"
            )
        if self.basis is not None and not (isinstance(self.basis, str) and DIGEST.fullmatch(self.basis)):
            raise ConfigError("basis", f"must be a digest of 16 hex digits or nothing, got {self.basis!r}")

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON; those that a plan need not have only if there is something in them."""
        fields = dataclasses.asdict(self)
        for name in OPTIONAL:
            if fields[name] is None:
                del fields[name]
        return fields

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
        if missing := sorted(expected - set(fields) - OPTIONAL):
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

        The codec's settings may differ: a frame describes itself, so the device may change them as its link moves. A basis
        must be there on the other side if this one has it, and so must the embeddings if this one sends token ids.
        """
        for name in ("model", "revision", "cut", "return_cut"):
            ours, other = getattr(self, name), getattr(theirs, name)
            if name == "revision" and same_revision(ours, other):
                continue
            # Where a model's files lie is each side's own business; that they are the same, the revision tells.
            if ours != other and (name != "model" or model_key(ours) != model_key(other)):
                raise PlanMismatch(name, ours, other)
        if self.basis is not None and self.basis != theirs.basis:
            raise PlanMismatch("basis", self.basis, theirs.basis)
        if self.sends is not None and self.sends != theirs.sends:
            raise PlanMismatch("sends", self.sends, theirs.sends)

    def check_basis(self, basis: Basis | None) -> None:
        """Raises :class:`ConfigError` unless ``basis`` is the one that the plan names, or none if it names none."""
        digest = None if basis is None else basis.digest.hex()
        if digest != self.basis:
            raise ConfigError(
                "basis", f"the plan names {self.basis}, given was {digest}; load the file beside the plan"
            )


def id_bytes(token_ids: Iterable[int]) -> int:
    """What the ids of tokens take on the wire: seven bits a byte.

    >>> id_bytes([127, 128, 16_384])
    6
    """
    return sum(max(1, -(-token_id.bit_length() // 7)) for token_id in token_ids)


def same_revision(ours: str, theirs: str) -> bool:
    """Whether two revisions differ in nothing that both sides have.

    That of a checkpoint in several files tells of each, or has a dash where a side does not hold it
    (:func:`serverlight.models.checkpoint.checkpoint_digest`).

    >>> same_revision("0f3a:aa,-,cc", "0f3a:aa,bb,-"), same_revision("0f3a:aa,-,cc", "0f3a:aa,bb,dd")
    (True, False)
    """
    (our_front, _, our_files), (their_front, _, their_files) = ours.partition(":"), theirs.partition(":")
    if our_front != their_front or our_files.count(",") != their_files.count(","):
        return False
    pairs = zip(our_files.split(","), their_files.split(","), strict=True)
    return all(one == other or "-" in (one, other) for one, other in pairs)


def model_key(model: str) -> str:
    """What two sides compare of a model's name: the last part, since where its files lie is each side's own business.

    >>> model_key("/home/me/my-llama/"), model_key("demo-lm")
    ('my-llama', 'demo-lm')
    """
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]

"""What a model costs on a machine: times as fitted curves, bytes of weights, activations and caches, for each cut."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from serverlight.errors import ConfigError
from serverlight.json_files import load_json, save_json

__all__ = ["CodecCost", "Curve", "CutCost", "Kind", "MessageCost", "Profile", "Side", "rested"]

Kind = Literal["single-shot", "language-model"]

Side = Literal["device", "server"]

REST_SCALE_MS = 15.0
"""After a rest of so long, work takes longer by 63 % of what it does after a long one; measured with rests of 1 to 45 ms."""


def rested(gap_ms: float) -> float:
    """How much of the cost of a rest is to be paid after so long a gap, from 0 to 1.

    While a processor waits, others use its caches, it sleeps deeper, and its clock falls.

    >>> rested(0.0), round(rested(REST_SCALE_MS), 2), rested(1e6)
    (0.0, 0.63, 1.0)
    """
    return -math.expm1(-max(0.0, gap_ms) / REST_SCALE_MS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Milliseconds of some work, linear in the sequences, in their tokens and in what these attend to.

    ``fixed + per_token * rows * tokens + per_context * rows * tokens * context``, and for what does not grow with the tokens
    of a sequence ``per_row * rows + per_past * rows * context``; with more than one token or sequence, ``together`` once. A
    sample of a single-shot model counts as a token.

    >>> Curve(fixed_ms=1.0, per_token_ms=0.5, per_context_ms=0.001).ms(rows=4, context=1000)
    7.0
    """

    fixed_ms: float
    """However little there is to do."""

    per_token_ms: float
    """For each token of each sequence."""

    per_context_ms: float = 0.0
    """For each token, and each earlier token that it attends to."""

    residual: float = 0.0
    """Median of the absolute relative errors over the measurements that the curve was fitted to."""

    per_row_ms: float = 0.0
    """For each sequence, however many tokens it runs: a step in a batch costs more than one more token of a prompt."""

    per_past_ms: float = 0.0
    """For each earlier token of each sequence: its keys and values are read once, however many tokens are run."""

    together_ms: float = 0.0
    """As soon as there is more than one token: products of matrices take other kernels than those with a vector."""

    piece_tokens: int = 0
    """A sequence runs so many tokens at a time, and all but what goes by the token is paid for each piece; 0: all at once."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ConfigError(
                    field.name, f"must be a finite number, zero or more, got {getattr(self, field.name)!r}"
                )

    def ms(self, *, rows: float = 1.0, tokens: float = 1.0, context: float = 0.0) -> float:
        """Time of ``rows`` sequences that each run ``tokens`` tokens with ``context`` tokens before them."""
        by_row = self.per_row_ms + self.per_past_ms * context
        by_token = self.per_token_ms + self.per_context_ms * context
        together = self.together_ms * min(1.0, max(0.0, rows * tokens - 1))
        pieces = max(1, math.ceil(tokens / self.piece_tokens)) if self.piece_tokens else 1
        return pieces * (self.fixed_ms + together + rows * by_row) + rows * tokens * by_token

    def times(self, factor: float) -> Curve:
        """The same work where it takes ``factor`` times as long."""
        fields = dataclasses.asdict(self)
        scaled = {name: value * factor for name, value in fields.items() if name.endswith("_ms")}
        return dataclasses.replace(self, **scaled)


@dataclass(frozen=True, kw_only=True, slots=True)
class CutCost:
    """One cut: what lies before it and behind it. Cuts are told from the input to the output."""

    name: str
    """Name of the cut point; ``input`` (``layers.0``) sends what the model is given."""

    elements: int
    """Elements of the features that cross, per sample or token."""

    side_bytes: int = 0
    """Bytes that cross uncompressed, per sample or token: masks, token ids."""

    head: Curve
    """Everything before the cut."""

    tail: Curve
    """Everything behind it, of a language model with the final norm and the logits."""

    head_weight_bytes: int
    tail_weight_bytes: int

    head_activation_bytes: int = 0
    """The most that the head holds at a time beside weights and caches, per sample or token."""

    head_kv_bytes: int = 0
    """Keys and values of the layers before the cut, per token."""

    tail_kv_bytes: int = 0

    head_rest_ms: float = 0.0
    """What the head takes longer after a long rest, see :func:`rested`."""

    tail_rest_ms: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecCost:
    """Encoding and decoding one frame; a token of the curves is a thousand elements."""

    encode: Curve
    decode: Curve
    encode_rest_ms: float = 0.0
    """What it takes longer after a long rest, see :func:`rested`."""

    decode_rest_ms: float = 0.0

    def times(self, factor: float) -> CodecCost:
        """The same on a machine that takes ``factor`` times as long."""
        return CodecCost(
            encode=self.encode.times(factor),
            decode=self.decode.times(factor),
            encode_rest_ms=self.encode_rest_ms * factor,
            decode_rest_ms=self.decode_rest_ms * factor,
        )

    def decoded_by(self, other: CodecCost) -> CodecCost:
        """Encoding from here, decoding from there."""
        return dataclasses.replace(self, decode=other.decode, decode_rest_ms=other.decode_rest_ms)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From plain data."""
        return cls(**{**fields, "encode": Curve(**fields["encode"]), "decode": Curve(**fields["decode"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageCost:
    """Software on the way of one message, there and back over loopback, model and codec aside.

    A token of the curves is a kilobyte of the request.
    """

    latency: Curve
    """What a request and its reply take longer than the work that they ask for."""

    server: Curve
    """The server's processor time for them."""

    opening_ms: float = 0.0
    """What the first request of a sequence takes longer: a connection and a stream are opened for it, and a session."""

    latency_rest_ms: float = 0.0
    """What a message takes longer where device and server have had a long rest, see :func:`rested`."""

    server_rest_ms: float = 0.0
    """What it takes longer of the server's processor."""

    def times(self, factor: float) -> MessageCost:
        """The same on machines that take ``factor`` times as long."""
        return MessageCost(
            latency=self.latency.times(factor),
            server=self.server.times(factor),
            opening_ms=self.opening_ms * factor,
            latency_rest_ms=self.latency_rest_ms * factor,
            server_rest_ms=self.server_rest_ms * factor,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One model on one machine. A device's and a server's profile of one model can be put together."""

    model: str
    revision: str
    """As in a :class:`~serverlight.plan.Plan`."""

    kind: Kind
    machine: Mapping[str, Any]
    """Processor, threads, versions, date."""

    dtype: str
    """Of weights and features, such as ``float32``."""

    cuts: tuple[CutCost, ...]
    """From the input to the output; the last has the whole model before it."""

    codec: CodecCost
    """At the settings that are used unless one says otherwise."""

    message: MessageCost

    other_codecs: Mapping[str, CodecCost] = dataclasses.field(default_factory=dict)
    """By the names of the codec's other profiles and forms, whose frames take other times."""

    watts: float | None = None
    """What the machine draws while it computes, above idle; none where the platform does not tell."""

    weight_bytes: int
    """Of the whole model."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ConfigError("cuts", "a profile needs at least one cut")
        if len({cut.name for cut in self.cuts}) != len(self.cuts):
            raise ConfigError("cuts", "two cuts of one name")

    def cut(self, name: str) -> CutCost:
        """The cut of that name; raises :class:`ConfigError`."""
        for cut in self.cuts:
            if cut.name == name:
                return cut
        raise ConfigError("cut", f"the profile has no {name!r}, but {', '.join(cut.name for cut in self.cuts)}")

    def codec_of(self, name: str) -> CodecCost:
        """By the name of the codec's profile or form; one that was not measured is taken to be like the default."""
        return self.other_codecs.get(name, self.codec)

    def scaled(self, *, speed: float, name: str, watts: float | None = None) -> Profile:
        """What the model would cost on a machine that is ``speed`` times as fast at everything, of that name and power.

        >>> one_ms = Curve(fixed_ms=1.0, per_token_ms=0.0)
        >>> cut = CutCost(name="input", elements=1, head=one_ms, tail=one_ms, head_weight_bytes=0, tail_weight_bytes=0)
        >>> profile = Profile(model="m", revision="r", kind="single-shot", machine={}, dtype="float32", cuts=(cut,),
        ...                   codec=CodecCost(encode=one_ms, decode=one_ms),
        ...                   message=MessageCost(latency=one_ms, server=one_ms), weight_bytes=0)
        >>> profile.scaled(speed=0.25, name="small board").cut("input").head.ms()
        4.0
        """
        if not 0 < speed < math.inf:
            raise ConfigError("speed", f"must be a positive number, got {speed!r}; 0.5 is half as fast")
        factor = 1 / speed
        return dataclasses.replace(
            self,
            machine={"name": name, "speed": speed, "described_from": dict(self.machine)},
            cuts=tuple(
                dataclasses.replace(
                    cut,
                    head=cut.head.times(factor),
                    tail=cut.tail.times(factor),
                    head_rest_ms=cut.head_rest_ms * factor,
                    tail_rest_ms=cut.tail_rest_ms * factor,
                )
                for cut in self.cuts
            ),
            codec=self.codec.times(factor),
            other_codecs={name: codec.times(factor) for name, codec in self.other_codecs.items()},
            message=self.message.times(factor),
            watts=watts,
        )

    @classmethod
    def joined(cls, *, device: Profile, server: Profile) -> Profile:
        """One profile of two machines: heads, encoding and power of the device, tails, decoding and messages of the server.

        Each side has about half of a message's software, so its latency is the mean of both.

        Raises:
            ConfigError: they are not of one model, or of other weights, or have other cuts.
        """
        for field in ("kind", "revision"):
            if getattr(device, field) != getattr(server, field):
                raise ConfigError(
                    field, f"{getattr(device, field)!r} on the device, {getattr(server, field)!r} on the server; "
                    "profile the same model on both"
                )  # fmt: skip
        if [cut.name for cut in device.cuts] != [cut.name for cut in server.cuts]:
            raise ConfigError("cuts", "the two profiles have other cuts; measure both with one version of the software")
        return dataclasses.replace(
            device,
            machine={"device": dict(device.machine), "server": dict(server.machine)},
            cuts=tuple(
                dataclasses.replace(
                    ours,
                    tail=theirs.tail,
                    tail_rest_ms=theirs.tail_rest_ms,
                    tail_weight_bytes=theirs.tail_weight_bytes,
                    tail_kv_bytes=theirs.tail_kv_bytes,
                )
                for ours, theirs in zip(device.cuts, server.cuts, strict=True)
            ),
            codec=device.codec.decoded_by(server.codec),
            other_codecs={name: codec.decoded_by(server.codec_of(name)) for name, codec in device.other_codecs.items()},
            message=MessageCost(
                latency=_mean(device.message.latency, server.message.latency),
                server=server.message.server,
                opening_ms=(device.message.opening_ms + server.message.opening_ms) / 2,
                latency_rest_ms=(device.message.latency_rest_ms + server.message.latency_rest_ms) / 2,
                server_rest_ms=server.message.server_rest_ms,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {
            **dataclasses.asdict(self),
            "machine": dict(self.machine),
            "cuts": [*map(dataclasses.asdict, self.cuts)],
            "other_codecs": {name: dataclasses.asdict(codec) for name, codec in self.other_codecs.items()},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; raises :class:`ConfigError` for anything else."""
        try:
            return cls(
                **{
                    **fields,
                    "cuts": tuple(
                        CutCost(**{**cut, "head": Curve(**cut["head"]), "tail": Curve(**cut["tail"])})
                        for cut in fields["cuts"]
                    ),
                    "codec": CodecCost.from_dict(fields["codec"]),
                    "other_codecs": {
                        name: CodecCost.from_dict(codec) for name, codec in fields.get("other_codecs", {}).items()
                    },
                    "message": MessageCost(
                        **{
                            **fields["message"],
                            "latency": Curve(**fields["message"]["latency"]),
                            "server": Curve(**fields["message"]["server"]),
                        }
                    ),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError("profile", f"cannot be read: {error}; make it with `serverlight profile`") from None

    def save(self, path: str | pathlib.Path) -> None:
        """Writes JSON."""
        save_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Reads what :meth:`save` wrote, or a person in its form; raises :class:`ConfigError`."""
        return cls.from_dict(load_json(path, "profile"))


def _mean(one: Curve, other: Curve) -> Curve:
    names = [field.name for field in dataclasses.fields(Curve) if field.name != "piece_tokens"]
    return Curve(**{name: (getattr(one, name) + getattr(other, name)) / 2 for name in names})

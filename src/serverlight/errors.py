"""Every error the package raises on purpose, with one root.

::

    ServerlightError
    ├─ ConfigError (also ValueError)         a setting is wrong; names the field
    ├─ CodecError
    │  ├─ FrameError                         a frame breaks a rule of docs/wire-format.md
    │  │  ├─ FrameTooShort                   a section ends past the end of the frame
    │  │  ├─ TrailingBytes                   bytes are left after the last section
    │  │  ├─ BadMagic                        not a frame at all
    │  │  ├─ UnsupportedVersion              a version this reader does not know
    │  │  ├─ UnsupportedProfile              a profile this reader does not know
    │  │  ├─ UnsupportedFeature              a reserved flag or value is set
    │  │  ├─ FrameTooLarge                   the frame declares more than the reader's limits allow
    │  │  ├─ BadVarint                       an integer is not minimally encoded, or too long
    │  │  ├─ ChecksumMismatch                the bytes were altered on the way
    │  │  ├─ BadPadding                      padding bits are not zero
    │  │  ├─ UnknownBasis                    the frame needs a basis that the reader does not have
    │  │  └─ InconsistentFrame               sections contradict each other
    │  ├─ UnsupportedTensor                  dtype, rank or size the codec does not carry
    │  │  └─ NonFiniteTensor                 NaN or infinity in the tensor
    │  └─ BackendUnavailable                 the backend's package is not installed
    ├─ ModelError                            a model cannot be found or loaded
    ├─ PartitionError
    │  ├─ CutNotFound                        no cut of that name
    │  ├─ NotExportable                      torch.export cannot trace the module
    │  ├─ NotPartitionable                   a language model that cannot be cut exactly
    │  ├─ ContextExceeded                    more tokens than the model's context holds
    │  └─ InputMismatch                      a tensor does not fit the boundary or the inputs
    ├─ PlanMismatch                          the two sides' plans differ; names the field
    ├─ TransportError
    │  ├─ ConnectTimeout                     nobody answered in time
    │  ├─ DeadlineExceeded                   the answer did not come in time
    │  ├─ PeerUnavailable                    the other side is down, or went away
    │  ├─ ProtocolError                      a message that the protocol does not allow here
    │  ├─ MessageTooLarge                    a message over the agreed limit
    │  ├─ ServerBusy                         the server takes no more; retry_after_ms says when
    │  │  ├─ ModelLoading                    the server is loading the model; it has it soon
    │  │  └─ QuotaExceeded                   the client has used up its share; quota says which
    │  ├─ Unauthenticated                    the server knows no such token
    │  ├─ CertificateMismatch                TLS failed; field says which certificate does not fit
    │  ├─ AddressInUse                       the port to listen on is taken
    │  ├─ GenerationInterrupted              a sequence could not go on; token_ids holds what there is
    │  └─ RemoteError                        the server failed on its own account
    ├─ LogitsNotSent                         logits were asked for where only tokens come back
    ├─ Infeasible                            no plan keeps all caps; binding names those in the way
    └─ MissingDependency                     an optional package is needed for this
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AddressInUse",
    "BackendUnavailable",
    "BadMagic",
    "BadPadding",
    "BadVarint",
    "CertificateMismatch",
    "ChecksumMismatch",
    "CodecError",
    "ConfigError",
    "ConnectTimeout",
    "ContextExceeded",
    "CutNotFound",
    "DeadlineExceeded",
    "FrameError",
    "FrameTooLarge",
    "FrameTooShort",
    "GenerationInterrupted",
    "InconsistentFrame",
    "Infeasible",
    "InputMismatch",
    "LogitsNotSent",
    "MessageTooLarge",
    "MissingDependency",
    "ModelError",
    "ModelLoading",
    "NonFiniteTensor",
    "NotExportable",
    "NotPartitionable",
    "PartitionError",
    "PeerUnavailable",
    "PlanMismatch",
    "ProtocolError",
    "QuotaExceeded",
    "RemoteError",
    "ServerBusy",
    "ServerlightError",
    "TrailingBytes",
    "TransportError",
    "Unauthenticated",
    "UnknownBasis",
    "UnsupportedFeature",
    "UnsupportedProfile",
    "UnsupportedTensor",
    "UnsupportedVersion",
]


class ServerlightError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(ServerlightError, ValueError):
    """A setting is out of range; ``field`` names it."""

    field = ""
    """Where another side does not say which."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class MissingDependency(ServerlightError, ImportError):
    """An optional package is needed; ``extra`` names what to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}; install it with: pip install 'serverlight[{extra}]'")
        self.package, self.extra = package, extra


# -- codec ---------------------------------------------------------------------------------------


class CodecError(ServerlightError):
    """A tensor or a frame that the codec cannot carry."""


class FrameError(CodecError):
    """A frame breaks a rule of docs/wire-format.md."""


class FrameTooShort(FrameError):
    """A section needs more bytes than the frame has left."""


class TrailingBytes(FrameError):
    """Bytes are left over after the last section."""


class BadMagic(FrameError):
    """The bytes do not start like a frame."""


class UnsupportedVersion(FrameError):
    """The frame has a format version that this reader does not know."""


class UnsupportedProfile(FrameError):
    """The frame has a profile that this reader does not know."""


class UnsupportedFeature(FrameError):
    """A reserved flag, dtype or mode is set."""


class FrameTooLarge(FrameError):
    """The frame declares more elements than the reader's limits allow."""


class BadVarint(FrameError):
    """An integer is not minimally encoded, or longer than five bytes."""


class ChecksumMismatch(FrameError):
    """The checksum does not match: the frame was altered on the way."""


class BadPadding(FrameError):
    """Padding bits at the end of a section are not zero."""


class UnknownBasis(FrameError):
    """The frame names a basis that the reader was not given."""


class InconsistentFrame(FrameError):
    """Parts of the frame contradict each other."""


class UnsupportedTensor(CodecError):
    """The tensor has a dtype, rank or size that the codec does not carry."""


class NonFiniteTensor(UnsupportedTensor):
    """The tensor holds NaN or infinity; ``num_nonfinite`` says how many."""

    def __init__(self, num_nonfinite: int, first_index: int) -> None:
        super().__init__(
            f"{num_nonfinite} NaN or infinite values (the first at flat index {first_index}); "
            "a frame carries finite values only: check the head, or clamp the feature first"
        )
        self.num_nonfinite, self.first_index = num_nonfinite, first_index


class BackendUnavailable(CodecError):
    """A codec backend was asked for whose package is not installed."""


# -- models and partition -------------------------------------------------------------------------


class ModelError(ServerlightError):
    """A model cannot be found or loaded."""


class PartitionError(ServerlightError):
    """A module cannot be cut, or not there."""


class CutNotFound(PartitionError):
    """There is no cut of that name; ``close`` holds the nearest names."""

    def __init__(self, name: str, close: tuple[str, ...] = ()) -> None:
        hint = f"; did you mean {', '.join(repr(c) for c in close)}?" if close else ""
        super().__init__(f"no cut {name!r}{hint} `serverlight cuts MODEL` lists them all")
        self.name, self.close = name, close


class NotExportable(PartitionError):
    """torch.export cannot trace the module; says which operation and what to do."""


class NotPartitionable(PartitionError):
    """A language model whose parts do not give exactly what the whole gives; says what was seen."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} cannot be cut: {reason}; run it whole, or choose a plain decoder such as Llama")
        self.model, self.reason = model, reason


class NotBatchable(PartitionError):
    """A language model whose sequences do not get in a batch what they get alone; a server runs them one by one."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} cannot be batched: {reason}; run its sequences one after the other")
        self.model, self.reason = model, reason


class ContextExceeded(PartitionError):
    """A prompt, or a prompt and what was generated, has more tokens than the model's context holds."""

    def __init__(self, num_tokens: int, context_length: int) -> None:
        super().__init__(
            f"{num_tokens} tokens, but the model's context holds {context_length}; shorten the prompt or generate less"
        )
        self.num_tokens, self.context_length = num_tokens, context_length


class InputMismatch(PartitionError):
    """A tensor does not have the shape or dtype that the boundary or the module asks for."""


# -- plan and runtime ------------------------------------------------------------------------------


class PlanMismatch(ServerlightError):
    """Client and server were started with different plans; ``field`` names the first difference."""

    def __init__(self, field: str, ours: object, theirs: object) -> None:
        super().__init__(
            f"plan mismatch in {field}: this side has {ours!r}, the other side has {theirs!r}; "
            "start both with the same plan"
        )
        self.field, self.ours, self.theirs = field, ours, theirs


class Infeasible(ServerlightError):
    """No plan keeps all caps. ``binding`` names the caps in the way, ``nearest`` holds the plans that break the least."""

    def __init__(self, binding: tuple[str, ...], message: str, nearest: tuple[Any, ...] = ()) -> None:
        super().__init__(f"{', '.join(binding)}: {message}")
        self.binding, self.nearest = binding, nearest


class LogitsNotSent(ServerlightError, NotImplementedError):
    """Logits were asked for, but a server answers with tokens."""


class TransportError(ServerlightError):
    """Something went wrong between client and server."""


class ConnectTimeout(TransportError):
    """Nobody answered within the time to connect."""


class DeadlineExceeded(TransportError):
    """The answer did not come within the request's deadline."""


class PeerUnavailable(TransportError):
    """The other side is down, refused the connection, or went away."""


class ProtocolError(TransportError):
    """A message that the protocol does not allow at this point."""


class MessageTooLarge(TransportError):
    """A message over the size that was agreed."""


class ServerBusy(TransportError):
    """The server takes no more work now; try again after ``retry_after_ms``."""

    retry_after_ms = 0
    """Where a server does not say when."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class ModelLoading(ServerBusy):
    """The server has the model by name and is loading it; try again after ``retry_after_ms``."""

    def __init__(self, retry_after_ms: int) -> None:
        TransportError.__init__(self, f"the server is loading the model; try again in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class QuotaExceeded(ServerBusy):
    """The client has used up its share, whatever others use; ``quota`` says which one."""

    quota = ""
    """Where a server does not say which."""

    def __init__(self, quota: str, retry_after_ms: int) -> None:
        TransportError.__init__(self, f"over the quota {quota}; try again in {retry_after_ms} ms")
        self.quota, self.retry_after_ms = quota, retry_after_ms


class Unauthenticated(TransportError):
    """The server wants a token and knows none like this one: it is missing, wrong, out of date or withdrawn."""


class CertificateMismatch(TransportError):
    """The two sides cannot agree on TLS; ``field`` names the setting of the client that does not fit."""

    field = ""
    """Where another side does not say which."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class GenerationInterrupted(TransportError):
    """A sequence could not go on; ``token_ids`` holds what was generated until then."""

    def __init__(self, token_ids: tuple[int, ...], reason: str) -> None:
        super().__init__(f"stopped after {len(token_ids)} tokens, which are kept: {reason}")
        self.token_ids, self.reason = token_ids, reason


class AddressInUse(TransportError):
    """The address to listen on is taken."""


class RemoteError(TransportError):
    """The server failed on its own account; its log has the details."""

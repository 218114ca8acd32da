"""What is predicted, of what, and under which circumstances: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from serverlight.codec.config import CodecConfig
from serverlight.frontier import Choice, Way
from serverlight.generation import CHUNK_TOKENS
from serverlight.link import LinkConfig
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.search.constraints import Workload
from serverlight.search.profile import Profile

__all__ = ["MIB", "Candidate", "Prediction", "Scene"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything but the plan."""

    device: Profile
    server: Profile
    link: LinkConfig
    workload: Workload

    @property
    def is_text(self) -> bool:
        """Whether the model is a language model."""
        return self.device.kind == "language-model"

    @property
    def context(self) -> float:
        """Tokens before the one that a mean decode step runs."""
        return self.workload.prompt_tokens + (self.workload.new_tokens - 1) / 2 if self.is_text else 0.0

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are there in the end."""
        return self.workload.prompt_tokens + self.workload.new_tokens if self.is_text else 0

    @property
    def chunk_tokens(self) -> int:
        """The most tokens, or samples, that run together on the device."""
        return min(self.workload.prompt_tokens, CHUNK_TOKENS) if self.is_text else 1

    @property
    def asked_per_s(self) -> float:
        """Requests or steps of each device; zero where each follows the last answer."""
        return (self.workload.requests_per_s or 0.0) * (self.workload.new_tokens if self.is_text else 1)

    def transfer_ms(self, num_bytes: float) -> float:
        """How long the link is busy with so many bytes."""
        rate = self.link.rate_bits_per_s
        return 0.0 if rate is None else num_bytes * 8e3 / rate

    @property
    def one_way_ms(self) -> float:
        """Mean delay of a message."""
        return self.link.delay_ms + self.link.jitter_ms / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What may be chosen: who runs the model, where it is cut, and what crosses."""

    way: Way
    cut: str | None = None
    """None where the device does it all."""

    codec: CodecConfig | None = None
    frame_bytes: float = 0.0
    """Of a sample, or of the frame of one token."""

    prompt_token_bytes: float = 0.0
    """Of a token within a prompt."""

    loss_pp: float = 0.0
    loss_interval_pp: tuple[float, float] = (0.0, 0.0)
    is_measured: bool = True

    is_file: bool = False
    """Whether the input goes up as the file that it is, such as a JPEG: then the device computes nothing."""

    sends_ids: bool = False
    """Whether token ids go up, which a server with the embeddings takes: then the device computes nothing either."""

    tokens: int | None = None
    """Of a language model: new tokens until the device's memory is full and it exits early; none where it holds all."""

    then: Candidate | None = None
    """Where it goes on, with the same settings."""

    @property
    def is_raw(self) -> bool:
        """Whether the device only passes on what the model is given."""
        return self.is_file or self.sends_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A request (of a language model: a mean decode step), part by part. Times are milliseconds."""

    candidate: Candidate
    head_ms: float
    """Device: the layers before the cut; all of them where it does it all."""

    encode_ms: float = 0.0
    uplink_ms: float = 0.0
    """The link being busy with the message."""

    rtt_ms: float = 0.0
    """Delay there and back."""

    queue_ms: float = 0.0
    """Waiting for the server; ``inf`` where more comes than it can do."""

    decode_ms: float = 0.0
    """Frames of all requests that run in one batch."""

    tail_ms: float = 0.0
    """Layers behind the cut, for all requests that run in one batch."""

    message_ms: float = 0.0
    """Software on the way: serialising, sockets, threads, at both ends."""

    downlink_ms: float = 0.0
    first_token_ms: float | None = None
    """Of a language model, from the prompt on."""

    server_busy_ms: float = 0.0
    """Compute time of the server, messages included: the request's share of its batch."""

    batch_size: float = 1.0
    """Mean requests in a batch."""

    throughput_per_s: float
    """Requests or steps answered, of all devices together."""

    server_utilisation: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    device_memory_bytes: int
    energy_mj: float | None = None
    """Of the device's processor; none where nobody knows what it draws."""

    loss_pp: float = 0.0
    stages: tuple[Prediction, ...] = ()
    """Before and after an early exit; then the figures above are means over all tokens, the move included."""

    @property
    def way(self) -> Way:
        """Who runs the model."""
        return self.candidate.way

    @property
    def latency_ms(self) -> float:
        """All parts together; none of them overlap in one request."""
        return self.head_ms + self.encode_ms + self.uplink_ms + self.rtt_ms + self.server_ms + self.downlink_ms

    @property
    def server_ms(self) -> float:
        """From the message's last byte up to the reply's first byte down."""
        return self.queue_ms + self.decode_ms + self.tail_ms + self.message_ms

    @property
    def device_memory_mib(self) -> float:
        """The same in MiB."""
        return self.device_memory_bytes / MIB

    def plan(self, model: str, revision: str) -> Plan | None:
        """The plan of a model; none where the device does it all."""
        chosen = self.candidate
        if chosen.cut is None:
            return None
        return Plan(
            model=model,
            revision=revision,
            cut=chosen.cut,
            codec=chosen.codec or CodecConfig(),
            sends=TOKEN_IDS if chosen.sends_ids else None,
        )

    def choice(self, model: str, revision: str) -> Choice:
        """What a running device needs to know of it."""
        return Choice(
            way=self.way,
            plan=self.plan(model, revision),
            head_ms=self.head_ms + self.encode_ms,
            server_ms=self.server_ms,
            server_busy_ms=self.server_busy_ms,
            uplink_bytes=self.uplink_bytes,
            downlink_bytes=self.downlink_bytes,
            device_memory_bytes=self.device_memory_bytes,
            loss_pp=self.loss_pp,
        )

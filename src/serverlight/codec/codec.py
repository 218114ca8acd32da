"""Tensors to frames and back: the only place that knows the order of the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec import backends, contextual, slicer
from serverlight.codec.backends import Float32
from serverlight.codec.config import CodecConfig
from serverlight.codec.tensors import Like, Tensor, from_float32, saturate, to_float32
from serverlight.codec.wire import DEFAULT_MAX_ELEMENTS, Header, Reader, Writer
from serverlight.errors import InconsistentFrame, UnsupportedTensor

__all__ = ["Codec", "FrameInfo", "decode", "inspect"]

Frame = bytes | bytearray | memoryview


class Codec:
    """Encodes tensors with one set of knobs.

    >>> codec = Codec(CodecConfig(profile="slicer", sparsity=0.5, num_groups=2))
    >>> frame = codec.encode(np.array([[0.0, -3.0, 0.5, 1.0]], np.float32))
    >>> decode(frame, like="numpy")
    array([[ 0., -3.,  0.,  1.]], dtype=float32)
    """

    def __init__(self, config: CodecConfig | None = None, *, backend: str = "auto") -> None:
        self.config = config if config is not None else CodecConfig()
        self._kernels = backends.load(backend)

    def __repr__(self) -> str:
        return f"Codec({self.config!r}, backend={self._kernels.name!r})"

    def encode(self, x: Tensor) -> bytes:
        """One self-contained frame for ``x``: float16, bfloat16 or float32, any shape, rank 0 to 8.

        Raises:
            UnsupportedTensor: the dtype or rank cannot be encoded, or profile ``fp16`` meets a value above 65504.
            NonFiniteTensor: a value is NaN or infinite.
        """
        values, shape, dtype = to_float32(x)
        header = Header(profile=self.config.profile, dtype=dtype, shape=shape, checksum=self.config.checksum)
        writer = Writer()
        writer.header(header)
        if self.config.profile == "fp16":
            writer.raw(_to_halves(values), "values")
        elif self.config.profile == "slicer":
            slicer.write(writer, self._kernels.encode_slicer(values, self.config), header, self.config.positions)
        else:
            contextual.write(writer, self._kernels.encode_contextual(values, shape, self.config))
        return writer.finish(checksum=self.config.checksum)


def decode(
    frame: Frame, like: Like = "torch", *, max_elements: int = DEFAULT_MAX_ELEMENTS, backend: str = "auto"
) -> Any:
    """The tensor of a frame, with the shape and dtype that were encoded.

    Args:
        frame: bytes from anywhere; nothing is allocated before its size is proved.
        like: ``"torch"`` or ``"numpy"``. NumPy has no bfloat16; such a frame comes as float32.
        max_elements: refuse a frame that declares more elements.
        backend: which implementation reconstructs; all give the same bits.

    Raises:
        FrameError: the frame breaks a rule of docs/wire-format.md; the subclass names the rule.
    """
    reader = Reader(frame)
    header = reader.header(max_elements)
    values = _read_values(reader, header, backends.load(backend))
    return from_float32(values, header.shape, header.dtype, like)


def _read_values(reader: Reader, header: Header, kernels: backends.Kernels) -> Float32:
    if header.profile == "fp16":
        values = _from_halves(reader, header.num_elements)
        reader.finish()
        return values
    if header.profile == "slicer":
        survivors = slicer.read(reader, header)
        reader.finish()
        return kernels.decode_slicer(survivors, header.num_elements)
    coded = contextual.read(reader, header, kernels.unpack_model)
    reader.finish()
    if coded is None:
        return np.zeros(header.num_elements, np.float32)
    return saturate(kernels.decode_contextual(coded, header.shape), header.dtype, coded.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameInfo:
    """What a frame says about itself."""

    shape: tuple[int, ...]
    """Shape of the tensor."""

    dtype: str
    """Element type of the tensor."""

    config: dict[str, Any]
    """The settings that can be told from the frame (the sparsity is the one reached)."""

    part_bytes: dict[str, int]
    """Bytes of each part; they sum to ``num_bytes``."""

    num_bytes: int
    """Length of the frame."""

    @property
    def bits_per_element(self) -> float:
        """Bits of the whole frame, header and checksum included, per element; NaN for an empty tensor."""
        num_elements = int(np.prod(self.shape, dtype=np.int64))
        return 8 * self.num_bytes / num_elements if num_elements else float("nan")


def inspect(frame: Frame, *, max_elements: int = DEFAULT_MAX_ELEMENTS) -> FrameInfo:
    """Reads and proves a frame's structure without reconstructing the tensor.

    Raises what :func:`decode` raises, but for faults inside entropy-coded streams, which only decoding them shows.
    """
    reader = Reader(frame)
    header = reader.header(max_elements)
    config: dict[str, Any] = {"profile": header.profile, "checksum": header.checksum}
    if header.profile == "fp16":
        _from_halves(reader, header.num_elements)
    elif header.profile == "serverlight":
        coded = contextual.read(reader, header)
        config["step"] = coded.step if coded else 0.0
    else:
        survivors = slicer.read(reader, header)
        config["sparsity"] = 1 - len(survivors.positions) / max(header.num_elements, 1)
        config["num_groups"] = len(survivors.bits)
        config["bits"] = [int(bits) for bits in survivors.bits]
    reader.finish()
    return FrameInfo(
        shape=header.shape,
        dtype=header.dtype,
        config=config,
        part_bytes=reader.part_bytes,
        num_bytes=len(memoryview(frame).cast("B")),
    )


def _to_halves(values: Float32) -> bytes:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise UnsupportedTensor("a value is above 65504, the largest float16; use profile 'slicer'")
    return halves.tobytes()


def _from_halves(reader: Reader, num_elements: int) -> Float32:
    values = np.frombuffer(reader.take(2 * num_elements, "values"), "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise InconsistentFrame("values: a half is NaN or infinite")
    return values + np.float32(0)  # negative zero decodes as +0 (section 3.2)

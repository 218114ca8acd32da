"""Tensors to frames and back: the only place that knows the order of the stages."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec import backends, contextual, slicer
from serverlight.codec.backends import Float32
from serverlight.codec.basis import Basis
from serverlight.codec.config import CodecConfig
from serverlight.codec.device import decode_to_device, encode_on_device, kernels_for
from serverlight.codec.tables import TRELLIS
from serverlight.codec.tensors import (
    Like,
    Tensor,
    check_finite,
    device_type_of,
    from_float32,
    to_float32,
    values_of,
    write_to,
)
from serverlight.codec.turned import frame_of, read_front, read_turned
from serverlight.codec.wire import DEFAULT_MAX_ELEMENTS, Header, Reader, Writer, behind_header, header_bytes, sealed
from serverlight.errors import ConfigError, FrameError, InconsistentFrame, UnsupportedTensor

__all__ = ["Codec", "FrameInfo", "decode", "decode_batch", "decode_into", "inspect", "warm_up"]

Frame = bytes | bytearray | memoryview


class Codec:
    """Encodes tensors with one set of knobs.

    >>> codec = Codec(CodecConfig(profile="slicer", sparsity=0.5, num_groups=2))
    >>> frame = codec.encode(np.array([[0.0, -3.0, 0.5, 1.0]], np.float32))
    >>> decode(frame, like="numpy")
    array([[ 0., -3.,  0.,  1.]], dtype=float32)
    """

    def __init__(self, config: CodecConfig | None = None, *, basis: Basis | None = None, backend: str = "auto") -> None:
        self.config = config if config is not None else CodecConfig()
        if basis is not None and self.config.profile != "serverlight":
            raise ConfigError("basis", f"profile {self.config.profile} takes none; choose profile serverlight")
        if basis is not None and self.config.transform != "none":
            raise ConfigError("transform", "is 'cosine', and there is a basis; features are in one or the other")
        self.basis = basis
        self._is_plain = basis is None and self.config.transform == "none" and not self.config.bias_correction
        self._kernels, self._backend = backends.load(backend), backend

    def __repr__(self) -> str:
        return f"Codec({self.config!r}, backend={self._kernels.name!r})"

    def encode(self, x: Tensor) -> bytes:
        """One self-contained frame for ``x``: float16, bfloat16 or float32, any shape, rank 0 to 8, on any device.

        Under a basis a frame can be read only where the basis is, and channels are the last dimension.

        Raises:
            UnsupportedTensor: the dtype or rank cannot be encoded, profile ``fp16`` meets a value above 65504, or the shape
                does not suit the basis.
            NonFiniteTensor: a value is NaN or infinite.
        """
        config = self.config
        if config.profile == "serverlight" and self._is_plain:
            kernels = backends.for_device(self._backend, device_type_of(x))
            if kernels is not None and not isinstance(x, np.ndarray | np.generic):
                return encode_on_device(x, config, kernels)
        values, shape, dtype = to_float32(x)
        head = header_bytes(config.profile, dtype, shape, config.checksum)
        if config.profile == "serverlight":
            if not self._is_plain:
                return frame_of(values, shape, dtype, config, self.basis, self._kernels)
            return sealed(head, self._kernels.encode_contextual(values, shape, config), checksum=config.checksum)
        check_finite(values)
        if config.profile == "fp16":
            return sealed(head, _to_halves(values), checksum=config.checksum)
        writer = Writer()
        header = Header(profile=config.profile, dtype=dtype, shape=shape, checksum=config.checksum)
        writer.header(header)
        slicer.write(writer, self._kernels.encode_slicer(values, config), header, config.positions)
        return writer.finish(checksum=config.checksum)


def decode(
    frame: Frame,
    like: Like = "torch",
    *,
    device: Any = None,
    basis: Basis | None = None,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    backend: str = "auto",
) -> Any:
    """The tensor of a frame, with the shape and dtype that were encoded.

    Args:
        frame: bytes from anywhere; nothing is allocated before its size is proved.
        like: ``"torch"`` or ``"numpy"``. NumPy has no bfloat16; such a frame comes as float32.
        device: where a torch tensor is to lie, as ``torch.device`` takes it; on the CPU unless told otherwise.
        basis: for frames that name it; others do not need it.
        max_elements: refuse a frame that declares more elements.
        backend: which implementation reconstructs; all give the same bits.

    Raises:
        FrameError: the frame breaks a rule of docs/wire-format.md; the subclass names the rule.
    """
    reader = Reader(frame)
    header = reader.header(max_elements)
    kernels = None if device is None else _kernels_there(device, [header], like, backend)
    if kernels is not None:
        there, fault = decode_to_device(header, [reader.rest("sections")], device, kernels)
        if fault is not None:
            raise fault[1]
        return there.view(header.shape)
    values = np.empty(header.num_elements, np.float32)
    _read_values(reader, header, backends.load(backend), values, basis)
    x = from_float32(values, header.shape, header.dtype, like)
    return x if device is None else x.to(device)  # type: ignore[union-attr]


def _kernels_there(device: Any, headers: Iterable[Header], like: Like, backend: str) -> backends.DeviceKernels | None:
    """What decodes such frames on the device; ``None`` where the host does it."""
    if like != "torch":
        raise ConfigError("like", f"must be 'torch' where a device is given, got {like!r}")
    kernels = kernels_for(backend, device)
    is_for_them = all(header.profile == "serverlight" and not header.is_turned for header in headers)
    return kernels if is_for_them else None


def decode_into(
    frame: Frame,
    out: Tensor,
    *,
    basis: Basis | None = None,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    backend: str = "auto",
) -> None:
    """Decodes a frame into a tensor that is there already.

    Args:
        frame: bytes from anywhere.
        out: NumPy array or torch tensor of the frame's shape and dtype (float32 for bfloat16 in NumPy); a contiguous one of
            float32 on the CPU is written to without a copy. Its values have no meaning after an error.
        basis: see :func:`decode`.
        max_elements: refuse a frame that declares more elements.
        backend: which implementation reconstructs; all give the same bits.

    Raises:
        FrameError: the frame breaks a rule of docs/wire-format.md; the subclass names the rule.
        UnsupportedTensor: ``out`` has another shape or dtype than the frame, or cannot be written to.
    """
    reader = Reader(frame)
    header = reader.header(max_elements)
    values = values_of(out, header.shape, header.dtype)
    if values is not None:
        _read_values(reader, header, backends.load(backend), values, basis)
        return
    values = np.empty(header.num_elements, np.float32)
    _read_values(reader, header, backends.load(backend), values, basis)
    write_to(out, values, header.shape, header.dtype)


def decode_batch(
    frames: Sequence[Frame],
    like: Like = "torch",
    *,
    device: Any = None,
    basis: Basis | None = None,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    backend: str = "auto",
) -> Any:
    """The tensors of many frames, joined along the first dimension, in one call and one allocation.

    >>> tokens = np.arange(8, dtype=np.float32).reshape(2, 4)
    >>> frames = [Codec(CodecConfig(profile="fp16")).encode(token[None]) for token in tokens]
    >>> decode_batch(frames, like="numpy")
    array([[0., 1., 2., 3.],
           [4., 5., 6., 7.]], dtype=float32)

    Args:
        frames: at least one; all of one dtype and one shape, of rank 1 and more.
        like: see :func:`decode`.
        device: see :func:`decode`.
        basis: see :func:`decode`.
        max_elements: refuse frames that declare more elements together.
        backend: see :func:`decode`.

    Raises:
        FrameError: a frame breaks a rule of docs/wire-format.md, or differs in shape or dtype; the message names its index.
    """
    if not frames:
        raise ConfigError("frames", "is empty; pass at least one frame")
    alike = _sections_alike(frames, max_elements)
    readers = [] if alike else _readers_of(frames, max_elements)
    header = alike[0] if alike else readers[0][1]
    shape = (len(frames) * header.shape[0], *header.shape[1:])
    headers = [header, *(own for _, own in readers)]
    kernels = None if device is None else _kernels_there(device, headers, like, backend)
    if kernels is not None:
        sections = alike[1] if alike else [reader.rest("sections") for reader, _ in readers]
        there, fault = decode_to_device(header, sections, device, kernels)
        if fault is not None:
            raise _in_batch(*fault) from fault[1]
        return there.view(shape)
    values = np.empty(len(frames) * header.num_elements, np.float32)
    loaded = backends.load(backend)
    fault = (
        loaded.decode_contextuals(alike[1], header, values) if alike else _read_batch(readers, loaded, values, basis)
    )
    if fault is not None:
        raise _in_batch(*fault) from fault[1]
    x = from_float32(values, shape, header.dtype, like)
    return x if device is None else x.to(device)  # type: ignore[union-attr]


def _sections_alike(frames: Sequence[Frame], max_elements: int) -> tuple[Header, list[memoryview]] | None:
    """The header that all frames of profile ``serverlight`` have, if they have the same one, and what each has behind it.

    None where any differs or breaks a rule: then frames are read one by one, which tells what is wrong.
    """
    reader, first = Reader(frames[0]), memoryview(frames[0]).cast("B")
    try:
        header = reader.header(max_elements // len(frames))
    except FrameError:
        return None
    if header.profile != "serverlight" or header.is_turned or not header.shape:
        return None
    start = bytes(first[: reader.part_bytes["header"]])
    sections = [behind_header(frame, start, header.checksum) for frame in frames]
    return (header, [part for part in sections if part is not None]) if None not in sections else None


def _readers_of(frames: Sequence[Frame], max_elements: int) -> list[tuple[Reader, Header]]:
    """Frames with their headers read and proved alike, of rank 1 and more."""
    readers: list[tuple[Reader, Header]] = []
    for index, frame in enumerate(frames):
        try:
            reader = Reader(frame)
            header = reader.header(max_elements // len(frames))
            _check_alike(header, readers[0][1] if readers else header)
        except FrameError as error:
            raise _in_batch(index, error) from error
        readers.append((reader, header))
    return readers


def _in_batch(index: int, error: FrameError) -> FrameError:
    return type(error)(f"frame {index}: {error}")


def _check_alike(header: Header, first: Header) -> None:
    if not header.shape:
        raise InconsistentFrame("a tensor of rank 0 has no dimension to join along; use decode")
    if header is not first and (header.shape, header.dtype) != (first.shape, first.dtype):
        raise InconsistentFrame(
            f"{header.dtype} of shape {header.shape}, but frame 0 has {first.dtype} of shape {first.shape}"
        )


def _read_values(reader: Reader, header: Header, kernels: backends.Kernels, out: Float32, basis: Basis | None) -> None:
    if header.is_turned:
        read_turned(reader, header, kernels, out, basis)
    elif header.profile == "serverlight":
        kernels.decode_contextual(reader.rest("sections"), header, out)
    elif header.profile == "fp16":
        halves = _from_halves(reader, header.num_elements)
        reader.finish()
        out[:] = halves
    else:
        survivors = slicer.read(reader, header)
        reader.finish()
        out[:] = kernels.decode_slicer(survivors, header.num_elements)


def _read_batch(
    readers: Sequence[tuple[Reader, Header]], kernels: backends.Kernels, out: Float32, basis: Basis | None
) -> tuple[int, FrameError] | None:
    """Reads frames of one shape and dtype; returns the first that breaks a rule, and how."""
    if all(header.profile == "serverlight" and not header.is_turned for _, header in readers):
        sections = [reader.rest("sections") for reader, _ in readers]
        return kernels.decode_contextuals(sections, readers[0][1], out)
    for index, ((reader, header), values) in enumerate(zip(readers, out.reshape(len(readers), -1), strict=True)):
        try:
            _read_values(reader, header, kernels, values, basis)
        except FrameError as error:
            return index, error
    return None


@functools.cache
def warm_up(backend: str = "auto") -> float:
    """Makes the backend ready, so that no request has to wait for it; returns the seconds it took.

    With Numba the first call on a machine compiles, for two minutes or so; later processes load the machine code from
    disk in well under a second.
    """
    started = time.perf_counter()
    frame = Codec(backend=backend).encode(np.ones((2, 2), np.float32))
    decode(frame, "numpy", backend=backend)
    return time.perf_counter() - started


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
    if header.basis:
        config["basis"] = header.basis.hex()
    if header.profile == "fp16":
        _from_halves(reader, header.num_elements)
    elif header.profile == "serverlight":
        config |= {"transform": "cosine" if header.cosine else "none", "bias_correction": header.corrected}
        read_as, _ = read_front(reader, header)
        coded = contextual.read(reader, read_as)
        config["step"] = coded.step if coded else 0.0
        config["trellis"] = coded is not None and coded.kind == TRELLIS
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

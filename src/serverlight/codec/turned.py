"""What is coded in place of a tensor's elements, or beside them: coefficients in a calibrated basis, the waves that its planes are
made of, or what each plane lacks in the mean.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from serverlight.codec import backends, bias, contextual, cosine
from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.basis import Basis, named
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Layout, natural_layout
from serverlight.codec.tensors import check_finite, from_double
from serverlight.codec.wire import CORRECTED_FORM, COSINE_FORM, Header, Reader, header_bytes, sealed
from serverlight.errors import UnknownBasis, UnsupportedTensor

__all__ = ["frame_of", "read_front", "read_turned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A tensor as the codec sees it."""

    values: Float32
    """Flat."""

    shape: tuple[int, ...]
    digest: bytes = b""
    """Of the basis."""

    spreads: Spreads = dataclasses.field(default_factory=lambda: NO_SPREADS)
    cosine: bool = False


def frame_of(
    values: Float32,
    shape: tuple[int, ...],
    dtype: str,
    config: CodecConfig,
    basis: Basis | None,
    kernels: backends.Kernels,
) -> bytes:
    """The frame of profile ``serverlight`` of flat ``values``, in what form of them basis and settings ask for, if it suits them.

    Raises:
        UnsupportedTensor: the shape does not suit the basis.
        NonFiniteTensor: a value is NaN or infinite.
    """
    seen = _seen_as(values, shape, config, basis)
    section = kernels.encode_contextual(seen.values, seen.shape, config, seen.spreads)
    form, corrections = COSINE_FORM if seen.cosine else 0, b""
    if config.bias_correction and seen.values is values and bias.suits(shape):
        corrections = _corrections(values, section, shape, kernels)
        form = CORRECTED_FORM if corrections else 0
    head = header_bytes(config.profile, dtype, shape, config.checksum, seen.digest, form)
    return sealed(head, corrections, section, checksum=config.checksum)


def _corrections(
    values: Float32, section: bytes | memoryview, shape: tuple[int, ...], kernels: backends.Kernels
) -> bytes:
    """What a reader of the sections lacks in the mean of each plane, packed; nothing if it lacks nothing."""
    read_as = Header(profile="serverlight", dtype="float32", shape=shape, checksum=False)
    step, units = contextual.with_unit_step(memoryview(section), read_as)
    if not step:
        return b""
    read = np.empty(len(values), np.float32)
    kernels.decode_contextual(units, read_as, read)
    return bias.packed(bias.corrections_of(values, read, step, shape))


def _seen_as(values: Float32, shape: tuple[int, ...], config: CodecConfig, basis: Basis | None) -> Seen:
    """The tensor in the basis, if there is one; or as waves, if the settings say so and it has any."""
    if basis is not None:
        check_finite(values)
        if natural_layout(shape) is Layout.PLANES:
            raise UnsupportedTensor(
                f"a tensor of shape {shape} is taken for feature maps, which have no basis; encode without"
            )
        turned = basis.coefficients(values, shape)
        return Seen(values=turned, shape=shape, digest=basis.digest, spreads=basis.spreads)
    if config.transform == "cosine" and cosine.suits(values, shape):
        check_finite(values)
        waves = cosine.coefficients(values, shape)
        if waves is not None:
            return Seen(values=waves, shape=cosine.seen_as(shape), cosine=True)
    return Seen(values=values, shape=shape)


def read_front(reader: Reader, header: Header) -> tuple[Header, bias.Ints | None]:
    """What the sections of a frame are to be read as, and the corrections before them, if there are any.

    Raises:
        FrameError: the shape does not suit the form, or the corrections break a rule.
    """
    if header.cosine:
        return cosine.coded_as(header), None
    if header.corrected:
        bias.check_shape(header.shape)
        return dataclasses.replace(header, dtype="float32"), bias.read(reader, header.shape)
    return dataclasses.replace(header, dtype="float32") if header.basis else header, None


def read_turned(reader: Reader, header: Header, kernels: backends.Kernels, out: Float32, given: Basis | None) -> None:
    """Sections 6.8, 6.10 and 6.11: what the backend decodes are whole 64ths of the step, not rounded to the frame's dtype yet."""
    read_as, corrections = read_front(reader, header)
    sections = reader.rest("sections")
    basis = _named(given, header, sections) if header.basis else None
    step, section = contextual.with_unit_step(sections, read_as)
    kernels.decode_contextual(section, read_as, out, NO_SPREADS if basis is None else basis.spreads)
    if basis is not None:
        values = basis.values(out, step)
    elif corrections is None:
        values = cosine.values_of(out, step, header.shape)
    else:
        values = bias.corrected(out, corrections, step, one_sided=contextual.is_one_sided(sections))
    out[:] = from_double(values, header.dtype)


def _named(given: Basis | None, header: Header, sections: memoryview) -> Basis:
    try:
        return named(given, header.basis, header.shape)
    except UnknownBasis:  # what is wrong with the frame itself comes first, as it does in `inspect`
        proof = Reader(sections)
        contextual.read(proof, header)
        proof.finish()
        raise

"""What is coded in place of a tensor's elements: coefficients in a calibrated basis, or the waves that its planes are made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from serverlight.codec import backends, contextual, cosine
from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.basis import Basis, named
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Layout, natural_layout
from serverlight.codec.tensors import check_finite, from_double
from serverlight.codec.wire import Header, Reader
from serverlight.errors import UnknownBasis, UnsupportedTensor

__all__ = ["Seen", "coded_as", "read_turned", "seen_as"]


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


def seen_as(values: Float32, shape: tuple[int, ...], config: CodecConfig, basis: Basis | None) -> Seen:
    """The tensor of flat ``values`` in the basis, if there is one; or as waves, if the settings say so and it has any.

    Raises:
        UnsupportedTensor: the shape does not suit the basis.
        NonFiniteTensor: a value is NaN or infinite.
    """
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


def coded_as(header: Header) -> Header:
    """What the sections of a frame are to be read as; raises :class:`InconsistentFrame` for a shape that is no planes'."""
    if header.cosine:
        return cosine.coded_as(header)
    return dataclasses.replace(header, dtype="float32") if header.basis else header


def read_turned(reader: Reader, header: Header, kernels: backends.Kernels, out: Float32, given: Basis | None) -> None:
    """Sections 6.8 and 6.10: what the backend decodes are whole 64ths of the step, not rounded to the frame's dtype yet."""
    sections, read_as = reader.rest("sections"), coded_as(header)
    basis = None if header.cosine else _named(given, header, sections)
    step, section = contextual.with_unit_step(sections, read_as)
    kernels.decode_contextual(section, read_as, out, NO_SPREADS if basis is None else basis.spreads)
    values = cosine.values_of(out, step, header.shape) if basis is None else basis.values(out, step)
    out[:] = from_double(values, header.dtype)


def _named(given: Basis | None, header: Header, sections: memoryview) -> Basis:
    try:
        return named(given, header.basis, header.shape)
    except UnknownBasis:  # what is wrong with the frame itself comes first, as it does in `inspect`
        proof = Reader(sections)
        contextual.read(proof, header)
        proof.finish()
        raise

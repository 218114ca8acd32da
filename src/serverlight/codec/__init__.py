"""Training-free compression of activations: any float tensor to a self-contained frame and back. Needs NumPy only."""

from serverlight.codec.basis import Basis, calibrate_basis
from serverlight.codec.codec import Codec, FrameInfo, decode, decode_batch, decode_into, inspect, warm_up
from serverlight.codec.config import CodecConfig

__all__ = [
    "Basis",
    "Codec",
    "CodecConfig",
    "FrameInfo",
    "calibrate_basis",
    "decode",
    "decode_batch",
    "decode_into",
    "inspect",
    "warm_up",
]

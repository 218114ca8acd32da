"""Compress a feature map, look at what it became, and see what the settings cost and save."""

import numpy as np

import serverlight as sl

rng = np.random.default_rng(0)
feature = np.maximum(rng.standard_normal((64, 14, 14), np.float32), 0)  # as after a ReLU

print("profile      sparsity  bytes  bits/element  error energy")
for profile, sparsity in [("slicer", 0.6), ("slicer", 0.75), ("serverlight", 0.6), ("serverlight", 0.75)]:
    codec = sl.Codec(sl.CodecConfig(profile=profile, sparsity=sparsity))
    frame = codec.encode(feature)
    received = sl.decode(frame, like="numpy")
    assert received.shape == feature.shape
    assert received.dtype == feature.dtype
    error = np.square(received - feature).sum() / np.square(feature).sum()
    info = sl.inspect(frame)
    print(f"{profile:12} {sparsity:8} {len(frame):6} {info.bits_per_element:13.3f} {error:13.1%}")

print("bytes per part of the last frame:", info.part_bytes)

altered = bytearray(frame)
altered[40] ^= 1
try:
    sl.decode(altered)
except sl.ServerlightError as error:
    print(f"a frame with one altered bit: {type(error).__name__}: {error}")

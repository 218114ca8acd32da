"""Compress a feature map, look at what it became, and see what the settings cost and save."""

import numpy as np

import serverlight as sl

rng = np.random.default_rng(0)
feature = np.maximum(rng.standard_normal((64, 14, 14), np.float32), 0)  # as after a ReLU

print("sparsity  groups  bytes  bits/element  error energy")
for sparsity, num_groups in [(0.5, 1), (0.5, 4), (0.75, 1), (0.75, 4), (0.9, 4)]:
    codec = sl.Codec(sl.CodecConfig(profile="slicer", sparsity=sparsity, num_groups=num_groups, distortion=0.05))
    frame = codec.encode(feature)
    received = sl.decode(frame, like="numpy")
    assert received.shape == feature.shape
    assert received.dtype == feature.dtype
    error = np.square(received - feature).sum() / np.square(feature).sum()
    info = sl.inspect(frame)
    print(f"{sparsity:8} {num_groups:7} {len(frame):6} {info.bits_per_element:13.3f} {error:12.1%}")

print("bytes per part of the last frame:", info.part_bytes)

altered = bytearray(frame)
altered[40] ^= 1
try:
    sl.decode(altered)
except sl.ServerlightError as error:
    print(f"a frame with one altered bit: {type(error).__name__}: {error}")

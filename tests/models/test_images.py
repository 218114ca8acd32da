"""Tests of serverlight.models.images."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serverlight.errors import ConfigError, InputMismatch
from serverlight.models.images import crop_image, decode_image, encode_jpeg, encode_png, open_image, resize_images

SHAPES = [(16, 24, 3), (16, 24, 1), (1, 1, 3)]


def picture(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved_as(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=kind)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, over hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("shape", SHAPES)
def test_png_round_trip(shape: tuple[int, int, int]) -> None:
    """PNG is lossless."""
    image = picture(shape)
    np.testing.assert_array_equal(decode_image(encode_png(image), shape), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_jpeg_round_trip(shape: tuple[int, int, int]) -> None:
    """JPEG keeps shape and dtype, and a flat image to within a step or two."""
    flat = np.full(shape, 100, np.uint8)
    decoded = decode_image(encode_jpeg(flat, 90), shape)
    assert decoded.shape == shape
    assert decoded.dtype == np.uint8
    assert abs(decoded.astype(int) - 100).max() <= 2


def test_lower_quality_is_smaller() -> None:
    """The quality setting reaches the encoder."""
    image = resize_images(picture((8, 8, 3))[None], 64, 64)[0]
    assert len(encode_jpeg(image, 30)) < len(encode_jpeg(image, 90)) < len(encode_png(image))


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_rejects_quality_out_of_range(quality: int) -> None:
    """Pillow would accept any number; here it is an error that names the field."""
    with pytest.raises(ConfigError, match=r"quality.*1 to 100"):
        encode_jpeg(picture((8, 8, 3)), quality)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)],
    ids=["dtype", "rank", "channels"],
)
def test_rejects_what_is_no_image(image: np.ndarray) -> None:
    """Only uint8 (H, W, 1 or 3) is encoded."""
    with pytest.raises(InputMismatch, match="expected uint8"):
        encode_png(image)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (20_000, 20_000), (10_000, 10_000), (25, 16), (24, 0)])
def test_checks_declared_size_before_decoding(size: tuple[int, int]) -> None:
    """A header that declares another size, however large, is refused without memory for its pixels or a warning."""
    tracemalloc.start()
    with pytest.raises(InputMismatch):
        decode_image(png_claiming(*size), (16, 24, 3))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_says_which_size_was_expected(kind: str) -> None:
    """The message names both sizes."""
    with pytest.raises(InputMismatch, match="expected 16 x 25 RGB, got 16 x 24 RGB"):
        decode_image(saved_as(kind), (16, 25, 3))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_rejects_other_formats(kind: str) -> None:
    """Only PNG and JPEG are ever parsed."""
    with pytest.raises(InputMismatch, match="neither PNG nor JPEG"):
        decode_image(saved_as(kind), (16, 24, 3))


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("JPEG", "L")]
)
def test_rejects_other_pixel_formats(kind: str, mode: str) -> None:
    """Palettes, alpha, 16 bits and CMYK are not quietly converted."""
    with pytest.raises(InputMismatch, match=r"expected 16 x 24 RGB, got 16 x 24 .*convert it"):
        decode_image(saved_as(kind, mode), (16, 24, 3))


@pytest.mark.parametrize("encode", [encode_png, lambda image: encode_jpeg(image, 80)], ids=["png", "jpeg"])
def test_rejects_every_truncation(encode) -> None:
    """A file cut anywhere is one clear error, unless it lost no more than the 20 bytes that follow the pixels."""
    image = picture((16, 24, 3))
    data = encode(image)
    for length in range(len(data) - 20):
        with pytest.raises(InputMismatch):
            decode_image(data[:length], (16, 24, 3))


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(8, 600), st.integers(0, 255)), min_size=1, max_size=8), png=st.booleans())
def test_damaged_files_decode_or_raise_one_class(flips: list[tuple[int, int]], png: bool) -> None:
    """Whatever bytes are altered, the outcome is pixels of the agreed shape or an InputMismatch."""
    image = picture((16, 24, 3))
    data = bytearray(encode_png(image) if png else encode_jpeg(image, 80))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        decoded = decode_image(bytes(data), (16, 24, 3))
    except InputMismatch:
        return
    assert decoded.shape == (16, 24, 3)


def test_rejects_file_far_larger_than_the_image() -> None:
    """Megabytes of metadata around a small image are refused unread."""
    data = encode_png(picture((16, 24, 3))) + bytes(1 << 20)
    with pytest.raises(InputMismatch, match="bytes are too many"):
        decode_image(data, (16, 24, 3))


def test_rejects_expected_shape_it_cannot_give() -> None:
    """Two or four channels are the caller's mistake, not the sender's."""
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        decode_image(encode_png(picture((4, 4, 3))), (4, 4, 4))


def test_open_image_takes_any_size_and_converts() -> None:
    """The user's own files may have any size and colours."""
    assert open_image(saved_as("PNG", "RGBA"), 3).shape == (16, 24, 3)
    assert open_image(saved_as("JPEG", "RGB"), 1).shape == (16, 24, 1)


def test_resize_keeps_flat_images_flat() -> None:
    """Resampling makes the asked size, one or three channels, and no images of none."""
    for channels in (1, 3):
        resized = resize_images(np.full((2, 8, 8, channels), 77, np.uint8), 32, 24)
        assert resized.shape == (2, 32, 24, channels)
        assert (resized == 77).all()
    assert resize_images(np.zeros((0, 8, 8, 1), np.uint8), 4, 4).shape == (0, 4, 4, 1)


def test_crop_takes_the_middle() -> None:
    """A wide image loses its sides: of three stripes what is left is the middle one, and all of its height but an eighth."""
    image = np.zeros((64, 192, 3), np.uint8)
    image[:, 64:128] = 200
    cropped = crop_image(image, 56, 56)
    assert cropped.shape == (56, 56, 3)
    assert (cropped == 200).all()


@pytest.mark.parametrize("shape", [(30, 90, 3), (90, 30, 1), (8, 8, 3), (300, 301, 3)])
def test_crop_makes_the_size(shape: tuple[int, int, int]) -> None:
    """Any shape, smaller ones too, comes out at the size asked for; what has it already is the same array."""
    cropped = crop_image(picture(shape), 24, 40)
    assert cropped.shape == (24, 40, shape[2])
    assert crop_image(cropped, 24, 40) is cropped

"""Images as bytes and back; the only file that imports Pillow."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from serverlight.errors import ConfigError, InputMismatch

__all__ = ["crop_image", "decode_image", "encode_jpeg", "encode_png", "open_image", "resize_images"]

FORMATS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
}
"""First bytes of a file -> its reader. The readers are named here so that no other of Pillow's is ever reached."""

MODES = {1: "L", 3: "RGB"}
"""Channels of an image -> Pillow's name for such pixels."""

CROP_SCALE = 8 / 7
"""How much larger than the model's input an image is made before its middle is cut out."""

MAX_OVERHEAD_BYTES = 64 << 10
"""Room for headers and metadata beside the pixels, in a file that is to be decoded."""


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG file of one image, uint8 (H, W, 1 or 3); raises :class:`InputMismatch` for anything else.

    >>> picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    >>> bool((decode_image(encode_png(picture), (4, 4, 3)) == picture).all())
    True
    """
    return _save(image, format="PNG", optimize=True)


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG file of one image, uint8 (H, W, 1 or 3), colours at half resolution; ``quality`` from 1 to 100."""
    if not 1 <= quality <= 100:
        raise ConfigError("quality", f"must be from 1 to 100, got {quality}")
    return _save(image, format="JPEG", quality=quality, optimize=True)


def decode_image(data: bytes, expected_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels, uint8 (H, W, C), of a PNG or JPEG file that may come from a stranger.

    Size and pixel format stand in the file's header and are compared with ``expected_shape`` before any pixel is
    decoded, so no file makes this allocate more than the image that was agreed on. Raises :class:`InputMismatch`
    for another format, size or channel count, and for a damaged file.
    """
    height, width, channels = expected_shape
    if channels not in MODES:
        raise ConfigError("expected_shape", f"must have {' or '.join(map(str, MODES))} channels, got {channels}")
    limit = 2 * height * width * channels + MAX_OVERHEAD_BYTES
    if len(data) > limit:
        raise InputMismatch(
            f"image: {len(data)} bytes are too many for {expected_shape}, at most {limit}; recompress it"
        )
    image = _open(data)
    found = (*reversed(image.size), image.mode)
    if found != (height, width, MODES[channels]):
        wanted = f"{height} x {width} {MODES[channels]}"
        raise InputMismatch(f"image: expected {wanted}, got {found[0]} x {found[1]} {found[2]}; convert it first")
    return _pixels(image).reshape(expected_shape)


def open_image(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Pixels, uint8 (H, W, ``channels``), of a PNG or JPEG file of the user's own, whatever its size or colours.

    Raises :class:`InputMismatch` for another format or a damaged file.
    """
    image = _open(data)
    height, width = reversed(image.size)
    return _pixels(image, MODES[channels]).reshape(height, width, channels)


def resize_images(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Images uint8 (N, h, w, C) resampled bicubically to (N, height, width, C)."""
    resized = [
        np.asarray(_to_pillow(image).resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)
        for image in images
    ]
    return np.stack(resized) if resized else np.zeros((0, height, width, images.shape[3]), np.uint8)


def crop_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of an image uint8 (h, w, C), as (height, width, C); one of that size already is left alone.

    As is usual for ImageNet the image is first scaled, bilinearly and as large as needed, so that an eighth of the larger side
    of what it must cover is cut away: a short side of 256 for 224 by 224.

    >>> crop_image(np.zeros((300, 500, 3), np.uint8), 224, 224).shape
    (224, 224, 3)
    """
    if image.shape[:2] == (height, width):
        return image
    scale = max(height / image.shape[0], width / image.shape[1]) * CROP_SCALE
    scaled = [max(side, round(size * scale)) for side, size in zip((height, width), image.shape[:2], strict=True)]
    resized = np.asarray(_to_pillow(image).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR))
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return resized.reshape(*scaled, -1)[top : top + height, left : left + width]


def _save(image: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in MODES:
        raise InputMismatch(f"image: expected uint8 (H, W, 1 or 3), got {image.dtype} {image.shape}; convert it first")
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    return Image.fromarray(np.ascontiguousarray(pixels))


def _open(data: bytes) -> ImageFile.ImageFile:
    for magic, reader in FORMATS.items():
        if data.startswith(magic):
            try:
                return reader(io.BytesIO(data))
            except Exception as exc:  # Pillow's parsers raise half a dozen unrelated classes on damaged files
                raise _damaged(exc) from exc
    raise InputMismatch("image: neither PNG nor JPEG; convert it to one of these")


def _pixels(image: ImageFile.ImageFile, mode: str | None = None) -> NDArray[np.uint8]:
    try:
        image.load()
        return np.array(image if mode is None else image.convert(mode), np.uint8)
    except Exception as exc:  # as in _open
        raise _damaged(exc) from exc


def _damaged(exc: Exception) -> InputMismatch:
    return InputMismatch(f"image: damaged file ({type(exc).__name__}: {exc}); send it again")

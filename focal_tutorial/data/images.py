"""Image files to RGB uint8 tensors: every mode and orientation PIL can read, one error for what it cannot.

Boxes are understood in the image as a viewer shows it, that is with the EXIF orientation applied.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from focal_tutorial.data.problems import printable
from focal_tutorial.errors import InputError

# What PIL's decoders raise on damaged files; MemoryError and KeyboardInterrupt are none of ours.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def image_size(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image file, from its header alone.

    Returns:
        `(shown, stored)`, each `(H, W)` in pixels: with the EXIF orientation applied, and as the pixels lie
        in the file. They differ for pictures that a camera marked as turned by 90 degrees.

    Raises:
        InputError: the file is missing or is no image that PIL can read.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            # The plain class's method: PNG's own decodes the whole image to look behind its pixels.
            turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    return ((width, height) if turned else (height, width)), (height, width)


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image file to RGB.

    Greyscale, palette, CMYK and 16-bit images are converted (16 bits by their upper 8), alpha is dropped, the
    EXIF orientation is applied.

    Args:
        path: the file.
        size: the `(H, W)` that the annotations claim. Where only the stored pixels, without the EXIF
            orientation, have that size, the annotations were made on those, and those are returned.

    Returns:
        uint8 tensor (3, H, W).

    Raises:
        InputError: missing, truncated or unreadable file, or `size` given and not met.
    """
    try:
        with _opened(path) as image:
            stored = (image.height, image.width)
            shown = ImageOps.exif_transpose(image)
            if size is not None and size != (shown.height, shown.width) and size == stored:
                shown = image
            pixels = _to_rgb(shown)  # (H, W, 3)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    if size is not None and pixels.shape[:2] != tuple(size):
        raise InputError(size_mismatch(path, size, (pixels.shape[0], pixels.shape[1])))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def size_mismatch(path: str | Path, claimed: tuple[int, int], found: tuple[int, int]) -> str:
    """The sentence for an image whose size is not what its annotations claim; sizes as `(H, W)`."""
    return (
        f"image {path} is {found[1]}x{found[0]} pixels (width x height), its annotations say "
        f"{claimed[1]}x{claimed[0]}: export the annotations again for this file"
    )


def _opened(path: str | Path) -> Image.Image:
    """The image, of a plain file only: a pipe would wait for ever, and a device has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no plain file")
    return Image.open(path)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, or 32 that carry 16
        wide = np.asarray(image).clip(0, 65535)
        sixteen = image.mode != "I" or wide.max(initial=0) > 255
        narrow = (wide >> 8 if sixteen else wide).astype(np.uint8)
        return np.repeat(narrow[:, :, None], 3, axis=2)  # (H, W, 3)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # palettes with transparency: PIL warns on the direct way
    return np.array(image.convert("RGB"))  # (H, W, 3), a copy that torch may write to


def _unreadable(path: str | Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"image {path} does not exist")
    reason = printable(" ".join(str(error).split())) or type(error).__name__
    return InputError(f"cannot read image {path}: {reason}. Replace the file or remove it from the annotations")

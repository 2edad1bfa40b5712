"""Images, which Pillow reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from emopipe.pipeline.media.container import ReadError
from emopipe.pipeline.media.video import HeaderInfo, Video
from emopipe.pipeline.storage import storage_for

IMAGE = "image"
"""What `Video.backend` says of an image, which Pillow reads."""


def read_image_header(path: Path) -> HeaderInfo:
    """Read an image's header only."""
    return HeaderInfo(0.0, 1)


def probe_image(path: Path, name: str, size: int, alive: Callable[[], None]) -> Video:
    """Index an image."""
    height, width, _ = load_image(path).shape
    return Video(
        path=path,
        name=name,
        backend=IMAGE,
        width=width,
        height=height,
        rotation=0,
        times=np.zeros(1),
        pts=np.zeros(1, np.int64),
        keyframe_pts=np.zeros(0, np.int64),
        fps=0.0,
        truncated_frames=0,
        size=size,
        sha256=storage_for(path).sha256(path),
    )


class ImageReader:
    """The one frame of an image."""

    def __init__(self, video: Video) -> None:
        self._images = [load_image(video.path)]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The image, which is frame 0."""
        return self._images[index]

    def close(self) -> None:
        """Free the image's memory."""
        self._images.clear()


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (height, width, 3) uint8 RGB as displayed.

    Rotated as its EXIF says; alpha composited on white; 16 bits scaled to 8; of an animation the
    first frame.

    Raises:
        ReadError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            return _to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadError(f"{path} is not an image that Pillow can read ({error}).") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers of unknown range: save it with 8 bits"
        )
    if image.mode.startswith("I"):  # 16 bits, stored in 16 or 32
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))

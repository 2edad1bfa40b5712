"""Real frames and images for the tests that need faces."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def clip_frames(path: Path, step: int = 1) -> list[NDArray[np.uint8]]:
    """Every step-th frame of a clip: (height, width, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        decoded = enumerate(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for i, frame in decoded if i % step == 0]


def load_image(path: Path) -> NDArray[np.uint8]:
    """An image file: (height, width, 3) uint8 RGB."""
    with Image.open(path) as file:
        return np.array(file.convert("RGB"))

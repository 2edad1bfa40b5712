"""Real pictures for the tests that need faces."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def clip_frames(path: Path, step: int = 1) -> list[NDArray[np.uint8]]:
    """Every step-th frame of a clip, RGB."""
    with av.open(str(path)) as container:
        decoded = enumerate(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for i, frame in decoded if i % step == 0]


def picture(path: Path) -> NDArray[np.uint8]:
    """A picture file, RGB."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))

"""A clip and images of a real face, made from scikit-image's public-domain portrait."""

from functools import cache
from pathlib import Path

from made_clips import ffmpeg
from PIL import Image
from skimage.data import astronaut

from emopipe.jobs.demo import FRAMES, make_video

__all__ = ["FRAMES", "face_clip", "face_picture", "two_faces_picture"]

KEY_FRAME_EVERY = 10
"""Damage ends at the next key frame, and a truncated file is good up to its last one."""


@cache
def face_clip(folder: Path) -> Path:
    """50 frames of 320×320 px at 25 frames/s with one face each; the MP4 index comes first."""
    made, path = folder / "made" / "face.mp4", folder / "face.mp4"
    made.parent.mkdir()
    make_video(made)
    coder = ["-c:v", "libx264", "-g", str(KEY_FRAME_EVERY), "-bf", "2", "-pix_fmt", "yuv420p"]
    ffmpeg("-i", made, *coder, "-movflags", "+faststart", path)
    return path


def face_picture() -> Image.Image:
    """One face in 512×512 pixels."""
    return Image.fromarray(astronaut())


def two_faces_picture() -> Image.Image:
    """The face twice, the right one half as large, in 768×512 pixels."""
    picture = Image.new("RGB", (768, 512), "grey")
    picture.paste(face_picture(), (0, 0))
    picture.paste(face_picture().resize((256, 256)), (512, 0))
    return picture

"""Small clips for tests, made with the ffmpeg that imageio-ffmpeg brings.

Each shows the same moving waves: smooth, so that it hardly matters how a decoder upsamples chroma,
and different in each frame, so that a wrong frame is noticed.
"""

import subprocess
from functools import cache
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
WIDTH, HEIGHT, FPS, FRAMES = 160, 96, 25, 60

X264 = ["-c:v", "libx264", "-bf", "3", "-g", "15", "-pix_fmt", "yuv420p"]
X265 = ["-c:v", "libx265", "-x265-params", "log-level=none:keyint=15:bframes=3"]
BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
UNTAGGED = "h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2"

ENCODERS = {
    "h264.mp4": [*X264, "-movflags", "+faststart"],
    "hevc.mp4": [*X265, "-pix_fmt", "yuv420p"],
    "ten_bit.mp4": [*X265, "-pix_fmt", "yuv420p10le"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "15"],
    "vp8.webm": ["-c:v", "libvpx", "-g", "15"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-q:v", "3", "-bf", "2", "-g", "15"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"],
    "av1.mp4": ["-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt", "yuv420p"],
    "vfr.mp4": ["-vf", "select='mod(n,2)+not(mod(n,7))'", "-fps_mode", "vfr", *X264],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-pix_fmt", "yuv420p"],
    "raw.264": X264,
    "h264.avi": X264,
}
REMUXERS = {  # name: (source, options before it, options after it)
    "rotated.mp4": ("h264.mp4", ["-display_rotation", "90"], []),
    "upside_down.mp4": ("h264.mp4", ["-display_rotation", "180"], []),
    "edit_list.mp4": ("h264.mp4", ["-ss", "0.3"], []),
    "late.mkv": ("h264.mp4", ["-itsoffset", "5"], []),
}


def make_clip(folder: Path, name: str) -> Path:
    """Return the clip of this name in the folder, making it if it is not there."""
    path = folder / name
    if path.exists():
        return path
    if name in REMUXERS:
        source, before, after = REMUXERS[name]
        ffmpeg(*before, "-i", make_clip(folder, source), "-c", "copy", *after, path)
    else:
        ffmpeg(*waves(WIDTH, HEIGHT, FRAMES), *ENCODERS[name], path)
    return path


def waves(width: int, height: int, frames: int) -> list[str]:
    """Options of ffmpeg for waves of any size as input."""
    source = (
        f"color=black:size={width}x{height}:rate={FPS},format=yuv420p,"
        f"geq=lum='128+80*sin((X+9*N)*24/{width})':cb='128+40*sin((Y+5*N)*9/{height})'"
        f":cr='128+40*cos((X+7*N)*12/{width})'"
    )
    return ["-f", "lavfi", "-i", source, "-frames:v", str(frames)]


def make_flat(path: Path, size: str, rgb: str, matrix: str, extra: list[str]) -> Path:
    """Make five H.264 frames of one colour, encoded with the given colour matrix."""
    scale = f"format=gbrp,scale=out_color_matrix={matrix}:out_range=tv"
    source = ["-f", "lavfi", "-i", f"color={rgb}:size={size}:rate={FPS}", "-frames:v", "5"]
    encoder = ["-c:v", "libx264", "-crf", "4", "-pix_fmt", "yuv420p"]
    ffmpeg(*source, "-vf", scale, *encoder, *extra, path)
    return path


@cache
def shown_frames(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """The frames that ffmpeg shows of a clip: (frames, height, width, 3) uint8 RGB."""
    output = ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    return np.frombuffer(ffmpeg("-i", path, *output), np.uint8).reshape(-1, height, width, 3)


def ffmpeg(*arguments: str | Path) -> bytes:
    """Run ffmpeg and return what it writes to standard output."""
    command = [FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def zero_packets(path: Path, chosen: slice) -> None:
    """Overwrite the content of an MP4's chosen packets with zeros."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size) for packet in packets[chosen]]
    content = bytearray(path.read_bytes())
    for position, size in places:
        assert position is not None
        content[position : position + size] = bytes(size)
    path.write_bytes(content)

"""Small videos of many containers and codecs, damaged at random: see `fuzz`."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
from made_clips import FFMPEG, ffmpeg, waves
from numpy.typing import NDArray

WIDTH, HEIGHT, FRAMES = 160, 96, 40

SOUND = ["-f", "lavfi", "-i", "sine=duration=1.6"]
X264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-g", "15", "-bf", "3"]
X264 += ["-x264-params", "b-adapt=0:scenecut=0"]
X265 = ["-c:v", "libx265", "-crf", "18", "-pix_fmt", "yuv420p"]
X265 += ["-x265-params", "log-level=none:keyint=15:bframes=3:b-adapt=0:scenecut=0"]

AV1 = ["-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "20", "-pix_fmt", "yuv420p", "-g", "15"]

ENCODERS = {
    "h264.mp4": [*X264, "-c:a", "aac"],
    "hevc.mp4": X265,
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "15", "-c:a", "libopus"],
    "vp8.webm": ["-c:v", "libvpx", "-g", "15", "-b:v", "1M"],
    "h264.mkv": [*X264, "-c:a", "aac"],
    "h264.flv": [*X264, "-c:a", "aac"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-q:v", "3", "-bf", "2", "-g", "15", "-c:a", "libmp3lame"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-g", "15", "-c:a", "mp2"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"],
    "av1.mp4": AV1,
    "wmv2.wmv": ["-c:v", "wmv2", "-q:v", "3", "-g", "15", "-c:a", "wmav2"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "7", "-g", "15", "-c:a", "libvorbis"],
}
"""ffmpeg's options for each clip: key frames every 15 frames, B-frames where the codec has them,
and sound in those whose options name an encoder for it."""

HEADER_BYTES = 1024
"""Headers lie in the first or, MP4's, in the last bytes of these clips: so many."""

LONGEST_RANGE = 2000
"""Bytes that are overwritten, or cut out, at most: as long as some frames of these clips."""

FFMPEG_S = 20.0
"""ffmpeg is given so long for a file of some 30 kB."""


@dataclass(frozen=True)
class Clip:
    """An undamaged video.

    Attributes:
        content: The file.
        packets: Position and size in bytes of each packet of the video.
        frames: (frames, height, width, 3) uint8 RGB.
    """

    content: bytes
    packets: list[tuple[int, int]]
    frames: NDArray[np.uint8]


def flip_bits(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Flip one to sixteen bits anywhere."""
    for _ in range(2 ** rng.randrange(5)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def truncate(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Cut the file off anywhere."""
    return content[: rng.randrange(1, len(content))]


def change_header(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Overwrite one to four bytes where headers lie."""
    for _ in range(rng.randint(1, 4)):
        offset = rng.randrange(min(HEADER_BYTES, len(content)))
        content[rng.choice((offset, -1 - offset))] = rng.randrange(256)
    return content


def swap_packets(content: bytearray, clip: Clip, rng: random.Random) -> bytearray:
    """Exchange two packets' content, as far as the shorter one's size."""
    (one, size), (other, other_size) = rng.sample(clip.packets, 2)
    size = min(size, other_size, abs(one - other))
    first, second = content[one : one + size], content[other : other + size]
    content[one : one + size], content[other : other + size] = second, first
    return content


def zero_range(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Overwrite a range with zeros."""
    start, stop = _range(content, rng)
    content[start:stop] = bytes(stop - start)
    return content


def noise_range(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Overwrite a range with noise."""
    start, stop = _range(content, rng)
    content[start:stop] = rng.randbytes(stop - start)
    return content


def cut_out(content: bytearray, _clip: Clip, rng: random.Random) -> bytearray:
    """Leave a range out."""
    start, stop = _range(content, rng)
    del content[start:stop]
    return content


def _range(content: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.randint(1, LONGEST_RANGE))


Mutation = Callable[[bytearray, Clip, random.Random], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    truncate,
    change_header,
    swap_packets,
    zero_range,
    noise_range,
    cut_out,
)


@cache
def undamaged(folder: Path, name: str) -> Clip:
    """Make a clip, or read it where it has been made."""
    path = folder / name
    if not path.exists():
        options = ENCODERS[name]
        sound = SOUND if "-c:a" in options else []
        unfinished = path.with_name(f"{time.monotonic_ns()}-{name}")
        source = waves(WIDTH, HEIGHT, FRAMES)
        ffmpeg(*source[:-2], *sound, *source[-2:], *options, unfinished)
        unfinished.rename(path)
    with av.open(str(path)) as container:
        packets = [
            (packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.size and packet.pos is not None and packet.pos >= 0
        ]
    frames = ffmpeg_frames(path)
    assert len(frames) == FRAMES, f"{name} has {len(frames)} frames"
    return Clip(path.read_bytes(), packets, frames)


def make_clips(folder: Path) -> None:
    """Make all clips."""
    for name in ENCODERS:
        undamaged(folder, name)


def damaged(folder: Path, seed: int) -> tuple[str, str, Path]:
    """Write the damaged file of a seed into a folder that has, or gets, the undamaged clips.

    Returns:
        The clip's and the mutation's name, and the file.
    """
    rng = random.Random(seed)
    name = rng.choice(list(ENCODERS))
    mutation = rng.choice(MUTATIONS)
    clip = undamaged(folder, name)
    path = folder / f"{seed}-{name}"
    path.write_bytes(mutation(bytearray(clip.content), clip, rng))
    return name, mutation.__name__, path


def ffmpeg_frames(path: Path) -> NDArray[np.uint8]:
    """What ffmpeg shows of a file, past errors: (frames, height, width, 3) uint8 RGB."""
    command = [FFMPEG, "-v", "quiet", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-s", f"{WIDTH}x{HEIGHT}", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=FFMPEG_S, check=False)
        shown = done.stdout
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
    frame_bytes = WIDTH * HEIGHT * 3
    shown = shown[: len(shown) // frame_bytes * frame_bytes]
    return np.frombuffer(shown, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)

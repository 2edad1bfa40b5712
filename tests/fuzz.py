"""Damages small videos at random and holds what is read of them to the undamaged ones and ffmpeg.

    python tests/fuzz.py [--files 5000] [--seed 0] [--jobs 2]
    python tests/fuzz.py --only SEED    # one file again, with what became of each of its frames

All of a damaged file follows from its seed. What is wrong with what is read of it, see `Outcome`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from made_clips import FFMPEG, ffmpeg, waves
from numpy.typing import NDArray
from PIL import Image

import emopipe
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.sampling import sample
from emopipe.pipeline.media.video import VideoError
from emopipe.pipeline.table.commit import OrderedRows, record_of

WIDTH, HEIGHT, FRAMES = 160, 96, 40

SOUND = ["-f", "lavfi", "-i", "sine=duration=1.6"]
X264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-g", "15", "-bf", "3"]
X264 += ["-x264-params", "b-adapt=0:scenecut=0"]
X265 = ["-c:v", "libx265", "-crf", "18", "-pix_fmt", "yuv420p"]
X265 += ["-x265-params", "log-level=none:keyint=15:bframes=3:b-adapt=0:scenecut=0"]

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
    "av1.mp4": [
        "-c:v",
        "libaom-av1",
        "-cpu-used",
        "8",
        "-crf",
        "20",
        "-g",
        "15",
        "-pix_fmt",
        "yuv420p",
    ],
    "wmv2.wmv": ["-c:v", "wmv2", "-q:v", "3", "-g", "15", "-c:a", "wmav2"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "7", "-g", "15", "-c:a", "libvorbis"],
}
"""ffmpeg's options for each clip: key frames every 15 frames, B-frames where the codec has them,
and sound in those whose options name an encoder for it."""

VISIBLE_LEVELS = 8.0
"""A picture is visibly wrong where in one of its 16×16 blocks the mean difference is more than
this, in grey levels of 255. Decoders and colour conversions that agree differ by less than 2 there;
a step of 3 % of the range at a block's edge is what one begins to see."""

BLOCK = 16

HEADER_BYTES = 1024
"""Headers lie in the first or, MP4's, in the last bytes of these clips: so many."""

LONGEST_RANGE = 2000
"""Bytes that are overwritten, or cut out, at most: as long as some frames of these clips."""

TIMEOUT_S = 20.0
"""What takes longer, on files of some 30 kB, hangs."""

ANALYZED_EVERY = 50
"""One file of so many is analyzed as a whole, too."""

CHUNK = 25
"""So many files are read with one decoding child."""

LEAST_OF_FFMPEG = 0.95
MOST_WRONG = 0.01
"""The bars for all files together."""


@dataclass(frozen=True)
class Outcome:
    """What is read of one damaged file.

    Attributes:
        seed: Of the file.
        clip: Which clip was damaged, of `ENCODERS`.
        mutation: How, of `MUTATIONS`.
        ended: "" or how reading failed to end: "hang", "dead" or a traceback.
        delivered: Number of frames.
        wrong: How many of these are visibly not the undamaged frame that is due.
        clean: How many undamaged frames ffmpeg shows of the file.
        lost: How many of the undamaged frames did not come.
        told: How many frames are told as missing.
        status: Of the record, or "failed".
        said: The record's error.
        shown: Index of each delivered frame, and of the undamaged one that it shows or -1.
    """

    seed: int
    clip: str
    mutation: str
    ended: str
    delivered: int
    wrong: int
    clean: int
    lost: int
    told: int
    status: str
    said: str
    shown: tuple[tuple[int, int], ...]

    def report(self) -> str:
        """Say all of it."""
        shown = " ".join(
            f"{frame}:{match if match >= 0 else 'WRONG'}" for frame, match in self.shown
        )
        return (
            f"{self.clip}, {self.mutation}: {self.ended or self.status} {self.said}\n"
            f"{self.delivered} frames, {self.wrong} wrong, {self.lost} lost, {self.told} told; "
            f"ffmpeg shows {self.clean} undamaged ones\nframe:undamaged frame {shown}"
        )

    @property
    def good(self) -> int:
        """Frames that were delivered and are right."""
        return self.delivered - self.wrong

    @property
    def untold(self) -> bool:
        """Whether frames are lost, but the record calls the video complete."""
        return self.lost > 0 and self.status == "ok"


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


# --- damage


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


# --- files


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
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        shown = done.stdout
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
    frame_bytes = WIDTH * HEIGHT * 3
    shown = shown[: len(shown) // frame_bytes * frame_bytes]
    return np.frombuffer(shown, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


# --- comparison


def alike(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the first frames look like which of the others: (n, others)."""
    ours, theirs = _block_means(frames), _block_means(others)
    # A block's mean difference is at least the difference of its means: most pairs end here.
    apart = np.abs(ours[:, None] - theirs[None]).max(axis=(2, 3, 4), initial=0)
    result = apart <= VISIBLE_LEVELS
    for one, other in np.argwhere(result):
        difference = np.abs(frames[one].astype(np.int16) - others[other])
        result[one, other] = _block_means(difference[None]).max() <= VISIBLE_LEVELS
    return result


def _block_means(frames: NDArray[Any]) -> NDArray[np.float64]:
    blocks = frames.reshape(len(frames), HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK, 3)
    return blocks.mean(axis=(2, 4))


def matched(frames: NDArray[np.uint8], clip: Clip) -> list[int]:
    """Find the undamaged frame that each frame shows.

    Matches ascend, and there are as many as possible (the longest common subsequence): a frame
    that repeats an earlier one, or comes out of turn, is wrong as well.

    Returns:
        For each frame the index of the undamaged one; -1 where the frame is wrong.
    """
    same = alike(frames, clip.frames)
    n, m = same.shape
    longest = np.zeros((n + 1, m + 1), int).tolist()
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            both = longest[i + 1][j + 1] + 1 if same[i, j] else 0
            longest[i][j] = max(longest[i + 1][j], longest[i][j + 1], both)
    result = [-1] * n
    i = j = 0
    while i < n and j < m:
        if same[i, j] and longest[i][j] == longest[i + 1][j + 1] + 1:
            result[i] = j
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return result


@dataclass
class Read:
    """What an analysis would read of a file."""

    indices: list[int]
    frames: NDArray[np.uint8]
    status: str
    said: str
    told: int


NOTHING = np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)


def read(decoder: Decoder, path: Path) -> Read:
    """Read all frames of a file as an analysis does.

    Raises:
        DecodeError: The child crashed or hung.
    """
    try:
        video = decoder.probe(path, path.name)
    except VideoError as error:
        return Read([], NOTHING, "failed", str(error), FRAMES)
    wanted = sample(video)
    rows = OrderedRows(video.name, pa.schema([]), ())
    indices: list[int] = []
    frames: list[NDArray[np.uint8]] = []
    try:
        for part in decoder.frames(video, wanted):
            indices += part.frame_indices.tolist()
            frames += map(_resized, part.images)
    except DecodeError as error:
        if error.kind in ("crash", "hang", "memory"):
            raise
        rows.reason = str(error)
    rows.frames = np.array(indices, np.int64)
    record = record_of(video, wanted, rows, None)
    told = sum(last - first + 1 for first, last in record.missing)
    shown = np.stack(frames) if frames else NOTHING
    return Read(indices, shown, record.status, record.error or "", told)


def _resized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy, in the clips' size where the damaged file names another one."""
    if image.shape == (HEIGHT, WIDTH, 3):
        return image.copy()
    return np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT)))


def outcome(decoder: Decoder, folder: Path, seed: int) -> Outcome:
    """Damage, read and compare one file."""
    name, mutation, path = damaged(folder, seed)
    clip = undamaged(folder, name)
    ended, got = "", Read([], NOTHING, "failed", "", FRAMES)
    try:
        got = read(decoder, path)
        if seed % ANALYZED_EVERY == 0:
            analyze(path, got)
    except DecodeError as error:
        ended = "hang" if error.kind == "hang" else "dead"
        got.said = str(error)
    except Exception:
        ended = traceback.format_exc()
    matches = matched(got.frames, clip)
    right = len(set(matches) - {-1})
    clean = len(set(matched(ffmpeg_frames(path), clip)) - {-1})
    path.unlink()
    return Outcome(
        seed=seed,
        clip=name,
        mutation=mutation,
        ended=ended,
        delivered=len(matches),
        wrong=len(matches) - right,
        clean=clean,
        lost=max(0, FRAMES - len(matches)),
        told=got.told,
        status=got.status,
        said=got.said,
        shown=tuple(zip(got.indices, matches, strict=True)),
    )


def analyze(path: Path, got: Read) -> None:
    """Analyze a file as a whole: its record must be what reading it says.

    Raises:
        Exception: It is not, or the analysis ends in a traceback.
    """
    record = emopipe.analyze(path, engine="local").videos.iloc[0]
    assert record["status"] == got.status, f"analyzed: {record['status']}, read: {got.status}"


# --- many files


def outcomes(folder: Path, seeds: Iterable[int]) -> Iterator[Outcome]:
    """Read the files of some seeds, one after the other."""
    with Decoder(timeout_s=TIMEOUT_S) as decoder:
        for seed in seeds:
            yield outcome(decoder, folder, seed)


def _outcomes(folder: Path, seeds: range) -> list[Outcome]:
    return list(outcomes(folder, seeds))


def parallel_outcomes(folder: Path, seeds: range, jobs: int) -> Iterator[Outcome]:
    """Read the files of some seeds in several processes."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(_outcomes, [folder] * len(chunks), chunks):
            yield from found


def shortcomings(found: list[Outcome]) -> dict[str, list[Outcome]]:
    """Hold outcomes to the bars.

    Returns:
        Each bar that is missed, in words, with the files to blame.
    """
    delivered, wrong = sum(one.delivered for one in found), sum(one.wrong for one in found)
    good, clean = sum(one.good for one in found), sum(one.clean for one in found)
    missed = {
        "hang": [one for one in found if one.ended == "hang"],
        "dead job": [one for one in found if one.ended == "dead"],
        "traceback": [one for one in found if one.ended not in ("", "hang", "dead")],
        "loss untold": [one for one in found if one.untold],
    }
    if good < LEAST_OF_FFMPEG * clean:
        fewer = [one for one in found if one.good < one.clean]
        missed[f"{good / clean:.3f} of ffmpeg's clean frames delivered"] = fewer
    if wrong > MOST_WRONG * delivered:
        missed[f"{wrong / delivered:.2%} of delivered frames wrong"] = [
            one for one in found if one.wrong
        ]
    return {bar: blamed for bar, blamed in missed.items() if blamed}


def table(found: list[Outcome]) -> str:
    """Sums by clip and by mutation."""
    lines = [
        f"{'':16}{'files':>6}{'hang':>6}{'dead':>6}{'trace':>6}{'frames':>8}{'ffmpeg':>8}"
        f"{'ratio':>7}{'wrong':>7}{'%':>7}{'untold':>7}"
    ]
    groups = [("clip", name) for name in ENCODERS]
    groups += [("mutation", mutation.__name__) for mutation in MUTATIONS]
    rows = [(name, [one for one in found if getattr(one, kind) == name]) for kind, name in groups]
    for name, some in [*rows, ("all", found)]:
        delivered, wrong = sum(one.delivered for one in some), sum(one.wrong for one in some)
        good, clean = sum(one.good for one in some), sum(one.clean for one in some)
        ends = [one.ended for one in some]
        hangs, dead = ends.count("hang"), ends.count("dead")
        lines.append(
            f"{name:16}{len(some):6}{hangs:6}{dead:6}{len(some) - hangs - dead - ends.count(''):6}"
            f"{good:8}{clean:8}{good / max(1, clean):7.3f}{wrong:7}"
            f"{100 * wrong / max(1, delivered):7.2f}{sum(one.untold for one in some):7}"
        )
    return "\n".join(lines)


def main() -> None:
    """Damage, read, compare and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        if arguments.only is not None:
            print(next(outcomes(folder, [arguments.only])).report())
            return
        make_clips(folder)
        seeds = range(arguments.seed, arguments.seed + arguments.files)
        found = list(parallel_outcomes(folder, seeds, arguments.jobs))
    print(table(found))
    missed = shortcomings(found)
    for bar, blamed in missed.items():
        print(f"{bar}: {len(blamed)} files, seeds {', '.join(str(one.seed) for one in blamed)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

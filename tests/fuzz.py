"""Damages small videos at random and holds what is read of them to the undamaged ones and ffmpeg.

    python tests/fuzz.py [--files 5000] [--seed 0] [--jobs 2]
    python tests/fuzz.py --only SEED    # one file again, with what became of each of its frames

All of a damaged file follows from its seed. What is wrong with what is read of it, see `Outcome`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from made_damage import (
    ENCODERS,
    FRAMES,
    HEIGHT,
    MUTATIONS,
    WIDTH,
    Clip,
    damaged,
    ffmpeg_frames,
    make_clips,
    undamaged,
)
from numpy.typing import NDArray
from PIL import Image

import emopipe
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.sampling import sample
from emopipe.pipeline.media.video import VideoError
from emopipe.pipeline.table.commit import OrderedRows, record_of

VISIBLE_LEVELS = 8.0
"""A picture is visibly wrong where in one of its 16×16 blocks the mean difference is more than
this, in grey levels of 255. Decoders and colour conversions that agree differ by less than 2 there;
a step of 3 % of the range at a block's edge is what one begins to see."""

BLOCK = 16

TIMEOUT_S = 20.0
"""What takes longer, on files of some 30 kB, hangs."""

ANALYZED_EVERY = 50
"""One file of so many is analyzed as a whole, too."""

CHUNK = 25
"""So many files are read with one decoding child."""

LEAST_OF_FFMPEG = 0.95
MOST_WRONG = 0.01
"""The bars, for all files together."""

UNNOTICED = frozenset({"hevc.mp4", "vp8.webm", "vp9.webm"})
"""Clips whose decoders take almost any bits for a picture and say nothing, not even in their logs:
the table sums up the other ones as well."""


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


def shortcomings(found: list[Outcome], most_wrong: float = MOST_WRONG) -> dict[str, list[Outcome]]:
    """Hold outcomes to the bars.

    Args:
        found: The outcomes.
        most_wrong: The part of the delivered frames that may be wrong.

    Returns:
        Each bar that is missed, in words, with the files to blame.
    """
    good, clean = sum(one.good for one in found), sum(one.clean for one in found)
    delivered, wrong = sum(one.delivered for one in found), sum(one.wrong for one in found)
    missed = {
        "hang": [one for one in found if one.ended == "hang"],
        "dead job": [one for one in found if one.ended == "dead"],
        "traceback": [one for one in found if one.ended not in ("", "hang", "dead")],
        "loss untold": [one for one in found if one.untold],
    }
    if good < LEAST_OF_FFMPEG * clean:
        fewer = [one for one in found if one.good < one.clean]
        missed[f"{good / clean:.3f} of ffmpeg's clean frames delivered"] = fewer
    if wrong > most_wrong * delivered:
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
    rows.append(("noticed", [one for one in found if one.clip not in UNNOTICED]))
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

"""One of four workers is killed every five seconds: what does that cost the others?

    python tests/chaos_steady.py [--seconds 60] [--every 5] [--workers 4]

A clip is repeated until it takes about so long. It is analyzed undisturbed, then while workers are
killed. Bars: no gap above 3 s between finished spans, at most 1.25 times as many frames detected,
and the same table in every cell.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chaos import command, tables
from made_clips import ffmpeg
from made_faces import face_clip
from numpy.typing import NDArray
from ray.cloudpickle import register_pickle_by_value

from emopipe.jobs import engine
from emopipe.jobs.analysis import pool
from emopipe.jobs.analysis.worker import FaceWorker
from emopipe.jobs.cluster import ClusterOptions
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.media.decoder import Frames
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import Settings

CLIP = Path(__file__).parents[2] / "shared" / "data" / "videos" / "WolfgangLanger_Pexels.mp4"
FRAMES_PER_S = 25.0
"""Of four workers on two cores, for the length of the clip."""

MOST_GAP_S = 3.0
MOST_FRAMES = 1.25

FRAME_LOG = ""
"""Each batch of frames that the decoder hands over adds a line to this file."""


class CountingFaceWorker(FaceWorker):
    """Counts the frames that it detects faces on."""

    def start(self) -> None:
        super().start()
        frames = self._decoder.frames

        def counted(video: Video, indices: NDArray[np.int64]) -> Iterator[Frames]:
            for some in frames(video, indices):
                with Path(FRAME_LOG).open("a") as log:
                    log.write(f"{len(some.frame_indices)}\n")
                yield some

        self._decoder.frames = counted  # type: ignore[method-assign]


class Recorder(ProgressCallback):
    """Notes when spans are finished, and kills a worker every so many seconds."""

    def __init__(self, every_s: float = float("inf")) -> None:
        self.times: list[float] = []
        self.killed = 0
        self._every_s = every_s
        self._next = 0.0

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        now = time.monotonic()
        if not self.times:
            self._next = now + self._every_s
        self.times.append(now)
        if now >= self._next:
            self._next += self._every_s
            below = psutil.Process().children(recursive=True)
            victims = [one for one in below if command(one).startswith("ray::CountingFaceWorker")]
            victims[self.killed % len(victims)].kill()
            self.killed += 1

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Seconds between finished spans."""
        return np.diff(self.times)


def analyze(clip: Path, out: Path, recorder: Recorder, workers: int) -> tuple[str, int]:
    """All cells of the tables, and how many frames were detected."""
    Path(FRAME_LOG).write_text("")
    cluster = ClusterOptions(gpus=0, face_actors=workers)
    engine.run(
        find_inputs([clip]), out, Settings(), progress=recorder, engine="ray", cluster=cluster
    )
    return tables(out), sum(map(int, Path(FRAME_LOG).read_text().split()))


def main() -> None:
    """Measure both and hold them to the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=5)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    module: Any = sys.modules[__name__]
    register_pickle_by_value(module)
    pool.FaceWorker = CountingFaceWorker  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        module.FRAME_LOG = str(folder / "frames")
        frames = str(round(arguments.seconds * FRAMES_PER_S))
        source = CLIP if CLIP.exists() else face_clip(folder)
        loop = ("-stream_loop", "-1", "-i", source, "-frames:v", frames, "-an", "-c", "copy")
        ffmpeg(*loop, folder / "clip.mp4")
        found = []
        for recorder in (Recorder(), Recorder(arguments.every)):
            began = time.monotonic()
            out = folder / f"{len(found)}.parquet"
            found.append(analyze(folder / "clip.mp4", out, recorder, arguments.workers))
            print(
                f"{recorder.killed} workers killed: {time.monotonic() - began:.1f} s, "
                f"{found[-1][1]:,} frames detected, largest gap between {len(recorder.times)} "
                f"finished spans {recorder.gaps.max():.2f} s",
                flush=True,
            )
        (undisturbed, few), (disturbed, many) = found
        print(f"{many / few:.2f} times the frames; tables equal: {disturbed == undisturbed}")
        good = recorder.gaps.max() <= MOST_GAP_S and many <= MOST_FRAMES * few
        sys.exit(not (good and disturbed == undisturbed))


if __name__ == "__main__":
    main()

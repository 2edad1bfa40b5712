"""`make bench-memory`: the memory of a run on a 30-minute 1080p video, all processes together.

Prints the summed proportional set size (PSS: shared pages count once) while `emopipe analyze
--local` runs. Fails if the peak reaches 2 GiB, or if memory grows between minute 5 and minute 30 of
the video.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import psutil
from made_clips import ffmpeg

from emopipe.jobs.demo import make_video
from emopipe.pipeline.bench import summed_memory
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.media.sampling import SPAN_FRAMES

CLIP = Path(__file__).parents[3] / "shared" / "data" / "videos" / "single_face.mp4"
"""A real clip; where it is missing, the demo's is used."""

MINUTES = 30
LOOPED_S = 60  # this much of the clip is scaled up and encoded; the rest repeats its packets
FPS = 25
SAMPLED_FPS = 2

PEAK_BYTES = 2 * 2**30
GROWTH = 1.05  # allowed from minute 5 to minute 30: measurement noise
WINDOW_S = 120  # memory is averaged over this much of the video
MIB = 2**20


def main() -> None:
    """Make the video, run, measure and check."""
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch:
        video = make_long_video(Path(scratch))
        samples = list(measure(video, Path(scratch) / "results.parquet"))
    peak = max(pss for _, pss in samples)
    early, late = (around(samples, minute * 60) for minute in (5, MINUTES))
    print(
        f"peak {peak / MIB:.0f} MiB, at minute 5 {early / MIB:.0f} MiB, "
        f"at minute {MINUTES} {late / MIB:.0f} MiB ({late / early - 1:+.1%})"
    )
    assert peak < PEAK_BYTES, "the peak is above 2 GiB"
    assert late < GROWTH * early, "memory grows with the video"


def make_long_video(folder: Path) -> Path:
    """Make a video that repeats the clip, 1920×1080."""
    source, minute, video = CLIP, folder / "minute.mp4", folder / "long.mp4"
    if not source.exists():
        source = folder / "demo.mp4"
        make_video(source)
    scale = f"scale=1920:1080:force_original_aspect_ratio=increase,crop=1920:1080,fps={FPS}"
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "30", "-pix_fmt", "yuv420p"]
    loop = ["-stream_loop", "-1", "-i", source, "-t", str(LOOPED_S)]
    ffmpeg(*loop, "-an", "-vf", scale, *encoder, minute)
    repeat(minute, MINUTES * 60 // LOOPED_S, video)
    return video


def measure(video: Path, out: Path) -> Iterator[tuple[float, int]]:
    """Yield (seconds of the video that are analyzed, PSS in bytes) every second."""
    command = [sys.executable, "-m", "emopipe.jobs.cli", "analyze", str(video)]
    process = psutil.Popen(
        [*command, "--local", "--quiet", "--fps", str(SAMPLED_FPS), "--out", str(out)]
    )
    span_s = SPAN_FRAMES / SAMPLED_FPS
    while process.poll() is None:
        parts = out.with_name(out.name + ".partial").glob("*/*.arrow")
        yield len(list(parts)) * span_s, summed_memory(process)
        time.sleep(1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def around(samples: list[tuple[float, int]], second: float) -> float:
    """Mean PSS during the `WINDOW_S` seconds of video before that second."""
    return mean(pss for at, pss in samples if second - WINDOW_S <= at <= second)


if __name__ == "__main__":
    main()

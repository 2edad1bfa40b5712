"""`make bench-ray`: what Ray costs on a short clip, and what it makes of long ones, beside --local.

Runs go in pairs, one after the other, since other work on the machine comes and goes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made_clips import ffmpeg

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "videos"
SHORT = CLIPS / "single_face.mp4"
LOOP_S = 300
"""Each of the four clips is repeated to this length: 20 minutes in all."""
LOOP_FPS = 4
"""Frames a second to look at of these: 4,800 in all. Ray's start weighs more on these than on all
frames."""

MOST_OVERHEAD_S = 6.0
LEAST_SHARE = 0.9
"""Of the throughput of --local."""


def seconds(*arguments: str | Path) -> float:
    """Wall time of a whole command."""
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch:
        out = Path(scratch) / "results.parquet"
        command = [sys.executable, "-m", "emopipe.jobs.cli", "analyze", *map(str, arguments)]
        began = time.perf_counter()
        subprocess.run([*command, "--quiet", "--out", str(out)], check=True)
        return time.perf_counter() - began


def pairs(times: int, *arguments: str | Path) -> list[tuple[float, float]]:
    """(Ray's, --local's) seconds."""
    found = []
    for _ in range(times):
        found.append((seconds(*arguments, "--engine", "ray"), seconds(*arguments, "--local")))
        print(f"  Ray {found[-1][0]:6.1f} s, --local {found[-1][1]:6.1f} s", flush=True)
    return found


def looped(folder: Path) -> Path:
    """The clips, each repeated; their pictures are not coded anew."""
    for clip in sorted(CLIPS.iterdir()):
        ffmpeg(
            "-stream_loop", "-1", "-i", clip, "-t", str(LOOP_S), "-c", "copy", folder / clip.name
        )
    return folder


def main() -> None:
    """Measure both and hold them to the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--fps", type=float, default=LOOP_FPS)
    arguments = parser.parse_args()
    if not CLIPS.exists():
        sys.exit(f"needs the clips of the reference data, {CLIPS}")
    print(f"{SHORT.name}:")
    short = pairs(arguments.times, SHORT)
    overhead = statistics.median(ray for ray, _ in short) - statistics.median(
        local for _, local in short
    )
    print(f"Ray adds {overhead:.1f} s")
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as folder:
        print(f"20 minutes, {arguments.fps:g} frames of each second:")
        [(ray, local)] = pairs(1, looped(Path(folder)), "--fps", str(arguments.fps))
    share = local / ray
    print(f"Ray has {share:.2f} of the throughput of --local")
    sys.exit(overhead > MOST_OVERHEAD_S or share < LEAST_SHARE)


if __name__ == "__main__":
    main()

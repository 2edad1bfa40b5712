"""`make demo`: make a short sample video, analyze it, show the table.

The face is the astronaut Eileen Collins, in NASA's public-domain portrait from scikit-image.
"""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image
from skimage.data import astronaut

from emopipe.pipeline.table.results import read_results

FOLDER = Path("demo")
FRAMES = 50
FPS = 25
SIZE = (320, 320)  # width, height in pixels


def main() -> None:
    """Make the video, analyze it, print the first rows."""
    FOLDER.mkdir(exist_ok=True)
    video, out = FOLDER / "astronaut.mp4", FOLDER / "results.parquet"
    make_video(video)
    command = ["analyze", str(video), "--out", str(out), "--overwrite"]
    print("$ emopipe", *command, flush=True)
    subprocess.run([sys.executable, "-m", "emopipe.jobs.cli", *command], check=True)
    rows = read_results(out).rows
    shown = rows[["video", "frame", "time", "emotion", "valence", "arousal", "x1", "y1"]]
    print(shown.head().to_string(index=False))
    print(f"\nThe table is in {out}, the video in {video}.")


def make_video(path: Path) -> None:
    """Write an H.264 clip of the portrait, with a view that slowly moves and zooms in."""
    portrait = Image.fromarray(astronaut())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for left in np.linspace(0, 100, FRAMES):
            view = portrait.resize(SIZE, box=(left, 0, left + 400 - left / 2, 400 - left / 2))
            frame = av.VideoFrame.from_ndarray(np.asarray(view), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()

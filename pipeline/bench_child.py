"""One analysis in a process of its own, so that `pipeline.bench` can time its start: the child.

It reads what to do from standard input, pickled, and prints a line for each finished span: its
frames and its faces. An error is one sentence on standard error.
"""

import os
import pickle
import sys
from pathlib import Path

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.local import run
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import Settings

Task = tuple[Path, Path, Settings]
"""The video, the output, and how."""


class _Lines(ProgressCallback):
    """Prints finished spans."""

    def on_span(self, video: Video, frames: int, faces: int) -> None:  # noqa: ARG002
        print(frames, faces, flush=True)


def main() -> None:
    """Analyze one video with the engine of one process."""
    task: Task = pickle.load(sys.stdin.buffer)
    path, out, settings = task
    try:
        run(Inputs((InputFile(path, path.name),), ()), out, settings, progress=_Lines())
    except EmopipeError as error:
        sys.exit(str(error))
    os._exit(0)  # as the command does: PyTorch's clean-up takes 0.5 s


if __name__ == "__main__":
    main()

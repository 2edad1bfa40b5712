"""How much work a run is, estimated from the headers of its inputs before it begins."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from rich.filesize import decimal

from emopipe.emonet.arguments import counted
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.sampling import sample_times
from emopipe.pipeline.media.video import HeaderInfo, VideoError
from emopipe.pipeline.settings import Settings

BYTES_PER_ROW = {"float32": 600, "float16": 370, "none": 140}
"""Size of a row with a face in the results, by the type of the landmarks; measured on clips."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of a run's work: headers may be wrong, and one face a frame is assumed.

    Attributes:
        inputs: number of inputs to analyze.
        unreadable: number of them without a readable header.
        seconds: their duration between the settings' start and end.
        frames: frames to be sampled.
        bytes: size of the results.
    """

    inputs: int
    unreadable: int
    seconds: float
    frames: int
    bytes: int

    def __str__(self) -> str:
        unreadable = f", {self.unreadable} of them unreadable" if self.unreadable else ""
        return (
            f"{counted(self.inputs, 'input')}{unreadable}, "
            f"{timedelta(seconds=round(self.seconds))} long: about {counted(self.frames, 'frame')} "
            f"to analyze, about {decimal(self.bytes)} of results"
        )


def estimate(files: list[InputFile], settings: Settings, decoder: Decoder) -> Estimate:
    """Read the headers of inputs and estimate the work.

    Args:
        files: the inputs.
        settings: how they are to be analyzed.
        decoder: reads the headers.
    """
    sampled = []
    for file in files:
        try:
            sampled.append(_sampled(decoder.read_header(file.path), settings))
        except (VideoError, DecodeError):
            continue
    frames = sum(n for _, n in sampled)
    return Estimate(
        inputs=len(files),
        unreadable=len(files) - len(sampled),
        seconds=sum(length for length, _ in sampled),
        frames=frames,
        bytes=frames * BYTES_PER_ROW[settings.landmarks],
    )


def _sampled(header: HeaderInfo, settings: Settings) -> tuple[float, int]:
    """Seconds of a file between the settings' start and end, and the frames sampled from them."""
    times = header.times
    chosen = sample_times(
        times,
        stride=settings.stride,
        fps=settings.fps,
        start=settings.start,
        end=settings.end,
    )
    if not len(times):
        return 0.0, 0
    start = max(times[0], settings.start or 0.0)
    end = min(times[0] + header.seconds, np.inf if settings.end is None else settings.end)
    return max(0.0, float(end - start)), len(chosen)

"""How much work a run is, estimated from the headers of its inputs before it begins."""

from dataclasses import dataclass
from datetime import timedelta

from rich.filesize import decimal

from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.decoder import DecodeError, Decoder
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
        plural = "" if self.inputs == 1 else "s"
        unreadable = f", {self.unreadable} of them unreadable" if self.unreadable else ""
        return (
            f"{self.inputs:,} input{plural}{unreadable}, "
            f"{timedelta(seconds=round(self.seconds))} long: about {self.frames:,} frames "
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


def _sampled(whole: HeaderInfo, settings: Settings) -> tuple[float, int]:
    """Seconds of a file between the settings' start and end, and the frames sampled from them."""
    if not whole.seconds:
        return whole.seconds, whole.frames
    end = min(whole.seconds, settings.end or whole.seconds)
    seconds = max(0.0, end - (settings.start or 0.0))
    fps = whole.frames / whole.seconds
    sampled_fps = min(fps, settings.fps) if settings.fps else fps / settings.stride
    return seconds, round(seconds * sampled_fps)

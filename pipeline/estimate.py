"""What a run is going to do, told from the headers of its inputs before it begins."""

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
class Plan:
    """An estimate of a run's work. Headers may be wrong, and each frame is taken to show one face.

    Attributes:
        inputs: how many there are to do.
        unreadable: how many of them have no readable header.
        seconds: their duration, the stretch that is looked at.
        frames: frames to be looked at.
        bytes: of the results.
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
            f"to look at, some {decimal(self.bytes)} of results"
        )


def plan(files: list[InputFile], settings: Settings) -> Plan:
    """Read the headers of inputs and estimate the work."""
    headers = []
    with Decoder() as decoder:
        for file in files:
            try:
                headers.append(_stretch(decoder.read_header(file.path), settings))
            except (VideoError, DecodeError):
                continue
    frames = sum(one.frames for one in headers)
    return Plan(
        inputs=len(files),
        unreadable=len(files) - len(headers),
        seconds=sum(one.seconds for one in headers),
        frames=frames,
        bytes=frames * BYTES_PER_ROW[settings.landmarks],
    )


def _stretch(whole: HeaderInfo, settings: Settings) -> HeaderInfo:
    """Return what is looked at of a file: the stretch's seconds, the sampled frames."""
    if not whole.seconds:
        return whole
    end = min(whole.seconds, settings.end or whole.seconds)
    seconds = max(0.0, end - (settings.start or 0.0))
    fps = whole.frames / whole.seconds
    sampled = min(fps, settings.fps) if settings.fps else fps / settings.stride
    return HeaderInfo(seconds, round(seconds * sampled))

"""Repeating a video without coding it anew: of a short clip a longer one."""

from pathlib import Path

import av
import av.error
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.pipeline.media.container import ReadError, open_container, packets


def repeat(path: Path, copies: int, out: Path) -> None:
    """Write a video several times, one after the other. Sound is left out.

    Args:
        path: a video whose frames have timestamps.
        copies: how often, 1 or more.
        out: the new file; its suffix names the container. After an error it is of no use.

    Raises:
        ReadError: the video cannot be read, or not be written into such a container.
    """
    try:
        times = _times(path)
        ascending = np.sort(times)
        # Ascending, and none after the frame's own time: Matroska stores no decoding times.
        decoding_times = ascending - (ascending - times).max()
        # The last frame lasts as long as the others on average.
        length = round((ascending[-1] - ascending[0]) * len(times) / (len(times) - 1))
        with av.open(f"file:{out}", "w") as sink:
            written: VideoStream | None = None
            for shift in range(0, copies * length, length):
                with open_container(path) as (source, stream):
                    written = written or sink.add_stream_from_template(stream)
                    moments = zip(times + shift, decoding_times + shift, strict=True)
                    for packet, (pts, dts) in zip(packets(source, stream), moments, strict=True):
                        packet.pts, packet.dts, packet.stream = int(pts), int(dts), written
                        sink.mux(packet)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be repeated ({error}).") from error


def _times(path: Path) -> NDArray[np.int64]:
    """Presentation times of a video's packets, in decoding order, in its time base."""
    with open_container(path) as (source, stream):
        times = [packet.pts for packet in packets(source, stream)]
    if len(times) < 2 or None in times:
        raise ValueError("it has fewer than two frames, or frames without a time")
    return np.array(times, np.int64)

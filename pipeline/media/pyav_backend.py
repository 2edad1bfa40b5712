"""Decoding with PyAV: frames by index, past damage, found by timestamp or by counting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import av.error
import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media.container import open_stream
from emopipe.pipeline.media.display import Deinterlacer, PixelShape, to_rgb
from emopipe.pipeline.media.undamaged import DecodedFrame, undamaged_frames, use_threads
from emopipe.pipeline.media.video import KEY_FRAMES_TRIED, Video

NAME = "pyav"
DISTRIBUTION = "av"
MODULE = "av"
ADVICE = "needed: it decodes videos"

SEEK_FRAMES = 32
"""Seek only where that saves decoding at least this many frames: a seek costs some itself."""

NOWHERE = -(2**63)
"""A timestamp before all others: nothing has been decoded yet."""


class PyAVReader:
    """Frames by PyAV, continuing after damaged packets.

    Where the video has key frames' timestamps, frames are found by timestamp; elsewhere by
    counting the frames decoded from the file's start.
    """

    def __init__(
        self, video: Video, threads: int = 1, alive: Callable[[], None] = lambda: None
    ) -> None:
        self._video = video
        self._threads = threads
        self._alive = alive
        self._deinterlacer = Deinterlacer(video.deinterlace)
        self._open()

    def _open(self) -> None:
        self._container, self._stream = open_stream(self._video.path)
        self._pixel_shape = PixelShape(self._stream)
        use_threads(self._video, self._stream, self._threads)
        self._restart()

    def _restart(self) -> None:
        """Decode from the container's current position."""
        self._decoded = undamaged_frames(self._video, self._container, self._stream, self._alive)
        self._next: DecodedFrame | None = None  # decoded, but not passed yet
        self._last: DecodedFrame | None = None  # the last one that was returned or skipped

    def frame(self, index: int) -> NDArray[np.uint8] | None:
        """See `Reader`."""
        wanted = int(self._video.pts[index - self._video.first])
        self._approach(wanted)
        while (decoded := self._peek()) and decoded.stamp <= wanted:
            before, self._last, self._next = self._last, decoded, None
            if decoded.stamp == wanted:
                return self._display(before, decoded)
        return None

    @property
    def _passed(self) -> int:
        """Stamp of the last frame that was returned or skipped."""
        return self._last.stamp if self._last else NOWHERE

    def _peek(self) -> DecodedFrame | None:
        if self._next is None:
            self._next = next(self._decoded, None)
            self._alive()
        return self._next

    def _approach(self, wanted: int) -> None:
        """Seek, if needed, so that decoding from there soon reaches the wanted frame."""
        if self._next and self._passed < wanted <= self._next.stamp:
            return
        keys = self._video.keyframe_pts
        before = keys[: np.searchsorted(keys, wanted, side="right")]
        if wanted > self._passed:
            if not len(before):
                return
            if self._rank(before[-1]) - self._rank(self._passed) < SEEK_FRAMES:
                return
        # A demuxer may land after the key frame it is sent to: then try the one before.
        for key in before[: -KEY_FRAMES_TRIED - 1 : -1]:
            with suppress(av.error.FFmpegError):
                self._container.seek(int(key), stream=self._stream)
                self._restart()
                if (first := self._peek()) and self._leads_to(wanted, first):
                    return
        self.close()
        self._open()

    def _leads_to(self, wanted: int, first: DecodedFrame) -> bool:
        """Whether decoding that starts with this frame gives the wanted one as if from the start.

        Deinterlacing needs the frame before it as well.
        """
        if self._deinterlacer.wants(first.frame):
            return first.stamp < wanted
        return first.stamp <= wanted

    def _rank(self, stamp: int) -> int:
        """How many frames are shown before this timestamp.

        A slice does not know the timestamps before its first frame: there the rank is that of the
        first frame, which is too high.
        """
        if stamp == NOWHERE:
            return 0
        return self._video.first + int(np.searchsorted(self._video.pts, stamp))

    def _display(self, before: DecodedFrame | None, decoded: DecodedFrame) -> NDArray[np.uint8]:
        frame = decoded.frame
        if self._deinterlacer.wants(frame):
            after = self._peek()
            frame = self._deinterlacer.deinterlace(
                before.frame if before else None, frame, after.frame if after else None
            )
        return to_rgb(
            frame, self._pixel_shape.of(decoded.sample_aspect_ratio), self._video, self._threads
        )

    def close(self) -> None:
        """Close the file."""
        self._container.close()


open_reader = PyAVReader


def check(video: Video, alive: Callable[[], None]) -> None:
    """Accept every video: its index was made with PyAV."""

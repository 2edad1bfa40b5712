"""What is known of one video: which frames a player shows, when, and where a decoder finds them.

Frame n is the n-th frame that a player shows, counted from 0 in presentation order, whichever
backend decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError

Deinterlacing = Literal["off", "marked", "tff", "bff"]
"""Which frames are deinterlaced: none; those that are marked as interlaced; or, in a stream that is
interlaced without marks, all, with the top or the bottom field first."""

KEY_FRAMES_TRIED = 3
"""So many key frames before a wanted frame are tried before decoding starts at the file's start."""


class VideoError(EmopipeError):
    """No frame of this file can be read; the text says why."""


@dataclass(frozen=True)
class HeaderInfo:
    """What is likely in a file, for estimates before it is read as a whole.

    Attributes:
        times: (frames,) float64, likely times of its frames, as in `Video`.
        seconds: Duration; 0 for an image.
    """

    times: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class Video:
    """One probed input, or a slice of its index.

    Plain data that can be pickled: it is sent to the decoding child and to other machines.

    Attributes:
        path: The file.
        name: What the results call it, see `pipeline.inputs`.
        backend: What decodes it: one of `readers.BACKENDS`, or "image" for an image.
        width: Square pixels as displayed, after rotation.
        height: Square pixels as displayed, after rotation.
        rotation: Degrees clockwise to rotate a decoded frame for display: 0, 90, 180 or 270.
        mirrored: Whether a decoded frame is mirrored, left to right, before it is rotated.
        times: (frames,) float64, presentation time of each shown frame in s since the container's
            start (which the audio shares), strictly increasing.
        deinterlace: Which frames are deinterlaced.
        start_time: The container's start in s on its own clock: the least start time of all its
            streams.
        pts: (frames,) int64, where PyAV finds each shown frame: its timestamp in the stream's time
            base or, where `keyframe_pts` is empty, its rank among the frames decoded from the
            file's start. For an image, the picture's number in the file.
        keyframe_pts: Ascending int64 timestamps of the key frames, in the stream's time base:
            where PyAV can start decoding. Empty where timestamps do not identify the frames.
            For an animated image, the numbers of the pictures that show nothing of those before.
        fps: Mean frames/s of the shown frames; 0 for an image.
        truncated_frames: Frames after the last of `times` that the container lists, or that the
            durations it states promise, but which the file, cut short, no longer holds.
        size: Bytes of the file.
        sha256: Hexadecimal SHA-256 of the file's content.
        notes: What was done to show this file as players show it and what else is remarkable
            about it, a short sentence each.
        first: Frame index of `times[0]`: more than 0 in a slice.
        distrusted_pts: int64 timestamps of the packets after which, in decoding order, packets are
            missing, in the stream's time base: their frames count as damaged.
    """

    path: Path
    name: str
    backend: str
    width: int
    height: int
    rotation: int
    times: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    fps: float
    truncated_frames: int
    size: int
    sha256: str
    mirrored: bool = False
    deinterlace: Deinterlacing = "marked"
    start_time: float = 0.0
    notes: tuple[str, ...] = ()
    first: int = 0
    distrusted_pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"`rotation` must be 0, 90, 180 or 270 degrees, not {self.rotation}")
        if not len(self.times) or self.times.shape != self.pts.shape:
            raise ValueError("`times` and `pts` must have the same length, at least 1")
        if not (np.diff(self.times) > 0).all():
            raise ValueError("`times` must increase strictly")
        if self.first < 0:
            raise ValueError(f"`first` must be at least 0, not {self.first}")

    @property
    def frames(self) -> int:
        """Number of frames: those that a player shows or, in a slice, those that it covers."""
        return len(self.times)

    def check_frame_indices(self, frame_indices: NDArray[np.int64]) -> None:
        """Check that frame indices ascend and belong to this video or slice.

        Args:
            frame_indices: (n,) frame indices.

        Raises:
            ValueError: They do not.
        """
        last = self.first + self.frames - 1
        outside = (frame_indices < self.first) | (frame_indices > last)
        if outside.any():
            raise ValueError(f"`frame_indices` must be from {self.first} to {last}")
        if (np.diff(frame_indices) <= 0).any():
            raise ValueError("`frame_indices` must ascend")

    def slice(self, frame_indices: NDArray[np.int64]) -> Video:
        """Copy the part of the index that is needed to decode some frames.

        Frames keep their indices and times, and decode to the same pixels. The copy takes 16 bytes
        for each frame from the first to the last one, whatever the length of the video.

        Args:
            frame_indices: (n,) ascending frame indices of this video, at least one.

        Returns:
            The video with the index entries from the first to the last of these frames.

        Raises:
            ValueError: There is no frame index, or they do not ascend or belong to this video.
        """
        if not len(frame_indices):
            raise ValueError("`frame_indices` must hold at least one")
        self.check_frame_indices(frame_indices)
        first = int(frame_indices[0])
        part = slice(first - self.first, int(frame_indices[-1]) - self.first + 1)
        pts = self.pts[part].copy()
        # Decoding starts at one of the last key frames before a wanted frame (see `PyAVReader`).
        # One stays in any case: without any, pts would be read as ranks.
        keys = self.keyframe_pts
        start = max(0, int(np.searchsorted(keys, pts[0], side="right")) - KEY_FRAMES_TRIED)
        stop = max(start + 1, int(np.searchsorted(keys, pts[-1], side="right")))
        return replace(
            self,
            times=self.times[part].copy(),
            pts=pts,
            keyframe_pts=keys[start:stop].copy(),
            first=first,
        )

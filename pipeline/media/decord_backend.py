"""Decoding with decord, an optional second backend. Nothing outside this file depends on it.

It is slower than PyAV: it decodes far ahead of its consumer. With a consumer of 25 to 50 frames/s,
on four clips, it took 3 to 23 times PyAV's CPU time and up to 1.5 GB.

It also reads less. So a video is decoded by decord only where `check` finds that it shows PyAV's
frames, and everything that it cannot decode correctly is a `BackendError` for the whole video:
frames of two backends are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media.container import (
    BackendError,
    decode_all,
    open_container,
    packets,
)
from emopipe.pipeline.media.display import HDR_TRANSFERS, Deinterlacer, is_untagged_hd
from emopipe.pipeline.media.pyav_backend import PyAVReader
from emopipe.pipeline.media.video import Video

NAME = "decord"
DISTRIBUTION = "decord"
MODULE = "decord"
ADVICE = "not needed: PyAV decodes; decord (x86-64 only) is for `backend` decord"

FAULT_TOLERANCE = 1e-9
"""decord then raises on the first frame that it repeats in place of a damaged one (0: never)."""

MAX_GREY_LEVELS = 2.0
"""Two decoders that agree differ by less than this, in grey levels of 255, on average."""

WAY_OUT = "use `backend` pyav for it."


class DecordReader:
    """Frames by decord, which rotates them for display itself."""

    def __init__(self, video: Video, threads: int = 1) -> None:
        self._video = video
        decord = _load_decord()
        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(
                f"file:{video.path}", num_threads=threads, fault_tol=FAULT_TOLERANCE
            )
        except Exception as error:  # its errors have no common base class
            raise BackendError(f"decord cannot open {video.path}: {WAY_OUT}") from error

    def count(self) -> int:
        """Number of frames that decord finds."""
        return len(self._reader)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """See `Reader`; decord returns a frame or cannot continue."""
        try:
            self._reader.seek_accurate(index)
            image: NDArray[np.uint8] = self._reader.next().asnumpy()
        except Exception as error:
            raise BackendError(
                f"decord met a damaged frame in {self._video.path}, at or before frame {index}: "
                f"{WAY_OUT}"
            ) from error
        return image

    def close(self) -> None:
        """Close the file."""
        del self._reader


def _load_decord() -> ModuleType:
    try:
        import decord  # here, because some machines have no wheel of it
    except Exception as error:  # native libraries fail to load in many ways
        raise BackendError(f"decord does not load ({error}): use `backend` pyav.") from error
    module: ModuleType = decord
    return module


def open_reader(
    video: Video,
    threads: int,
    alive: Callable[[], None],  # noqa: ARG001 -- decord does not report its progress
) -> DecordReader:
    """Open a video. See `Backend`."""
    return DecordReader(video, threads)


def check(video: Video, alive: Callable[[], None]) -> None:
    """Check that decord shows the frames that PyAV found. See `Backend`."""
    if problem := _why_unsafe(video, alive) or _difference(video):
        raise BackendError(f"decord does not decode {video.path} correctly ({problem}): {WAY_OUT}")


def _why_unsafe(video: Video, alive: Callable[[], None]) -> str | None:
    """Name a property of the file with which decord may show wrong frames, if it has one.

    After a seek decord miscounts where frames are hidden, or shown before a key frame that comes
    earlier in the file; it makes up incomplete frames; it takes untagged HD for BT.601 and HDR for
    SDR; and it does not deinterlace.
    """
    if not len(video.keyframe_pts):
        return "its timestamps do not identify its frames"
    entries = []
    with open_container(video.path) as (container, stream):
        for packet in packets(container, stream):
            entries.append((packet.pts, packet.is_keyframe, packet.is_corrupt))
            alive()
    pts = np.array([entry[0] for entry in entries], np.int64)
    key, damaged = np.array([entry[1:] for entry in entries], bool).T
    if len(pts) != video.frames:
        return "it holds frames that are not shown"
    # The k-th packet in the file holds the k-th frame shown, at least where it is a key frame.
    if (np.argsort(np.argsort(pts))[key] != np.flatnonzero(key)).any():
        return "it has open groups of pictures"
    if damaged.any():
        return "it is damaged"
    with open_container(video.path) as (container, stream):
        shown = next(frame for frame in decode_all(container, stream) if frame)
        if Deinterlacer(video.deinterlace).wants(shown):
            return "it is interlaced"
        if shown.color_trc in HDR_TRANSFERS:
            return "it is HDR"
        return "it is HD without a colour tag" if is_untagged_hd(shown) else None


def _difference(video: Video) -> str | None:
    """Compare the number of frames, and the first one and two after a seek to the middle."""
    middle_key = video.keyframe_pts[len(video.keyframe_pts) // 2]
    middle = int(np.searchsorted(video.pts, middle_key))
    compared = np.unique(np.minimum([0, middle, middle + 1], video.frames - 1))
    with closing(DecordReader(video)) as ours, closing(PyAVReader(video)) as reference:
        if ours.count() != video.frames:
            return f"it finds {ours.count()} frames of {video.frames}"
        for index in compared.tolist():
            expected = reference.frame(index)
            if expected is not None and _differ(ours.frame(index), expected):
                return f"frame {index} differs from PyAV's"
    return None


def _differ(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return a.shape != b.shape or bool(np.abs(a.astype(np.int16) - b).mean() > MAX_GREY_LEVELS)

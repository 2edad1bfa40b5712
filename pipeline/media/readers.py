"""Frames of a video by index, whatever decodes it: the choice of backend, and images.

All readers return RGB as displayed, and None for a frame that could not be decoded: an image that a
decoder repeats or makes up in place of a damaged one does not count as decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media import decord_backend, pyav_backend
from emopipe.pipeline.media.images import IMAGE, ImageReader
from emopipe.pipeline.media.video import Video


class Reader(Protocol):
    """Frames of one video by index, in any order; ascending order is fast."""

    def frame(self, index: int) -> NDArray[np.uint8] | None:
        """Frame `index` as (height, width, 3) RGB as displayed; None where it is damaged.

        Raises:
            BackendError: The backend cannot decode this video; another may.
            ReadError: The file can no longer be read.
        """

    def close(self) -> None:
        """Close the file."""


class Backend(Protocol):
    """A library that decodes videos. Each backend is a module with these names."""

    NAME: str
    """Of the backend, as users choose it."""
    DISTRIBUTION: str
    """Name under which pip installs the library."""
    MODULE: str
    """Name under which Python imports it."""
    ADVICE: str
    """For a user whose machine lacks it."""

    def open_reader(self, video: Video, threads: int, alive: Callable[[], None]) -> Reader:
        """See `readers.open_reader`."""

    def check(self, video: Video, alive: Callable[[], None]) -> None:
        """Check that the backend shows the frames of an index that PyAV made.

        Args:
            video: The whole index.
            alive: Called now and then, for whatever watches this process.

        Raises:
            BackendError: It does not.
            ReadError: The file cannot be read.
        """


_MODULES: tuple[Backend, ...] = (pyav_backend, decord_backend)
_BACKENDS = {backend.NAME: backend for backend in _MODULES}

BACKENDS = tuple(_BACKENDS)
"""Names of what can decode videos."""

DEFAULT_BACKEND = BACKENDS[0]


def backend(name: str) -> Backend:
    """Look up a backend by its name, one of `BACKENDS`."""
    return _BACKENDS[name]


def optional_backends() -> tuple[Backend, ...]:
    """List the backends without which the default one still decodes."""
    return tuple(one for one in _MODULES if one.NAME != DEFAULT_BACKEND)


def missing_backend(name: str) -> str | None:
    """Say in a sentence why a backend cannot be used on this machine; None where it can."""
    wanted = backend(name)
    if find_spec(wanted.MODULE):
        return None
    return (
        f"`backend` {name}: the package {wanted.DISTRIBUTION} is not installed. Install it, or use "
        f"`backend` {DEFAULT_BACKEND}."
    )


def other_backend(name: str) -> str:
    """Name in a sentence the backend to use where another one stumbles; empty for the default."""
    named = {one.NAME for one in optional_backends()}
    return f"Use `backend` {DEFAULT_BACKEND} for it." if name in named else ""


def open_reader(video: Video, threads: int = 1, alive: Callable[[], None] = lambda: None) -> Reader:
    """Open a video with the backend it was probed for.

    Args:
        video: A probed video or a slice of it.
        threads: For decoding.
        alive: Called for each frame that is decoded, wanted or not, by backends that can.

    Raises:
        BackendError: The backend cannot open it; another may.
        ReadError: It cannot be opened.
    """
    if video.backend == IMAGE:
        return ImageReader(video, alive)
    return backend(video.backend).open_reader(video, threads, alive)

"""The child's side of the decoding process that `decoder` starts: it opens files and decodes them.

It must start fast and stay small, so it imports neither PyTorch nor PyArrow.

Parent and child exchange tuples over a pipe. The parent sends

- ("read_header", path) and ("probe", path, name, backend, deinterlace), answered by ("found",
  HeaderInfo or Video) or ("error", sentence);
- ("decode", video or None for the one before, frame_indices, slot_bytes), answered by any number
  of ("frames", (slot, frame_indices)), then ("done", None) or, after an error, (kind, sentence)
  with a kind of `DecodeError`;
- ("free", slot) when it is done with the frames in a slot, and ("cancel",) to end a "decode".

At any time the child sends ("alive", None) to show that it does not hang.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media import readers
from emopipe.pipeline.media.container import BackendError, ReadError
from emopipe.pipeline.media.header import read_header
from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.video import HeaderInfo, Video, VideoError

SLOTS = 2
"""Parts of the shared memory: the child decodes into one while the parent works on the other."""

ALIVE_S = 1.0
"""How often the child reports that it is alive."""

PR_SET_PDEATHSIG = 1
"""From Linux's <sys/prctl.h>."""


def frames_in_slot(
    memory: mmap.mmap, slot: int, slot_bytes: int, video: Video
) -> NDArray[np.uint8]:
    """View a slot of the shared memory as (capacity, height, width, 3) frames."""
    shape = (video.height, video.width, 3)
    capacity = slot_bytes // math.prod(shape)
    return np.ndarray((capacity, *shape), np.uint8, memory, slot * slot_bytes)


class _Server:
    """Answers the parent's requests until the parent is gone."""

    def __init__(self, connection: Connection, memory_fd: int, threads: int) -> None:
        self._connection = connection
        self._memory_fd = memory_fd
        self._threads = threads
        self._video: Video | None = None
        self._reader: readers.Reader | None = None
        self._last_sent = time.monotonic()

    def serve(self) -> None:
        """Handle requests.

        Raises:
            EOFError: The parent is gone.
        """
        while True:
            request, *values = self._connection.recv()
            if request == "read_header":
                self._inspect(values[0], read_header, *values)
            elif request == "probe":
                self._inspect(values[0], partial(probe, alive=self._alive), *values)
            elif request == "decode":
                self._decode(*values)
            # A "free" or "cancel" that arrives here is late: its work is done.

    def _tell(self, kind: str, value: object = None) -> None:
        self._connection.send((kind, value))
        self._last_sent = time.monotonic()

    def _alive(self) -> None:
        if time.monotonic() - self._last_sent > ALIVE_S:
            self._tell("alive")

    def _inspect(
        self, path: Path, inspect: Callable[..., Video | HeaderInfo], *arguments: object
    ) -> None:
        self._close()
        try:
            self._tell("found", inspect(*arguments))
        except VideoError as error:
            self._tell("error", str(error))
        except Exception as error:  # a broken file can cause any
            self._tell("error", f"{path} cannot be read ({error!r}).")

    def _decode(
        self, video: Video | None, frame_indices: NDArray[np.int64], slot_bytes: int
    ) -> None:
        if video is not None:
            self._close()
            self._video = video
        assert self._video
        memory = mmap.mmap(self._memory_fd, SLOTS * slot_bytes)
        slots = [frames_in_slot(memory, slot, slot_bytes, self._video) for slot in range(SLOTS)]
        try:
            if self._reader is None:
                self._reader = readers.open_reader(self._video, self._threads, self._alive)
        except Exception as error:
            kind = "backend" if isinstance(error, BackendError) else "open"
            self._tell(kind, _sentence(self._video.path, error))
            return
        self._fill(slots, self._reader, frame_indices)

    def _fill(
        self,
        slots: list[NDArray[np.uint8]],
        reader: readers.Reader,
        frame_indices: NDArray[np.int64],
    ) -> None:
        """Decode frames and hand them over slot by slot."""
        assert self._video
        free = deque(range(SLOTS))
        filled: list[int] = []  # frame indices in the slot that is being filled
        problem: Exception | None = None
        for index in frame_indices.tolist():
            if not self._listen(free):
                break
            try:
                image = reader.frame(index)
            except Exception as error:
                problem = error
                break
            if image is None:
                continue
            slots[free[0]][len(filled)] = image
            filled.append(index)
            if len(filled) == len(slots[0]):
                self._tell("frames", (free.popleft(), np.array(filled, np.int64)))
                filled.clear()
        if filled:
            self._tell("frames", (free.popleft(), np.array(filled, np.int64)))
        if problem:
            self._close()
            self._tell(_kind(problem), _sentence(self._video.path, problem))
        else:
            self._tell("done")

    def _listen(self, free: deque[int]) -> bool:
        """Take back slots, waiting for one if none is free. Return whether to continue."""
        while not free or self._connection.poll():
            request, *values = self._connection.recv()
            if request == "cancel":
                return False
            free.extend(values)
        return True

    def _close(self) -> None:
        if self._reader:
            self._reader.close()
        self._reader = None


def _kind(error: Exception) -> str:
    """The kind of `DecodeError` for an error in the middle of a video."""
    if isinstance(error, BackendError):
        return "backend"
    return "memory" if isinstance(error, MemoryError) else "corrupt"


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, ReadError):
        return str(error)
    return f"{path} cannot be decoded further ({error!r})."


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even in the middle of native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def main(connection_fd: int, memory_fd: int, parent: int, threads: int) -> None:
    """Serve the parent until it ends.

    Args:
        connection_fd: Descriptor of this end of the pipe.
        memory_fd: Descriptor of the shared memory.
        parent: The parent's process id.
        threads: Threads that the decoder may use.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # for the parent to handle, which ends this process
    _die_with(parent)
    with suppress(EOFError, ConnectionError):
        _Server(Connection(connection_fd), memory_fd, threads).serve()

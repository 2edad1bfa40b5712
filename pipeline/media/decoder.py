"""Decoding in a child process that is cheap to kill: the parent's side.

Native decoders crash, hang and leak. So a child process (`decoder_child`) opens the files; it hands
frames over in shared memory of two slots, decoding into one while the parent works on the other.
The parent watches it and replaces it. For POSIX systems. If the parent is killed outright, the
child is sure to end at once only on Linux; elsewhere it ends when it next sends a message.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

import emopipe
from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.media.decoder_child import SLOTS, frames_in_slot
from emopipe.pipeline.media.readers import DEFAULT_BACKEND
from emopipe.pipeline.media.video import HeaderInfo, Video, VideoError

SLOT_BYTES = 24 * 2**20
"""A slot holds as many frames as fit: 34 of 640×360, one at least."""

LARGE_FRAMES = 4
LARGE_SLOT_BYTES = 100 * 2**20
"""Large frames come by four, up to 4K: on several of them cores detect faces side by side."""

PROBE_ATTEMPTS = 3
"""How often a file is probed before it counts as one that brings the decoder down."""

TIMEOUT_S = 60.0
"""A child that sends nothing for this long hangs."""

SLOWEST_BYTES_PER_S = 10e6
"""Opening a file may read all of it; disks and networks are assumed to be at least this fast."""

MEMORY_BYTES = 2**29
FRAMES_IN_FLIGHT = 32
"""A child that holds more than 512 MiB and this many RGB frames leaks: it needs half of that."""

PROBE_BYTES = 2**31
"""The same for a child that probes, when the size of a frame is not known yet."""

WATCH_S = 1.0
"""How often the parent checks the child's memory while it waits for it."""

CANCEL_S = 5.0
"""How long the child may take to drop its work."""

CHILD_CODE = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from emopipe.pipeline.media.decoder_child import main; main(*map(int, sys.argv[1:]))"
)
"""Starts the child. Its first argument is the folder that holds the parent's package, in which it
is found where it is not installed; last on the path, it hides no other module."""


class DecodeError(EmopipeError):
    """A video could not be decoded to its end.

    Attributes:
        kind: "open" (the file cannot be opened), "corrupt" (its reader cannot continue), "backend"
            (the video's backend cannot decode it correctly, but another may: nothing of this video
            is to be kept), or what happened to the child: "crash", "hang" or "memory".
    """

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Frames:
    """Consecutive frames, of those that were asked for, as the child hands them over.

    Attributes:
        frame_indices: (n,) int32, ascending.
        times: (n,) float64, presentation times in s.
        images: (n, height, width, 3) uint8 RGB as displayed: a view of shared memory, valid until
            the next frames are taken. Copy what is needed for longer.
    """

    frame_indices: NDArray[np.int32]
    times: NDArray[np.float64]
    images: NDArray[np.uint8]


class Decoder:
    """The decoding child and its supervision. A context manager; handles one video at a time.

    After any error it can be used again, with a new child. Only one iterator of `frames` is active
    at a time: a new call ends the one before.

    Args:
        threads: Threads that the decoder may use.
        timeout_s: A child that sends nothing for this long is taken to hang and is killed.
        memory_bytes: Resident memory above which the child is replaced. None: by the frame size.
    """

    def __init__(
        self,
        *,
        threads: int = 2,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int | None = None,
    ) -> None:
        self._threads = threads
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._call = 0  # counts the calls of `frames`

    @property
    def pid(self) -> int | None:
        """The child's process id, if there is a child."""
        return self._child.process.pid if self._child else None

    def probe(
        self, path: Path, name: str, backend: str = DEFAULT_BACKEND, deinterlace: bool = True
    ) -> Video:
        """Run `index.probe` in the child, up to three times.

        Raises:
            VideoError: No frame of the file can be read, or the backend does not decode it
                correctly.
            DecodeError: The child crashed, hung or outgrew its memory each time.
        """
        for _ in range(PROBE_ATTEMPTS - 1):
            with suppress(DecodeError):
                return self._probe(path, name, backend, deinterlace)
        return self._probe(path, name, backend, deinterlace)

    def read_header(self, path: Path) -> HeaderInfo:
        """Run `header.read_header` in the child.

        Raises:
            VideoError: The file cannot be opened, or has no video.
            DecodeError: The child crashed, hung or outgrew its memory.
        """
        found = self._ask("read_header", path)
        assert isinstance(found, HeaderInfo)
        return found

    def _probe(self, path: Path, name: str, backend: str, deinterlace: bool) -> Video:
        found = self._ask("probe", path, name, backend, deinterlace)
        assert isinstance(found, Video)
        return found

    def _ask(self, request: str, path: Path, *more: str | bool) -> object:
        child = self._idle_child()
        child.ask(request, path, *more)
        limit = PROBE_BYTES if self._memory_bytes is None else self._memory_bytes
        kind, value = self._answer(child, path, limit, opening=True)
        child.busy = False
        if kind == "found":
            return value
        raise VideoError(str(value))

    def frames(self, video: Video, frame_indices: NDArray[np.int64]) -> Iterator[Frames]:
        """Decode chosen frames.

        Args:
            video: What `probe` returned, or a slice of it.
            frame_indices: (n,) ascending. Calls in ascending order on one `Video` object continue
                with the reader that is open.

        Returns:
            The frames in order, some at a time. Damaged ones are left out: an index that was asked
            for and does not come is missing.

        Raises:
            DecodeError: While iterating: the reader cannot continue, or the child crashed, hung or
                outgrew its memory. The good frames before that have been handed over (except for
                the last few where the child was lost).
            ValueError: The indices do not ascend, or are not of this video or slice.
        """
        frame_indices = np.asarray(frame_indices, np.int64)
        video.check_frame_indices(frame_indices)
        self._call += 1
        return self._frames(video, frame_indices, self._call)

    def _frames(
        self, video: Video, frame_indices: NDArray[np.int64], call: int
    ) -> Iterator[Frames]:
        frame_bytes = video.height * video.width * 3
        limit = self._memory_bytes
        if limit is None:
            limit = MEMORY_BYTES + FRAMES_IN_FLIGHT * frame_bytes
        while len(frame_indices):
            child = self._idle_child()
            child.decode(video, frame_indices, _slot_bytes(frame_bytes))
            opening = True
            while True:
                kind, value = self._answer(child, video.path, limit, opening)
                if kind != "frames":
                    child.busy = False
                    if kind == "done":
                        return
                    raise DecodeError(str(value), kind)
                opening = False
                slot, found = value
                times = video.times[found - video.first]
                yield Frames(found.astype(np.int32), times, child.images(slot, len(found)))
                if call != self._call:
                    raise RuntimeError("these frames ended when others were asked for")
                frame_indices = frame_indices[frame_indices > found[-1]]
                if child.resident_bytes() > limit:
                    self.close()  # it leaks: a new child decodes the rest
                    break
                child.tell("free", slot)

    def _idle_child(self) -> _Child:
        """Return a child that waits for work: the current one or a new one."""
        if self._child and self._child.busy and not self._child.cancel():
            self.close()
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _Child(self._threads)
        return self._child

    def _answer(self, child: _Child, path: Path, limit: int, opening: bool) -> tuple[str, Any]:
        """Wait for the child's next message; raise DecodeError if the child ends or must end."""
        patience_s = self._timeout_s
        if opening:
            patience_s += _size(path) / SLOWEST_BYTES_PER_S
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                if child.connection.poll(min(WATCH_S, patience_s)):
                    kind, value = child.connection.recv()
                    if kind != "alive":
                        return kind, value
                    deadline = time.monotonic() + patience_s
                elif child.resident_bytes() > limit:
                    self.close()
                    raise DecodeError(
                        f"Decoding {path} takes more than {limit / 2**20:.0f} MiB of memory and "
                        f"was stopped.",
                        "memory",
                    )
            except (EOFError, ConnectionError, psutil.NoSuchProcess) as error:
                end = child.end()
                self.close()
                raise DecodeError(f"The decoder crashed on {path} ({end}).", "crash") from error
        self.close()
        raise DecodeError(
            f"The decoder hung on {path}: it sent nothing for {patience_s:.3g} s.", "hang"
        )

    def interrupt(self) -> None:
        """End the child while another thread uses it, for which that is a crash."""
        if child := self._child:
            child.process.kill()

    def close(self) -> None:
        """End the child; the next use starts another."""
        if self._child:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        self._idle_child()  # it starts while the parent does other things
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Child:
    """The parent's view of a child: its process, the pipe to it, and the memory they share."""

    def __init__(self, threads: int) -> None:
        ours, theirs = map(_above_standard, (s.detach() for s in socket.socketpair()))
        self._memory_fd = _above_standard(_anonymous_memory())
        assert emopipe.__file__
        package_folder = Path(emopipe.__file__).parent.parent
        fds = (theirs, self._memory_fd)
        try:
            # -P: modules in the user's working folder must not be imported in place of ours.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD_CODE, str(package_folder)]
                + [str(number) for number in (*fds, os.getpid(), threads)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(theirs)
        self.connection = Connection(ours)
        self.busy = False
        self._video: Video | None = None  # the last one that the child was sent

    def ask(self, *message: object) -> None:
        """Give the child work."""
        self.busy = True
        self.tell(*message)

    def tell(self, *message: object) -> None:
        """Send the child a message. That a child is dead shows when its answer is awaited."""
        with suppress(BrokenPipeError, ConnectionError):
            self.connection.send(message)

    def decode(self, video: Video, frame_indices: NDArray[np.int64], slot_bytes: int) -> None:
        """Have the child decode these frames into slots of this size."""
        os.ftruncate(self._memory_fd, SLOTS * slot_bytes)
        self._memory = mmap.mmap(self._memory_fd, SLOTS * slot_bytes)
        self._slot_bytes = slot_bytes
        self.ask("decode", None if video is self._video else video, frame_indices, slot_bytes)
        self._video = video

    def images(self, slot: int, count: int) -> NDArray[np.uint8]:
        """View the first frames of a slot: (count, height, width, 3)."""
        assert self._video
        return frames_in_slot(self._memory, slot, self._slot_bytes, self._video)[:count]

    def cancel(self) -> bool:
        """Have the child drop its work; return whether it did in time."""
        self.tell("cancel")
        deadline = time.monotonic() + CANCEL_S
        with suppress(EOFError, ConnectionError):
            while self.connection.poll(max(0.0, deadline - time.monotonic())):
                kind, _ = self.connection.recv()
                if kind not in ("frames", "alive"):
                    self.busy = False
                    return True
        return False

    def resident_bytes(self) -> int:
        """Physical memory of the child, including the shared memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def end(self) -> str:
        """Say how the child ended."""
        try:
            status = self.process.wait(CANCEL_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """Kill the child. Its memory is freed once no view of it is left."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._memory_fd)


def _slot_bytes(frame_bytes: int) -> int:
    """Size of a slot for frames of a size."""
    return max(SLOT_BYTES, min(LARGE_FRAMES * frame_bytes, LARGE_SLOT_BYTES), frame_bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # the child will report what is wrong


def _anonymous_memory() -> int:
    """Open memory that has no name and is freed with its last user; return its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("emopipe-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _above_standard(fd: int) -> int:
    """Renumber a descriptor from 0 to 2: a process without standard streams has such ones.

    The child's own standard streams would take its place.
    """
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return above

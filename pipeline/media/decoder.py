"""Decoding in a child process that is cheap to kill.

Native decoders crash, hang and leak. So one child process opens the files; it hands frames over in
shared memory of two slots, decoding into one while the parent works on the other. The parent
watches it and replaces it. For POSIX systems; where the parent is killed outright, the child's end
is sure on Linux only (elsewhere it comes with the child's next message).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.media import readers
from emopipe.pipeline.media.video import DEFAULT_BACKEND, HeaderInfo, Video, VideoError, read_header, probe

SLOTS = 2
SLOT_BYTES = 24 * 2**20
"""A slot holds as many frames as fit, at least one: 34 of 640×360, three of 1080p, one of 4K."""

TIMEOUT_S = 60.0
"""A child that says nothing for so long hangs."""

SLOWEST_BYTES_PER_S = 10e6
"""Opening a file reads the whole of it; a disk or network is at least this fast."""

MEMORY_BYTES = 2**29
PICTURES_IN_FLIGHT = 32
"""A child that holds more than 512 MiB and so many RGB pictures leaks: it needs half of that."""

PROBE_BYTES = 2**31
"""The same for a child that probes, when the size of the picture is not known yet."""

WATCH_S = 1.0
"""How often the parent looks at the child, and the child says that it is alive."""

CANCEL_S = 5.0
"""How long the child may take to drop its work."""

PR_SET_PDEATHSIG = 1
"""From Linux's <sys/prctl.h>."""


class DecodeError(EmopipeError):
    """A video could not be decoded to its end.

    Attributes:
        kind: "open" (the file cannot be opened), "corrupt" (the backend met damage it does not go
            on from), "crash", "hang" or "memory" (what became of the child).
    """

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Frames:
    """Consecutive sampled frames as the child hands them over.

    Attributes:
        frame_indices: (n,) frame indices, ascending.
        times: (n,) presentation times in s.
        images: (n, height, width, 3) RGB as displayed: a view of shared memory, valid until the
            next frames are taken. Copy what is to last.
    """

    frame_indices: NDArray[np.int32]
    times: NDArray[np.float64]
    images: NDArray[np.uint8]


class Decoder:
    """The decoding child and its watch. A context manager; serves one video after the other.

    After any error it is usable again, with a new child. Frames come from one `frames` at a time:
    a new call ends the one before.

    Args:
        threads: Threads the decoder may use.
        timeout_s: Silence after which the child is taken to hang and is killed.
        memory_bytes: Resident memory above which the child is replaced. None: by the picture size.
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
        """The child's process id, where there is one."""
        return self._child.process.pid if self._child else None

    def probe(self, path: Path, name: str, backend: str = DEFAULT_BACKEND) -> Video:
        """Run `probe` in the child; where decord keeps bringing it down, with PyAV.

        Raises:
            VideoError: The file has no frame that can be had.
            DecodeError: The child crashed, hung or outgrew its memory, time and again.
        """
        for attempt in (backend, backend):
            with suppress(DecodeError):
                return self._probe(path, name, attempt)
        return self._probe(path, name, "pyav")

    def read_header(self, path: Path) -> HeaderInfo:
        """Run `pipeline.media.video.read_header` in the child.

        Raises:
            VideoError: The file cannot be opened.
            DecodeError: The child crashed, hung or outgrew its memory.
        """
        found = self._ask("read_header", path)
        assert isinstance(found, HeaderInfo)
        return found

    def _probe(self, path: Path, name: str, backend: str) -> Video:
        found = self._ask("probe", path, name, backend)
        assert isinstance(found, Video)
        return found

    def _ask(self, request: str, path: Path, *more: str) -> object:
        child = self._idle_child()
        child.ask(request, path, *more)
        limit = PROBE_BYTES if self._memory_bytes is None else self._memory_bytes
        kind, value = self._answer(child, path, limit, opening=True)
        child.busy = False
        if kind == "found":
            return value
        raise VideoError(str(value))

    def frames(self, video: Video, numbers: NDArray[np.int64]) -> Iterator[Frames]:
        """Decode chosen frames.

        Args:
            video: What `probe` gave.
            numbers: (n,) ascending frame numbers. Calls in ascending order on one video go on with
                the reader that is open.

        Returns:
            The frames in order, some at a time. Damaged ones are left out: what was asked for and
            does not come is missing.

        Raises:
            DecodeError: While iterating: the backend cannot go on, or the child crashed, hung or
                outgrew its memory. The good frames before that have been handed over (but for the
                last few where the child was lost). What decord gave up PyAV may give: probe the
                video anew and do the whole of it again, since one backend decodes all of a video.
            ValueError: numbers do not ascend or are none of the video's.
        """
        numbers = np.asarray(numbers, np.int64)
        if len(numbers) and (numbers[0] < 0 or numbers[-1] >= video.frames):
            raise ValueError(f"frame numbers must be from 0 to {video.frames - 1}")
        if (np.diff(numbers) <= 0).any():
            raise ValueError("frame numbers must ascend")
        self._call += 1
        return self._frames(video, numbers, self._call)

    def _frames(self, video: Video, numbers: NDArray[np.int64], call: int) -> Iterator[Frames]:
        picture_bytes = video.height * video.width * 3
        limit = self._memory_bytes
        if limit is None:
            limit = MEMORY_BYTES + PICTURES_IN_FLIGHT * picture_bytes
        while len(numbers):
            child = self._idle_child()
            child.decode(video, numbers, max(SLOT_BYTES, picture_bytes))
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
                yield Frames(found.astype(np.int32), video.times[found], child.images(slot, found))
                if call != self._call:
                    raise RuntimeError("these frames ended when others were asked for")
                numbers = numbers[numbers > found[-1]]
                if child.resident_bytes() > limit:
                    self.close()  # it leaks: the rest comes from a new child
                    break
                child.tell("free", slot)

    def _idle_child(self) -> _Child:
        """A child that waits for work: the one there is, or a new one."""
        if self._child and self._child.busy and not self._child.cancel():
            self.close()
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _Child(self._threads)
        return self._child

    def _answer(self, child: _Child, path: Path, limit: int, opening: bool) -> tuple[str, Any]:
        """The child's next message; the child's end as a DecodeError."""
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
            f"The decoder hung on {path}: it said nothing for {patience_s:.3g} s.", "hang"
        )

    def close(self) -> None:
        """End the child; the next use starts another."""
        if self._child:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Child:
    """The parent's end of a child: its process, the line to it, and the memory they share."""

    def __init__(self, threads: int) -> None:
        ours, theirs = socket.socketpair()
        self._memory_fd = _anonymous_memory()
        # -P: a folder of the user's that is called `pipeline` must not stand in for ours.
        package = str(Path(__file__).resolve().parent.parent)
        places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            fds = (theirs.fileno(), self._memory_fd)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "emopipe.pipeline.media.decoder"]
                + [str(number) for number in (*fds, os.getpid(), threads)],
                pass_fds=fds,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self.busy = False
        self._video: Video | None = None  # what the child has been sent

    def ask(self, *message: object) -> None:
        """Give the child work."""
        self.busy = True
        self.tell(*message)

    def tell(self, *message: object) -> None:
        """Send the child a message. A dead child shows when it is listened to."""
        with suppress(BrokenPipeError, ConnectionError):
            self.connection.send(message)

    def decode(self, video: Video, numbers: NDArray[np.int64], slot_bytes: int) -> None:
        """Have the child decode these frames into slots of this size."""
        os.ftruncate(self._memory_fd, SLOTS * slot_bytes)
        self._memory = mmap.mmap(self._memory_fd, SLOTS * slot_bytes)
        self._slot_bytes = slot_bytes
        self.ask("decode", None if video is self._video else video, numbers, slot_bytes)
        self._video = video

    def images(self, slot: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A view of what a slot holds."""
        assert self._video
        return _slot(self._memory, slot, self._slot_bytes, self._video)[: len(numbers)]

    def cancel(self) -> bool:
        """Have the child drop its work; whether it did."""
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
        """Physical memory of the child, the shared included."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def end(self) -> str:
        """How the child ended, in words."""
        try:
            status = self.process.wait(CANCEL_S)
        except subprocess.TimeoutExpired:
            return "it closed its line"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """Kill the child and give its memory back, once no view of it is left."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._memory_fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # the child will say what is the matter


def _anonymous_memory() -> int:
    """A descriptor of memory that has no name and goes with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("emopipe-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _slot(memory: mmap.mmap, slot: int, slot_bytes: int, video: Video) -> NDArray[np.uint8]:
    """A slot as (capacity, height, width, 3)."""
    picture = (video.height, video.width, 3)
    capacity = slot_bytes // math.prod(picture)
    return np.ndarray((capacity, *picture), np.uint8, memory, slot * slot_bytes)


class _Server:
    """The child's side: answers until its parent is gone."""

    def __init__(self, connection: Connection, memory_fd: int, threads: int) -> None:
        self._connection = connection
        self._memory_fd = memory_fd
        self._threads = threads
        self._video: Video | None = None
        self._reader: readers.Reader | None = None
        self._spoke = time.monotonic()

    def serve(self) -> None:
        """Work off requests.

        Raises:
            EOFError: The parent is gone.
        """
        while True:
            request, *values = self._connection.recv()
            if request == "read_header":
                self._look_into(values[0], read_header, *values)
            elif request == "probe":
                self._look_into(values[0], partial(probe, alive=self._alive), *values)
            elif request == "decode":
                self._decode(*values)
            # "free" and "cancel" are late: they were for work that is done.

    def _tell(self, kind: str, value: object = None) -> None:
        self._connection.send((kind, value))
        self._spoke = time.monotonic()

    def _alive(self) -> None:
        if time.monotonic() - self._spoke > WATCH_S:
            self._tell("alive")

    def _look_into(
        self, path: Path, look: Callable[..., Video | HeaderInfo], *arguments: object
    ) -> None:
        self._close()
        try:
            self._tell("found", look(*arguments))
        except VideoError as error:
            self._tell("error", str(error))
        except Exception as error:  # whatever a broken file brings about
            self._tell("error", f"{path} cannot be read ({error!r}).")

    def _decode(self, video: Video | None, numbers: NDArray[np.int64], slot_bytes: int) -> None:
        if video is not None:
            self._close()
            self._video = video
        assert self._video
        memory = mmap.mmap(self._memory_fd, SLOTS * slot_bytes)
        slots = [_slot(memory, slot, slot_bytes, self._video) for slot in range(SLOTS)]
        try:
            if self._reader is None:
                self._reader = readers.open_reader(self._video, self._threads, self._alive)
        except Exception as error:
            self._tell("open", _sentence(self._video.path, error))
            return
        self._fill(slots, self._reader, numbers)

    def _fill(
        self, slots: list[NDArray[np.uint8]], reader: readers.Reader, numbers: NDArray[np.int64]
    ) -> None:
        """Hand over the frames slot by slot."""
        assert self._video
        free = deque(range(SLOTS))
        held: list[int] = []  # frame numbers in the slot that is being filled
        problem: Exception | None = None
        for number in numbers.tolist():
            if not self._listen(free):
                break
            try:
                picture = reader.frame(number)
            except Exception as error:
                problem = error
                break
            if picture is None:
                continue
            slots[free[0]][len(held)] = picture
            held.append(number)
            if len(held) == len(slots[0]):
                self._tell("frames", (free.popleft(), np.array(held, np.int64)))
                held.clear()
        if held:
            self._tell("frames", (free.popleft(), np.array(held, np.int64)))
        if problem:
            self._close()
            kind = "memory" if isinstance(problem, MemoryError) else "corrupt"
            self._tell(kind, _sentence(self._video.path, problem))
        else:
            self._tell("done")

    def _listen(self, free: deque[int]) -> bool:
        """Take back slots, waiting for one if none is free. Whether to go on."""
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


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, readers.ReadError):
        return str(error)
    return f"{path} cannot be decoded further ({error!r})."


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even in the midst of native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _main(connection_fd: int, memory_fd: int, parent: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _die_with(parent)
    with suppress(EOFError, ConnectionError):
        _Server(Connection(connection_fd), memory_fd, threads).serve()


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))

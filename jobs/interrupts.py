"""Ctrl-C in a process that runs native libraries' finalizers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_remembered() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Where it is pressed while a finalizer runs, such as that of a Ray stream, Python drops the
    exception, and the run would go on.
    """
    previous = signal.getsignal(signal.SIGINT)
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        if callable(previous):
            previous(number, frame)

    def raise_if_interrupted() -> None:
        if pressed:
            raise KeyboardInterrupt

    # Only the main thread may set a handler, and only it gets the interrupt.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and callable(previous)):
        yield raise_if_interrupted
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, previous)

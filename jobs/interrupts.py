"""Ctrl-C, SIGTERM and SIGHUP: what is said, what is ended, and the exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells count."""

TERMINATING = (signal.SIGTERM, signal.SIGHUP)
"""Sent by service managers and batch systems, and by a terminal that is closed."""

LAST_WORDS_S = 2.0
"""The last words may take so long: what they are printed to may be stuck."""

SHOW_CURSOR = "\x1b[?25h"
"""Terminals hide their cursor while a bar is shown."""

_last_words: list[Callable[[], None]] = []


@contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """Have this said if Ctrl-C, or a signal that `end_on_signals` handles, stops what runs here."""
    _last_words.append(say)
    try:
        yield
    except KeyboardInterrupt:
        say()
        raise
    finally:
        _last_words.remove(say)


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this program and all below it at once, with 128 + their number.

    A thread does it. Where a whole process group is signaled, Ray's processes end in the same
    moment, upon which Ray's library ends this process with a status, and words, of its own: Python
    calls handlers too late, and exceptions would wait for what is gone. Whatever a run is to
    resume from is on the disk already. Signals that are ignored stay so, as under `nohup`.
    """
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    handled = [n for n in TERMINATING if signal.getsignal(n) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _leave_to_thread)
    threading.Thread(target=_end_on, args=(signals, handled), daemon=True).start()


def _leave_to_thread(_number: int, _frame: FrameType | None) -> None:
    """Python tells a thread only of signals that have a handler."""


def _end_on(signals: int, handled: list[signal.Signals]) -> None:
    while (number := os.read(signals, 1)[0]) not in handled:
        pass
    words = threading.Thread(target=_say_last_words, daemon=True)
    words.start()
    words.join(LAST_WORDS_S)
    # Last, and quickly: the run must not find its children dead and note that as a failure.
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)


def _say_last_words() -> None:
    for say in reversed(_last_words):
        say()
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
    sys.stderr.flush()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of SIGTERM and SIGHUP back afterwards: Ray sets its own when it starts."""
    handlers = {number: signal.getsignal(number) for number in TERMINATING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


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

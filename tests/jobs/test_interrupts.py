"""Ctrl-C is not lost, wherever it is pressed."""

import signal

import pytest

from emopipe.jobs.interrupts import interrupts_remembered


class Finalized:
    """Is interrupted in its finalizer, where Python drops the exception."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_raised_at_the_next_step() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_remembered() as raise_if_interrupted:
        raise_if_interrupted()
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_raised_at_once_elsewhere() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_remembered():
        signal.raise_signal(signal.SIGINT)

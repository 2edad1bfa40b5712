"""Clips made for the tests of `pipeline`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from made_clips import make_clip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the made clip of a name (see `made_clips`), each made once."""
    return partial(make_clip, tmp_path_factory.mktemp("made"))

"""Fixtures that several packages' tests share."""

from pathlib import Path

import pytest

import emopipe  # noqa: F401 -- settles how PyTorch's threads wait, before a test loads PyTorch

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and reference data beside the project; without it the test skips."""
    folder = PROJECT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the reference data folder {folder.name}/ beside the project")
    return folder


@pytest.fixture(scope="session")
def clips(shared: Path) -> Path:
    """The folder of the four real clips."""
    return shared / "data" / "videos"

"""`emopipe doctor`: what it finds missing, and its exit status."""

import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from emopipe.jobs.cli import doctor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def diagnose() -> tuple[int, Callable[[str], str]]:
    """The exit status, and what is found of a subject, on one line."""
    result = CliRunner().invoke(doctor.doctor)
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", result.stdout)]

    def finding(subject: str) -> str:
        [entry] = [one for one in entries if one.split(" ", 1)[1].startswith(subject + " ")]
        return entry

    return result.exit_code, finding


def verdict() -> str:
    return CliRunner().invoke(doctor.doctor).stdout.splitlines()[-1]


def break_import(monkeypatch: pytest.MonkeyPatch, broken: str, error: str) -> None:
    def broken_import(name: str) -> ModuleType:
        if name == broken:
            raise ImportError(error)
        return import_module(name)

    monkeypatch.setattr(doctor, "import_module", broken_import)


def test_a_whole_installation_is_0(cache: Path) -> None:
    status, finding = diagnose()
    assert status == 0
    for needed in ("python", "torch", "av", "ray", "model emonet-lite", "detector centerface"):
        assert finding(needed).startswith("ok"), finding(needed)
    assert "cpu" in finding("devices")
    assert str(cache) in finding("cache folder")
    assert "valence and arousal derived from the emotion" in finding("model emonet-lite")


def test_its_last_line_is_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict().startswith("Ready: emopipe analyze works on this machine (CPU")
    break_import(monkeypatch, "cv2", "libGL.so.1: cannot open shared object file")
    assert verdict().startswith("Not ready: opencv-python; the lines marked MISSING")


def test_what_can_be_fetched_is_named_with_its_command() -> None:
    status, finding = diagnose()
    assert status == 0
    assert "missing: emopipe models fetch yunet" in finding("detector yunet")
    assert "missing: emopipe models fetch emonet-8" in finding("model emonet-8")


def test_a_package_that_does_not_load_is_1_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_import(monkeypatch, "cv2", "libGL.so.1: cannot open shared object file")
    status, finding = diagnose()
    assert status == 1
    assert finding("opencv-python").startswith("MISSING")
    assert "apt-get install libgl1" in finding("opencv-python")


def test_a_package_that_is_absent_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        if package == "pyarrow":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor, "version", absent)
    status, finding = diagnose()
    assert status == 1
    assert "not installed: pip install pyarrow" in finding("pyarrow")


def test_decord_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "decord", "no such library")
    status, finding = diagnose()
    assert status == 0
    assert finding("decord").startswith("-") and "PyAV decodes" in finding("decord")


def test_a_cache_folder_that_cannot_be_made_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "file" / "cache"))
    status, finding = diagnose()
    assert status == 1
    assert "set EMOPIPE_CACHE" in finding("cache folder")

"""Who may import whom, and what stays light."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGES = ("emonet", "pipeline", "jobs")
FORBIDDEN = {
    "emonet": {"pipeline", "jobs", "ray", "click"},
    "pipeline": {"jobs", "ray", "click"},
    "pretrained": {"emonet", "pipeline", "jobs", "ray", "click"},
}
HEAVY = ("torch", "pandas", "pyarrow", "matplotlib", "ray", "emonet.predictor")


def imported_by(file: Path) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports here are absolute"
            assert node.module
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((PROJECT / package).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(PROJECT)): sorted(found)
        for file in files
        if (found := set(imported_by(file)) & FORBIDDEN[package])
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "module", ["pipeline", "pipeline.inputs", "pipeline.video", "pipeline.decoder"]
)
def test_what_the_decoding_child_imports_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert module in ran.stdout.split()
    assert not set(HEAVY) & set(ran.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP tells its settings on Linux")
@pytest.mark.parametrize("module", ["pipeline.local", "jobs.analyze"])
def test_torch_is_loaded_with_threads_that_soon_sleep(module: str) -> None:
    """Beside other work, threads that spin long while they wait slow a run many times."""
    ran = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch"],
        env={"OMP_DISPLAY_ENV": "verbose", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    assert "GOMP_SPINCOUNT = '4000'" in ran.stderr


def test_the_wheel_holds_every_package() -> None:
    setup = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(PROJECT).parts)
        for top in (*PACKAGES, "pretrained")
        for file in (PROJECT / top).rglob("__init__.py")
    }
    assert found == set(setup["packages"])
    for package in PACKAGES:
        assert (PROJECT / package / "py.typed").exists()
        assert "py.typed" in setup["package-data"][package]

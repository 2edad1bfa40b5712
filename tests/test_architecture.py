"""Who may import whom, what stays light, and how long a file may be."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
WINGS = ("emopipe", "emonet", "pipeline", "jobs", "pretrained")
FORBIDDEN = {
    "emonet": {"emopipe.pipeline", "emopipe.jobs", "ray", "click"},
    "pipeline": {"emopipe.jobs", "ray", "click"},
    "pretrained": {"emopipe", "ray", "click"},
}
MAX_LINES = 400
HEAVY = {"torch", "cv2", "pandas", "pyarrow", "matplotlib", "ray", "emopipe.emonet.predictor"}


def imported_name(file: Path) -> str:
    """A file's name when imported: pipeline/run.py is emopipe.pipeline.run."""
    parts = file.relative_to(PROJECT).with_suffix("").parts
    inside = parts[1:] if parts[0] == "emopipe" else parts
    return ".".join(("emopipe", *inside)).removesuffix(".__init__")


FILES = {
    imported_name(file): file for wing in WINGS for file in sorted((PROJECT / wing).rglob("*.py"))
}
"""Each file of the package, by its name when imported."""


def imported_by(file: Path) -> Iterator[str]:
    """Full names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports here are absolute"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


@pytest.mark.parametrize("wing", FORBIDDEN)
def test_imports_point_one_way(wing: str) -> None:
    files = [file for name, file in FILES.items() if name.split(".")[1:2] == [wing]]
    assert files
    wrong = {
        str(file.relative_to(PROJECT)): sorted(found)
        for file in files
        if (
            found := {
                name
                for name in imported_by(file)
                for barred in FORBIDDEN[wing]
                if f"{name}.".startswith(f"{barred}.")
            }
        )
    }
    assert wrong == {}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even through imports inside functions or for types alone."""
    graph = {
        name: {other for other in imported_by(file) if other in FILES and other != name}
        for name, file in FILES.items()
        if name != "emopipe"  # which names everything, for type checkers
    }
    assert len(graph) > 50
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_data_knows_no_training_and_the_model_neither() -> None:
    """What is trained on may be used without what trains, and the model without both."""
    for name, file in FILES.items():
        room = name.removeprefix("emopipe.emonet").strip(".").split(".")[0]
        if name.startswith("emopipe.emonet") and room != "training":
            wrong = [one for one in imported_by(file) if one.startswith("emopipe.emonet.training")]
            assert wrong == [], name


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize(
    "module",
    [
        "emopipe",
        "emopipe.pipeline.inputs",
        "emopipe.pipeline.media.video",
        "emopipe.pipeline.media.decoder",
        "emopipe.pipeline.media.decoder_child",
    ],
)
def test_what_the_decoding_child_imports_is_light(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert module in ran.stdout.split()
    assert not HEAVY & set(ran.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP tells its settings on Linux")
@pytest.mark.parametrize("module", ["emopipe.pipeline.local", "emopipe.jobs.analysis.driver"])
def test_torch_is_loaded_with_threads_that_soon_sleep(module: str, tmp_path: Path) -> None:
    """Beside other work, threads that spin long while they wait slow a run many times."""
    ran = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch"],
        env={"OMP_DISPLAY_ENV": "verbose", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "GOMP_SPINCOUNT = '4000'" in ran.stderr


def test_every_package_is_installed() -> None:
    setup = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {name for name, file in FILES.items() if file.name == "__init__.py"}
    assert found == set(setup["packages"])

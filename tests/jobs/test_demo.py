"""`make demo` after its set-up: a sample video, its table, and where both are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from emopipe.jobs.demo import FRAMES
from emopipe.pipeline.table.results import read_results

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the demo ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    ran = subprocess.run(
        [sys.executable, "-m", "emopipe.jobs.demo"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return folder, ran.stdout


def test_the_readmes_python_runs_after_the_demo(
    demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo[0])
    blocks = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    for code, shown in blocks:
        exec(compile(code, "README.md", "exec"), {})
        printed = capsys.readouterr().out
        # Numbers differ in their last digits from processor to processor.
        assert len(printed.split()) == len(shown.split()), printed


def test_the_demo_shows_the_table_it_leaves(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    words = [line.split() for line in printed.splitlines()]
    assert ["video", "frame", "time", "emotion", "valence", "arousal", "x1", "y1"] in words
    shown = [line[1:4] for line in words if line[:1] == ["astronaut.mp4"]]
    assert [frame for frame, *_ in shown] == ["0", "1", "2", "3", "4"]
    assert {emotion for *_, emotion in shown} == {"happy"}  # she smiles
    assert "The table is in demo/results.parquet" in printed
    assert (folder / "demo" / "astronaut.mp4").stat().st_size > 10_000
    results = read_results(folder / "demo" / "results.parquet")
    assert results.rows.frame.tolist() == list(range(FRAMES))
    assert results.rows.face.notna().all()

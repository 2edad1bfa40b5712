"""`make demo` after its set-up: a sample video, its table, and where both are."""

import os
import subprocess
import sys
from pathlib import Path

from emopipe.jobs.demo import FRAMES
from emopipe.pipeline.table.results import read_results


def test_the_demo_shows_the_table_it_leaves(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "emopipe.jobs.demo"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    words = [line.split() for line in ran.stdout.splitlines()]
    assert ["video", "frame", "time", "emotion", "valence", "arousal", "x1", "y1"] in words
    shown = [line[1:4] for line in words if line[:1] == ["astronaut.mp4"]]
    assert [frame for frame, *_ in shown] == ["0", "1", "2", "3", "4"]
    assert {emotion for *_, emotion in shown} == {"happy"}  # she smiles
    assert "The table is in demo/results.parquet" in ran.stdout
    assert (tmp_path / "demo" / "astronaut.mp4").stat().st_size > 10_000
    results = read_results(tmp_path / "demo" / "results.parquet")
    assert results.rows.frame.tolist() == list(range(FRAMES))
    assert results.rows.face.notna().all()

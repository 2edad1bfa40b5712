"""`emopipe evaluate --results` with names of people, as a user sees it."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import run_command
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import span_rows
from emopipe.pipeline.table.store import open_store, part_key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: results of a video with two tracks, names, and an annotation of each."""
    monkeypatch.chdir(tmp_path)

    def tracked(tables):
        for table in tables:
            index = table.schema.get_field_index("track")
            yield table.set_column(
                index, table.schema.field(index), table.column("face").cast("int32")
            )

    with open_store(
        Path("results.parquet"), {"settings": {}}, EMOTIONS_8, transforms=[tracked]
    ) as store:
        video = a_video(tmp_path, "a.mp4", frames=20)
        span, predictions = a_span([2] * 20, "a.mp4", stride=1)
        rows = span_rows(span, predictions, predictions.landmarks, store.schema)
        store.write(part_key(video), 0, rows)
        store.commit(video, np.arange(20))
        store.finish()
    rows = read_results("results.parquet").rows
    Path("people.csv").write_text("video,track,person\na.mp4,0,Ann\na.mp4,1,Bob\n")
    lines = [
        f"a.mp4,{row.time},{('Ann', 'Bob')[row.face]},{row.valence:.6f},{row.arousal:.6f}"
        for row in rows.itertuples()
    ]
    Path("ratings.csv").write_text("\n".join(["video,time,person,valence,arousal", *lines]) + "\n")
    return tmp_path


def evaluate(*arguments: str) -> dict[str, dict[str, float]]:
    said = run_command("evaluate", "--data", "ratings.csv", "--json", *arguments)
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


def test_people_are_scored_each_for_themselves(folder):
    scores = evaluate("--results", "results.parquet", "--people", "people.csv")
    assert scores["a.mp4, Ann: valence"]["ccc"] == pytest.approx(1)
    assert scores["a.mp4, Bob: arousal"]["ccc"] == pytest.approx(1)
    assert scores["all videos: valence"]["samples"] == 40


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "--results results.parquet",
            "is annotated for 2 people (Ann, Bob), and no track of it has a ",
        ),
        ("--results results.parquet --people absent.csv", "absent.csv cannot be read as CSV"),
        (
            "--results results.parquet --people wrong.csv",
            "--people: wrong.csv line 2: a.mp4 has no tr",
        ),
        ("--people people.csv", "--people does not apply to scoring ratings.csv: leave it out"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence_that_names_the_option(folder, arguments, says):
    Path("wrong.csv").write_text("video,track,person\na.mp4,2,Ann\n")
    said = run_command("evaluate", "--data", "ratings.csv", *arguments.split())
    assert said.exit_code == 2
    assert says in " ".join(said.output.split())

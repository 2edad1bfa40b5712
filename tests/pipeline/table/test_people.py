"""Names for tracks: what the CSV may be, and the column `person` beside the rows."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_spans import a_span, a_video

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.commit import Transform
from emopipe.pipeline.table.people import People, PeopleError, person_column, read_people
from emopipe.pipeline.table.results import ResultsError, read_results, videos_path
from emopipe.pipeline.table.schema import span_rows
from emopipe.pipeline.table.store import open_store, part_key

FRAMES = 10
TRACKS = {
    "a.mp4": [[0, 1]] * 4 + [[1, 0]] * 2 + [[2, None]] * 4,  # 2 is 0 again, after a cut
    "b/clip.mp4": [[0]] * 10,
    "c.mp4": [[None]] * 10,
}
"""The tracks of each frame's faces."""


def on_tracks(tracks: Sequence[Sequence[int | None]]) -> Transform:
    """Stands for the transform that fills the tracks."""

    def transform(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            index = table.schema.get_field_index("track")
            column = pa.array([track for frame in tracks for track in frame], pa.int32())
            yield table.set_column(index, table.schema.field(index), column)

    return transform


@pytest.fixture(params=["results.parquet", "results"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three videos with tracks, and one that failed."""
    out = tmp_path / request.param
    for name, tracks in TRACKS.items():
        with open_store(out, {"settings": {}}, EMOTIONS_8, transforms=[on_tracks(tracks)]) as store:
            video = a_video(tmp_path / "videos", name, FRAMES)
            span, predictions = a_span([len(frame) for frame in tracks], name, stride=1)
            rows = span_rows(span, predictions, predictions.landmarks, store.schema)
            store.write(part_key(video), 0, rows)
            store.commit(video, np.arange(FRAMES))
            store.fail("bad.mp4", tmp_path / "videos" / "bad.mp4", "it is text")
            store.finish()
    return out


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return named(tmp_path, "a.mp4,0,Ann", "a.mp4,1,Bob", "b/clip.mp4,0,Bob", "a.mp4,2,Ann")


def named(folder: Path, *lines: str) -> Path:
    path = folder / "people.csv"
    path.write_text("\n".join(["video,track,person", *lines]) + "\n")
    return path


def test_tracks_get_their_names_beside_them(output, people):
    results = read_results(output, people=people)
    rows = results.rows
    assert list(rows)[3:6] == ["face", "track", "person"]
    assert rows.person.dtype == "category"
    assert rows.person.cat.categories.tolist() == ["Ann", "Bob"]
    names = {
        ("a.mp4", 0): "Ann",
        ("a.mp4", 1): "Bob",
        ("a.mp4", 2): "Ann",
        ("b/clip.mp4", 0): "Bob",
    }
    for row in rows.itertuples():
        name = names.get((row.video, row.track)) if pd.notna(row.track) else None
        assert row.person == name if name else pd.isna(row.person)
    anns = rows[(rows.video == "a.mp4") & (rows.person == "Ann")]
    assert anns.frame.tolist() == list(range(FRAMES))  # two tracks, one person
    assert anns.track.unique().tolist() == [0, 2]


def test_the_table_itself_stays_as_measured(output, people):
    before = read_results(output)
    named = read_results(output, people=people)
    pd.testing.assert_frame_equal(named.rows.drop(columns="person"), before.rows)
    np.testing.assert_array_equal(named.landmarks, before.landmarks)
    pd.testing.assert_frame_equal(read_results(output).rows, before.rows)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["time", "valence"], ["time", "person", "valence"]),
        (["valence", "person"], ["person", "valence"]),
        ("track", ["track", "person"]),
        ("person", ["person"]),
        (["x1", "face"], ["face", "person", "x1"]),
    ],
)
def test_names_come_with_the_columns_that_are_asked_for(output, people, columns, expected):
    every = read_results(output, people=people).rows
    some = read_results(output, columns=columns, people=people, landmarks=False)
    pd.testing.assert_frame_equal(some.rows, every[expected])
    assert some.landmarks is None


def test_names_of_videos_that_are_not_read_do_no_harm(output, people):
    one = read_results(output, videos="b/clip.mp4", people=people)
    assert one.rows.person.cat.categories.tolist() == ["Bob"]
    assert one.rows.person.notna().all()
    none = read_results(output, videos="c.mp4", people=people)
    assert none.rows.person.isna().all()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ["b/clip.mp4,0,Ann", "clip.mp4,0,Ann"],
            r"line 3: .* no video 'clip\.mp4': did you mean b/",
        ),
        (["q,0,Ann"], r"no video 'q': it has a\.mp4, b/clip\.mp4, bad\.mp4, c\.mp4$"),
        (["q,0,Ann", "r,1,Ann"], r"no video 'q': .* \(the same holds for line 3\)"),
        (["a.mp4,3,Ann"], r"line 2: a\.mp4 has no track 3 in the results: it has 0, 1, 2$"),
        (["a.mp4,0,Ann", "a.mp4,99999999999,B", "a.mp4,7,C", "a.mp4,8,D"], "for lines 4, 5"),
        (["c.mp4,0,Ann"], r"c\.mp4 has no track 0 in the results: none of its faces has one"),
        (["bad.mp4,0,Ann"], r"bad\.mp4 has no track 0 in the results: none of its faces has one"),
        (["a.mp4,0,Ann", "a.mp4,1,Ann"], r"tracks 0 and 1 of a\.mp4 one name, and at 0\.00 s both"),
    ],
)
def test_names_that_do_not_fit_the_results_are_a_sentence(output, tmp_path, lines, says):
    path = named(tmp_path, *lines)
    with pytest.raises(PeopleError, match=rf"^`people`: {re.escape(str(path))}") as raised:
        read_results(output, people=path)
    assert re.search(says, str(raised.value))


def test_names_fit_without_the_videos_table_too(output, people, tmp_path):
    videos_path(output).unlink()
    assert read_results(output, people=people).rows.person.notna().sum() == 26
    with pytest.raises(PeopleError, match=r"did you mean b/clip\.mp4\?"):
        read_results(output, people=named(tmp_path, "b-clip.mp4,0,Ann"))


def test_the_column_needs_names(output):
    with pytest.raises(ResultsError, match="no column 'person': give a CSV file of names as `peop"):
        read_results(output, columns=["person"])
    with pytest.raises(EmopipeError, match="`people` is text or a path, not 5"):
        read_results(output, people=5)


@pytest.mark.parametrize(
    "content",
    [
        "video,track,person\na.mp4,0,Zoë\na.mp4,12,Øyvind Ås\n".encode(),
        "video,track,person\r\na.mp4,0,Zoë\r\na.mp4,12,Øyvind Ås\r\n".encode("utf-8-sig"),
        "Person;Video;Note;Track\nZoë;a.mp4;;0\n\n;;;\nØyvind Ås;a.mp4;left;12\n".encode("cp1252"),
        "video\ttrack\tperson\na.mp4\t0.0\tZoë\na.mp4\t12.0\tØyvind Ås\n".encode("utf-16"),
        'video, track, person,\na.mp4, 0 , Zoë,\n"a.mp4",12,"Øyvind Ås",'.encode(),
    ],
    ids=["plain", "mark", "windows", "utf-16", "spaces"],
)
def test_files_as_spreadsheets_write_them_are_read(tmp_path, content):
    path = tmp_path / "people.csv"
    path.write_bytes(content)
    tracks = read_people(path).tracks
    assert [(one.video, one.track, one.person) for one in tracks] == [
        ("a.mp4", 0, "Zoë"),
        ("a.mp4", 12, "Øyvind Ås"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1 has no column video and no column track and no column person"),
        ("video,track,name\na.mp4,0,Ann\n", "line 1 has no column person"),
        ("video,track,person,Track\na.mp4,0,Ann,1\n", "has several columns track"),
        ("video,track,person\n\n", "names no track: give a row for each"),
        (
            "video,track,person\n\na.mp4,one,Ann\n",
            "line 3: the track is a whole number, .* not 'one'",
        ),
        (
            "video,track,person\na.mp4,1.5,Ann\n",
            "line 2: the track is a whole number, .* not '1.5'",
        ),
        ("video,track,person\na.mp4,-1,Ann\n", "line 2: the track is a whole number, .* not '-1'"),
        ("video,track,person\na.mp4,,Ann\n", "line 2 has no track: fill it in, or leave the line"),
        ("video,track,person\na.mp4,0, \n", "line 2 has no person"),
        ("video,track,person\na.mp4,0\n", "line 2 has no person"),
        ("video,track,person\n,0,Ann\n", "line 2 has no video"),
        ("video,track,person\na.mp4,0,Lee, Ann\n", "line 2 has 4 values for 3 columns: put a name"),
        (
            "video,track,person\na.mp4,0,Ann\nb.mp4,0,Ann\na.mp4,0,Bob\n",
            r"line 4 names track 0 of a\.mp4 again, after line 2 \(Ann\): leave one of them",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence_with_file_and_line(tmp_path, text, says):
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(PeopleError, match=rf"{re.escape(str(path))} {says}"):
        read_people(path)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(PeopleError, match=rf"{re.escape(str(path))} cannot be read as CSV"):
            read_people(path)
    (tmp_path / "people.xlsx").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(PeopleError, match=r"people\.xlsx"):
        read_people(tmp_path / "people.xlsx")


@given(
    tracks=st.lists(
        st.tuples(st.sampled_from(["a", "b", "ü"]), st.none() | st.integers(0, 5)), max_size=30
    ),
    data=st.data(),
)
def test_each_row_has_the_name_of_its_track(tmp_path_factory, tracks, data):
    rows = pd.DataFrame(
        {
            "video": pd.Categorical([video for video, _ in tracks], ["ü", "b", "a"]),
            "frame": range(len(tracks)),
            "time": 0.0,
            "track": pd.array([track for _, track in tracks], "Int32"),
        },
        index=[7] * len(tracks),
    )
    there = sorted({pair for pair in tracks if pair[1] is not None})
    chosen = data.draw(st.lists(st.sampled_from(there), unique=True) if there else st.just([]))
    names = {pair: data.draw(st.sampled_from(["Ann", "Bob", "Cem"])) for pair in chosen}
    lines = [f"{video},{track},{names[video, track]}" for video, track in chosen]
    known = (
        read_people(named(tmp_path_factory.mktemp("people"), *lines))
        if lines
        else People(Path("people.csv"), ())
    )
    found = person_column(rows, known, None)
    assert [None if pd.isna(name) else name for name in found] == [
        names.get(pair) for pair in tracks
    ]

"""Outputs are written as a whole, resumed, and never mixed."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import made_spans
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table import parts as parts_module
from emopipe.pipeline.table.output import OutputError, partial_path
from emopipe.pipeline.table.records import is_gone
from emopipe.pipeline.table.results import ResultsError, read_records, read_results, videos_path
from emopipe.pipeline.table.schema import span_rows
from emopipe.pipeline.table.store import Store, open_store, part_key

SPAN = 10  # frames


a_video = partial(made_spans.a_video, frames=3 * SPAN)


def opened(out: Path, overwrite: bool = False, **settings):
    return open_store(out, {"settings": settings}, EMOTIONS_8, overwrite=overwrite)


def write_span(store: Store, video: Video, span: int, faces: int = 1) -> None:
    found, predictions = made_spans.a_span([faces] * SPAN, video.name, first=span * SPAN, stride=1)
    store.write(
        part_key(video), span, span_rows(found, predictions, predictions.landmarks, store.schema)
    )


def do(store: Store, video: Video, faces: int = 1, spans: int = 3):
    for span in range(spans):
        write_span(store, video, span, faces)
    return store.commit(video, np.arange(video.frames))


@pytest.fixture(params=["results.parquet", "results"])
def out(request, tmp_path) -> Path:
    return tmp_path / "out" / request.param


def rows(out: Path) -> list[tuple[str, int]]:
    table = read_results(out).rows
    return list(zip(table.video, table.frame, strict=True))


def test_an_output_holds_all_videos_sorted_and_nothing_is_left_beside(out, tmp_path):
    videos = [a_video(tmp_path, name) for name in ("b.mp4", "a/c.mp4", "a.mp4")]
    with opened(out) as store:
        for video in videos:
            assert do(store, video).status == "ok"
        records = store.finish()
    expected = [(n, i) for n in ("a.mp4", "a/c.mp4", "b.mp4") for i in range(3 * SPAN)]
    assert sorted(rows(out)) == expected
    if out.suffix:
        assert rows(out) == expected
    assert [r.video for r in records] == ["a.mp4", "a/c.mp4", "b.mp4"]
    assert {p.name for p in out.parent.iterdir()} == {out.name, videos_path(out).name}


def test_a_stopped_run_resumes(out, tmp_path):
    first, second = a_video(tmp_path, "a.mp4"), a_video(tmp_path, "b.mp4")
    with opened(out) as store:
        do(store, first)
        write_span(store, second, 1)
    assert not out.exists()
    with opened(out) as store:
        assert store.record("a.mp4", first.path).frames == 3 * SPAN
        assert store.record("b.mp4", second.path) is None
        assert store.spans(part_key(second)) == {1}
        assert store.spans(part_key(second)) == {1}
        write_span(store, second, 0)
        write_span(store, second, 2)
        store.commit(second, np.arange(second.frames))
        store.finish()
    assert len(rows(out)) == 6 * SPAN


@pytest.mark.parametrize("left", [b"", b"AR", b"ARROW1", b"ARROW1" + bytes(100)])
def test_a_span_damaged_by_a_power_cut_is_analyzed_again(out, tmp_path, left):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        write_span(store, video, 0)
        write_span(store, video, 1)
    damaged = partial_path(out) / part_key(video) / "00001.arrow"
    damaged.write_bytes(left)
    with opened(out) as store:
        assert store.spans(part_key(video)) == {0}
        write_span(store, video, 1)
        write_span(store, video, 2)
        assert store.commit(video, np.arange(video.frames)).status == "ok"


def test_finished_videos_stay_and_new_ones_are_added(out, tmp_path):
    old, new = a_video(tmp_path, "m.mp4"), a_video(tmp_path, "b.mp4")
    with opened(out) as store:
        do(store, old, faces=2)
        store.finish()
    with opened(out) as store:
        assert store.record("m.mp4", old.path).faces == 6 * SPAN
        do(store, new)
        store.finish()
    assert len(rows(out)) == 3 * SPAN * (2 + 1)
    assert [r.video for r in read_records(videos_path(out))] == [
        "b.mp4",
        "m.mp4",
    ]
    if out.suffix:
        assert rows(out) == sorted(rows(out))


def test_running_a_finished_output_again_changes_nothing(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        do(store, video)
        store.finish()
    before = {p: p.stat().st_mtime_ns for p in out.parent.rglob("*.parquet")}
    with opened(out) as store:
        assert store.record("a.mp4", video.path) is not None
        store.finish()
    assert {p: p.stat().st_mtime_ns for p in out.parent.rglob("*.parquet")} == before


def test_changed_content_is_noticed_and_touching_is_not(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        do(store, video)
        store.finish()
    video.path.touch()
    with opened(out) as store:
        assert store.record("a.mp4", video.path) is not None
        video.path.write_text(video.path.read_text().swapcase())
        assert store.record("a.mp4", video.path) is None
        do(store, a_video(tmp_path, "a.mp4", frames=SPAN), spans=1)
        store.finish()
    assert len(rows(out)) == SPAN


def test_other_settings_are_refused_by_name_and_overwritten_on_request(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out, stride=1) as store:
        do(store, video)
        store.finish()
    with pytest.raises(OutputError, match="stride was 1 and is 5"), opened(out, stride=5):
        pass
    assert not partial_path(out).exists(), "a refused run left something behind"
    with opened(out, overwrite=True, stride=5) as store:
        assert store.record("a.mp4", video.path) is None
        do(store, a_video(tmp_path, "b.mp4"))
        assert [video for video, _ in rows(out)] == ["a.mp4"] * 3 * SPAN, "replaced too soon"
        store.finish()
    assert {video for video, _ in rows(out)} == {"b.mp4"}


def test_other_settings_of_an_unfinished_run_are_refused(out, tmp_path):
    with opened(out, stride=1) as store:
        do(store, a_video(tmp_path, "a.mp4"))
    with pytest.raises(OutputError, match="stride"), opened(out, stride=5):
        pass


def test_an_unfinished_overwriting_run_is_resumed(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out, stride=1) as store:
        do(store, video)
        store.finish()
    with opened(out, overwrite=True, stride=5) as store:
        do(store, video, faces=2)
    with opened(out, stride=5) as store:
        assert store.record("a.mp4", video.path).faces == 6 * SPAN
        store.finish()
    assert len(rows(out)) == 6 * SPAN


class Killer:
    """Stops this process's work on files for good before its n-th change, as SIGKILL would."""

    def __init__(self) -> None:
        self.changes_left: int | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: tuple) -> None:
        if self.changes_left is None or event not in ("os.mkdir", "os.remove", "os.rename"):
            return
        if not self.changes_left:
            raise KeyboardInterrupt
        self.changes_left -= 1


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


@pytest.mark.parametrize("layout", ["results.parquet", "results"])
@pytest.mark.parametrize("before", ["nothing", "same settings", "other settings"])
def test_a_run_killed_at_any_moment_is_resumed(tmp_path, killer, layout, before):
    a, b = a_video(tmp_path, "a.mp4"), a_video(tmp_path, "b.mp4", frames=SPAN)
    expected = [("a.mp4", i) for i in range(3 * SPAN)] + [("b.mp4", i) for i in range(SPAN)]
    overwrite = before == "other settings"

    def work(store: Store) -> None:
        for video, spans in ((a, 3), (b, 1)):
            if not store.record(video.name, video.path):
                for span in set(range(spans)) - store.spans(part_key(video)):
                    write_span(store, video, span)
                store.commit(video, np.arange(video.frames))
        store.finish()

    ready = tmp_path / "ready"
    ready.mkdir()
    if before != "nothing":  # one video finished, work on the other left behind
        settings = {"stride": 5 if overwrite else 1}
        with opened(ready / layout, **settings) as store:
            do(store, a, faces=1 + overwrite)
            store.finish()
        with opened(ready / layout, **settings) as store:
            do(store, b, faces=1 + overwrite, spans=1)

    for changes in itertools.count():
        out = tmp_path / str(changes) / layout
        shutil.copytree(ready, out.parent)
        killer.changes_left = changes
        try:
            with opened(out, overwrite, stride=1) as store:
                work(store)
            survived = True
        except KeyboardInterrupt:
            survived = False
        finally:
            killer.changes_left = None
        if survived:
            break
        try:
            with opened(out, stride=1) as store:
                work(store)
        except OutputError as error:  # the kill came before the new run had replaced the old one
            assert overwrite and "stride was 5 and is 1" in str(error)
            with opened(out, True, stride=1) as store:
                work(store)
        assert sorted(rows(out)) == expected
        assert {p.name for p in out.parent.iterdir()} == {out.name, videos_path(out).name}
    assert changes > 10


def test_results_of_a_version_with_other_settings_are_not_mixed_with(out, tmp_path):
    with opened(out, stride=1) as store:
        do(store, a_video(tmp_path, "a.mp4"))
        store.finish()
    with (
        pytest.raises(OutputError, match=r"another version .*\(backend\): choose another `out`"),
        opened(out, stride=1, backend="pyav"),
    ):
        pass


def test_missing_frames_make_a_video_partial_and_are_named(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", truncated_frames=4)
    with opened(out) as store:
        write_span(store, video, 0)
        store.write_failed(part_key(video), 1, "decoder crashed")
        write_span(store, video, 2)
        record = store.commit(video, np.arange(3 * SPAN))
    assert record.status == "partial"
    assert record.missing == ((10, 19), (30, 33))
    assert "10 of 30 sampled frames" in record.error
    assert "decoder crashed" in record.error


def test_a_failed_input_has_a_record_and_no_rows(out, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with opened(out) as store:
        do(store, a_video(tmp_path, "good.mp4"))
        store.fail("bad.mp4", bad, "it is text")
        store.finish()
    results = read_results(out)
    assert set(results.rows.video) == {"good.mp4"}
    assert results.videos.set_index("video").loc["bad.mp4", ["status", "error"]].tolist() == [
        "failed",
        "it is text",
    ]


def test_a_frame_in_two_spans_is_an_error_of_ours(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        write_span(store, video, 0)
        found, predictions = made_spans.a_span([1] * SPAN, video.name, first=5, stride=1)
        rows = span_rows(found, predictions, predictions.landmarks, store.schema)
        store.write(part_key(video), 1, rows)
        with pytest.raises(RuntimeError, match="two spans"):
            store.commit(video, np.arange(3 * SPAN))


HOLD = """
import sys
from pathlib import Path
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.store import open_store

with open_store(Path(sys.argv[1]), {"settings": {}}, EMOTIONS_8):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_on_one_output_is_refused(out):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run is writing"), opened(out):
            pass
        other.stdin.close()
    with opened(out):
        pass


def test_an_output_that_is_not_ours_is_refused(tmp_path):
    theirs = tmp_path / "results.parquet"
    pq.write_table(pa.table({"x": [1]}), theirs)
    with pytest.raises(OutputError, match="choose another `out`"), opened(theirs):
        pass
    assert pq.read_table(theirs).num_rows == 1


def test_a_file_in_a_folder_s_place_is_refused_before_the_work(tmp_path):
    (tmp_path / "notes").write_text("theirs")
    with (
        pytest.raises(OutputError, match="is a file already"),
        opened(tmp_path / "notes", overwrite=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_an_empty_folder_is_a_place_for_results(tmp_path):
    out = tmp_path / "results"
    out.mkdir()
    with opened(out) as store:
        do(store, a_video(tmp_path, "a.mp4"))
        store.finish()
    assert len(rows(out)) == 3 * SPAN


def test_a_file_and_a_folder_of_one_name_lie_side_by_side(tmp_path):
    file, folder = tmp_path / "results.parquet", tmp_path / "results"
    # Both are at work before one of them is in place.
    with opened(file, stride=1) as one, opened(folder, stride=5) as other:
        do(one, a_video(tmp_path, "a.mp4"))
        do(other, a_video(tmp_path, "b.mp4"))
        one.finish()
        other.finish()
    for out, name in ((file, "a.mp4"), (folder, "b.mp4")):
        assert read_results(out).videos.video.tolist() == [name]
        assert {video for video, _ in rows(out)} == {name}


def test_the_videos_table_of_a_folder_of_an_earlier_version_is_found(tmp_path):
    file, folder = tmp_path / "results.parquet", tmp_path / "results"
    with opened(folder) as store:
        do(store, a_video(tmp_path, "a.mp4"))
        store.finish()
    videos_path(folder).rename(tmp_path / "results.videos.parquet")
    assert read_results(folder).videos.video.tolist() == ["a.mp4"]
    with pytest.raises(OutputError, match="belongs to another output"), opened(file):
        pass
    with opened(folder) as store:
        do(store, a_video(tmp_path, "b.mp4"))
        store.finish()
    assert not (tmp_path / "results.videos.parquet").exists()
    assert read_results(folder).videos.video.tolist() == ["a.mp4", "b.mp4"]


def test_results_never_take_the_place_of_a_videos_table(tmp_path):
    rows_named_so, theirs = tmp_path / "x.videos.parquet", tmp_path / "x.parquet"
    with opened(theirs) as store:
        do(store, a_video(tmp_path, "a.mp4"))
        store.finish()
    with (
        pytest.raises(OutputError, match="is the videos table of another output"),
        opened(rows_named_so, overwrite=True),
    ):
        pass
    theirs.rename(rows_named_so)
    with pytest.raises(OutputError, match="belongs to another output"), opened(theirs):
        pass


def test_a_damaged_videos_table_can_be_overwritten(out, tmp_path):
    video, beside = a_video(tmp_path, "a.mp4"), videos_path(out)
    with opened(out) as store:
        do(store, video)
        store.finish()
    beside.write_bytes(beside.read_bytes()[:-100])
    with pytest.raises(ResultsError, match=re.escape(beside.name)), opened(out):
        pass
    with opened(out, overwrite=True) as store:
        do(store, video)
        store.finish()
    assert [record.video for record in read_records(beside)] == ["a.mp4"]


def test_a_video_that_fails_after_it_was_done_has_no_rows(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        do(store, a_video(tmp_path, "b.mp4"))
        do(store, video)
        store.fail("a.mp4", video.path, "it was replaced by text")
        store.finish()
    assert {video for video, _ in rows(out)} == {"b.mp4"}


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        opened(tmp_path / "file" / "x.parquet"),
    ):
        pass


def test_many_rows_are_written_in_bounded_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS_PER_GROUP", 25)
    out = tmp_path / "results.parquet"
    with opened(out) as store:
        do(store, a_video(tmp_path, "a.mp4", frames=9 * SPAN), spans=9)
        do(store, a_video(tmp_path, "b.mp4", frames=SPAN), spans=1)
        store.finish()
    metadata = pq.ParquetFile(out).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 10 * SPAN
    assert max(sizes) < 25 + SPAN


def test_a_time_range_without_frames_fails_with_words(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    with opened(out) as store:
        record = store.commit(video, np.zeros(0, np.int64))
    assert record.status == "failed"
    assert "no frame lies between the chosen start and end: it shows 0.0 to 1.2 s" in record.error


def test_frames_truncated_after_the_chosen_end_are_not_missed(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", truncated_frames=4)
    with opened(out, end=1.0) as store:
        assert do(store, video).status == "ok"


@pytest.mark.parametrize("name", ["results.csv", "results.JSON", "video.mp4"])
def test_another_format_is_not_taken_for_a_folder(tmp_path, name):
    with pytest.raises(OutputError, match="results are Parquet"), opened(tmp_path / name):
        pass


def test_inputs_that_failed_are_tried_again_without_touching_the_rows(out, tmp_path):
    good, bad = a_video(tmp_path, "good.mp4"), a_video(tmp_path, "bad.mp4")
    with opened(out) as store:
        do(store, good)
        store.fail("bad.mp4", bad.path, "the disk was away")
        store.finish()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} or out.stat().st_mtime_ns
    with opened(out) as store:
        assert store.record("bad.mp4", bad.path) is None
        store.fail("bad.mp4", bad.path, "still away")
        store.finish()
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} or out.stat().st_mtime_ns
    assert after == before
    with opened(out) as store:
        do(store, bad)
        store.finish()
    assert {video for video, _ in rows(out)} == {"good.mp4", "bad.mp4"}


def test_another_file_of_the_same_name_is_not_taken_for_a_changed_one(out, tmp_path):
    with opened(out) as store:
        do(store, a_video(tmp_path / "monday", "clip.mp4"))
        store.finish()
    other = a_video(tmp_path / "tuesday", "clip.mp4", frames=SPAN)
    with opened(out) as store, pytest.raises(OutputError, match=r"another clip\.mp4"):
        store.record("clip.mp4", other.path)


def test_another_file_of_the_same_name_size_and_time_is_another(out, tmp_path):
    video = a_video(tmp_path / "monday", "clip.mp4")
    with opened(out) as store:
        do(store, video)
        store.finish()
    other = tmp_path / "tuesday" / "clip.mp4"
    other.parent.mkdir()
    other.write_text(video.path.read_text().swapcase())
    times = video.path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (other.stat().st_size, other.stat().st_mtime) == (times.st_size, times.st_mtime)
    with opened(out) as store, pytest.raises(OutputError, match=r"another clip\.mp4"):
        store.record("clip.mp4", other)


def test_a_moved_file_is_known_by_its_content_and_recorded_where_it_is(out, tmp_path):
    video = a_video(tmp_path / "disk", "clip.mp4")
    with opened(out) as store:
        do(store, video)
        store.finish()
    before = rows(out)
    (tmp_path / "disk").rename(tmp_path / "archive")
    moved = tmp_path / "archive" / "clip.mp4"
    for _ in range(2):
        with opened(out) as store:
            assert store.record("clip.mp4", moved).path == str(moved)
            store.finish()
        assert rows(out) == before
        assert read_results(out).videos.path.tolist() == [str(moved)]


def test_a_file_that_is_gone_is_finished_and_its_rows_stay(out, tmp_path):
    video = a_video(tmp_path, "clip.mp4")
    with opened(out) as store:
        do(store, video)
        store.finish()
    video.path.unlink()
    with opened(out) as store:
        assert store.record("clip.mp4", video.path).frames == 3 * SPAN


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_a_file_whose_name_is_no_text_is_found_again(out, tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    file.touch()
    with opened(out) as store:
        record = store.fail(r"caf\xe9.mp4", file, "It is empty.")
        assert store.names() == {file: r"caf\xe9.mp4"}
    assert not is_gone(record)
    file.unlink()
    assert is_gone(record)


def test_an_input_that_failed_before_a_stop_is_tried_again(out, tmp_path):
    bad = a_video(tmp_path, "bad.mp4")
    with opened(out) as store:
        store.fail("bad.mp4", bad.path, "the disk was away")
    with opened(out) as store:
        assert store.record("bad.mp4", bad.path) is None


def test_an_output_knows_its_inputs_by_their_files(out, tmp_path):
    day, night = a_video(tmp_path / "day", "a.mp4"), a_video(tmp_path / "night", "b.mp4")
    with opened(out) as store:
        assert store.is_new
        do(store, day)
        store.finish()
    (tmp_path / "link").symlink_to(tmp_path / "day")
    with opened(out) as store:
        assert not store.is_new
        do(store, night)
        assert store.names() == {day.path: "a.mp4", night.path: "b.mp4"}
        assert store.record("a.mp4", tmp_path / "link" / "a.mp4") is not None
        assert [record.video for record in store.others({"b.mp4"})] == ["a.mp4"]


def test_overwriting_with_a_failure_leaves_no_old_rows(out, tmp_path):
    video = a_video(tmp_path, "a.mp4")
    made = {"classes": EMOTIONS_8, "landmarks": "float32"}
    with opened(out, **made) as store:
        do(store, video)
        store.finish()
    with opened(out, overwrite=True, **made) as store:
        store.fail("a.mp4", video.path, "broken now")
        store.finish()
    assert rows(out) == []

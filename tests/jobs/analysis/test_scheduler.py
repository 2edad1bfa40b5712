"""The scheduler ends with the same table in whatever order workers answer, and whichever die."""

import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_bookkeeping import drive, every_frame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.jobs.analysis.messages import FailedVideo, SegmentTask, SpanRows
from emopipe.jobs.analysis.scheduler import Scheduler
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media import sampling
from emopipe.pipeline.media.sampling import spans_of
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import FailedSpan, ProgressCallback
from emopipe.pipeline.table.parts import encode_part
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import VideoRecord, span_rows
from emopipe.pipeline.table.store import Store, open_store

SPAN = 4  # frames
SEGMENT_SPANS = 2


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SPAN_FRAMES", SPAN)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.parquet"


def opened(out: Path):
    return open_store(out, {"settings": {}}, EMOTIONS_8)


def file_of(video: Video) -> InputFile:
    return InputFile(video.path, video.name)


def scheduler_of(
    store: Store,
    videos: Iterable[Video],
    progress: ProgressCallback | None = None,
    segment_spans: int = SEGMENT_SPANS,
) -> Scheduler:
    files = map(file_of, videos)
    return Scheduler(store, files, every_frame, segment_spans, progress or ProgressCallback())


def probed(store: Store, *videos: Video) -> Scheduler:
    """A scheduler to which these videos, its only ones, have been probed."""
    scheduler = scheduler_of(store, videos)
    for video in videos:
        scheduler.next_probe()
        scheduler.handle(video)
    return scheduler


def rows(store: Store, video: Video, span: int) -> SpanRows:
    frame_indices = spans_of(every_frame(video))[span]
    first = int(frame_indices[0])
    found, predictions = a_span([1] * len(frame_indices), video.name, first=first, stride=1)
    table = span_rows(found, predictions, predictions.landmarks, store.schema)
    return SpanRows(video.name, span, encode_part(table), len(frame_indices))


def handled(scheduler: Scheduler, messages: Iterable[object]) -> list[VideoRecord]:
    """The records of the videos that messages complete."""
    return [done[1] for message in messages if (done := scheduler.handle(message))]


def tasks(scheduler: Scheduler) -> list[list[int]]:
    """The spans of every task that is to be had now."""
    found = []
    while task := scheduler.next_task():
        assert isinstance(task, SegmentTask)
        found.append(task.span_ids.tolist())
    return found


def tasks_until(scheduler: Scheduler, file: InputFile) -> list[list[int]]:
    """The spans of the tasks that are handed out before a file's probe."""
    found = []
    while (task := scheduler.next_task()) != file:
        assert isinstance(task, SegmentTask)
        found.append(task.span_ids.tolist())
    return found


@given(n=st.integers(1, 100), most=st.integers(1, 20), seekable=st.booleans())
@settings(max_examples=40, deadline=None)
def test_segments_hold_each_span_once_in_order_and_shrink(n, most, seekable):
    with tempfile.TemporaryDirectory() as folder:
        video = a_video(Path(folder), "a.mp4", n * SPAN)
        if not seekable:
            video = replace(video, keyframe_pts=np.zeros(0, np.int64))
        with opened(Path(folder) / "results.parquet") as store:
            scheduler = scheduler_of(store, [video], segment_spans=most)
            scheduler.next_probe()
            scheduler.handle(video)
            found = tasks(scheduler)
    assert [span for segment in found for span in segment] == list(range(n))
    sizes = [len(segment) for segment in found]
    assert all(size <= most for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= (n / most + 4 if seekable else -(-n // most))
    assert not seekable or n <= most or sizes[-1] <= max(1, most // 2)


def test_a_task_brings_the_frames_of_its_spans_and_their_part_of_the_index(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 10 * SPAN)
    with opened(out) as store:
        scheduler = probed(store, video)
        scheduler.next_task()
        task = scheduler.next_task()
    assert task.span_ids.tolist() == [2, 3]
    assert {k: v.tolist() for k, v in task.spans.items()} == {
        2: [8, 9, 10, 11],
        3: [12, 13, 14, 15],
    }
    assert task.video.first == 8
    np.testing.assert_array_equal(task.video.times, video.times[8:16])


def test_tasks_grow_linearly_with_the_video_and_stay_small(tmp_path, monkeypatch):
    """Of a video of 10 h at 25 frames/s all tasks together are at most 20 MB, as pickled."""
    monkeypatch.setattr(sampling, "SPAN_FRAMES", 24)

    def pickled(hours: float) -> int:
        frames = round(hours * 3600 * 25)
        video = a_video(tmp_path, f"{hours}.mp4", frames)
        video = replace(video, keyframe_pts=video.pts[::250])
        with opened(tmp_path / f"{hours}.parquet") as store:
            scheduler = scheduler_of(store, [video], segment_spans=64)
            scheduler.next_probe()
            scheduler.handle(video)
            total = 0
            while task := scheduler.next_task():
                total += len(pickle.dumps(task))
        return total

    one, ten = pickled(1), pickled(10)
    assert ten <= 20e6
    assert ten < 10.5 * one


def test_a_video_is_committed_with_its_last_span(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 3 * SPAN)
    with opened(out) as store:
        scheduler = scheduler_of(store, [video])
        assert scheduler.next_task() == file_of(video)
        assert scheduler.next_task() is None
        assert handled(scheduler, [video, rows(store, video, 0), rows(store, video, 2)]) == []
        assert not scheduler.done
        (record,) = handled(scheduler, [rows(store, video, 1)])
        assert (record.status, record.frames) == ("ok", 3 * SPAN)
        assert scheduler.done


def test_the_next_input_is_probed_shortly_before_spans_run_out(out, tmp_path):
    first, second = a_video(tmp_path, "a.mp4", 9 * SPAN), a_video(tmp_path, "b.mp4", SPAN)
    with opened(out) as store:
        scheduler = scheduler_of(store, [first, second])
        assert scheduler.next_task() == file_of(first)
        scheduler.handle(first)
        assert tasks_until(scheduler, file_of(second)) == [[0, 1], [2, 3], [4, 5]]
        assert tasks(scheduler) == [[6, 7], [8]]  # while the second is being probed


def test_a_video_without_sampled_frames_is_committed_when_probed(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 8)
    with opened(out) as store:
        nothing = np.zeros(0, np.int64)
        scheduler = Scheduler(store, [file_of(video)], lambda _: nothing, 2, ProgressCallback())
        scheduler.next_probe()
        (record,) = handled(scheduler, [video])
        assert (record.status, record.frames) == ("failed", 0)
        assert scheduler.done


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_order_of_answers_does_not_matter(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    sound = a_video(folder, "sound.mp4", 3 * SPAN)
    holed = a_video(folder, "holed.mp4", 4 * SPAN)
    stumbled = a_video(folder, "stumbled.mp4", 2 * SPAN)
    broken = InputFile(folder / "broken.mp4", "broken.mp4")
    with opened(folder / "results.parquet") as store:
        files = [*map(file_of, (sound, holed, stumbled)), broken]
        scheduler = Scheduler(store, files, every_frame, 2, ProgressCallback())
        while scheduler.unprobed:
            scheduler.next_probe()
        probes = [sound, holed, stumbled, FailedVideo("broken.mp4", "it is no video")]
        results = handled(scheduler, data.draw(st.permutations(probes)))
        answers = [
            *(rows(store, sound, span) for span in range(3)),
            *(rows(store, holed, span) for span in range(2)),
            FailedSpan("holed.mp4", 2, "it crashed"),
            FailedSpan("holed.mp4", 3, "it crashed"),
            rows(store, stumbled, 0),
            FailedVideo("stumbled.mp4", "the backend cannot decode it"),
            FailedVideo("stumbled.mp4", "the backend cannot decode it"),
        ]
        results += handled(scheduler, data.draw(st.permutations(answers)))
        assert scheduler.done
        records = store.finish()
    assert sorted(results, key=lambda record: record.video) == records
    assert {r.video: (r.status, r.frames, r.missing) for r in records} == {
        "broken.mp4": ("failed", 0, ()),
        "holed.mp4": ("partial", 2 * SPAN, ((8, 15),)),
        "sound.mp4": ("ok", 3 * SPAN, ()),
        "stumbled.mp4": ("failed", 0, ()),
    }
    assert {r.error for r in records} == {
        None,
        "it is no video",
        "the backend cannot decode it",
        "8 of 16 sampled frames are missing (it crashed)",
    }


class Counting(ProgressCallback):
    """Counts the frames that it is told of."""

    def __init__(self) -> None:
        self.frames = 0

    def on_video_start(self, video: Video, frames: int, done: int) -> None:
        self.frames += done

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        self.frames += frames


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(4)), stop=st.integers(0, 3))
def test_a_stopped_run_is_resumed_and_counts_each_frame_once(order, stop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    video = a_video(folder, "a.mp4", 4 * SPAN)
    with opened(folder / "results.parquet") as store:
        handled(probed(store, video), [rows(store, video, span) for span in order[:stop]])
    progress = Counting()
    with opened(folder / "results.parquet") as store:
        scheduler = scheduler_of(store, [video], progress)
        scheduler.next_probe()
        handled(scheduler, [video])
        missing = [span for task in tasks(scheduler) for span in task]
        assert set(missing) == set(range(4)) - set(order[:stop])
        handled(scheduler, [rows(store, video, span) for span in missing])
        store.finish()
    assert progress.frames == video.frames
    assert len(read_results(folder / "results.parquet").rows) == video.frames


def test_a_dead_worker_costs_its_own_spans_in_flight_and_the_first_is_quarantined(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 6 * SPAN)
    with opened(out) as store:
        scheduler = probed(store, video)
        assert scheduler.next_task().span_ids.tolist() == [0, 1]
        assert scheduler.next_task().span_ids.tolist() == [2, 3]
        handled(scheduler, [rows(store, video, 0)])
        scheduler.on_worker_death([("a.mp4", 2), ("a.mp4", 3)], "killed")
        # Span 3 is handed out again in its place, span 2 after all others and in its own task.
        assert tasks(scheduler) == [[3, 4], [5], [2]]
        assert scheduler.in_flight == {("a.mp4", span) for span in (1, 2, 3, 4, 5)}
        (record,) = handled(scheduler, [rows(store, video, span) for span in (1, 2, 3, 4, 5)])
        assert record.status == "ok"


def test_a_span_is_given_up_only_when_its_worker_died_with_nothing_else_in_flight(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 3 * SPAN)
    poison = ("a.mp4", 0)
    with opened(out) as store:
        scheduler = probed(store, video)
        assert tasks(scheduler) == [[0, 1], [2]]
        assert scheduler.on_worker_death([poison, ("a.mp4", 1)], "killed") is None
        assert tasks(scheduler) == [[1], [0]]  # in a task of its own, beside others
        assert scheduler.on_worker_death([poison], "killed") is None
        assert tasks(scheduler) == []  # isolated: it waits for spans 1 and 2
        handled(scheduler, [rows(store, video, 1)])
        assert tasks(scheduler) == []
        handled(scheduler, [rows(store, video, 2)])
        assert tasks(scheduler) == [[0]]
        finished = scheduler.on_worker_death([poison], "killed by signal 9")
        assert finished
        assert (finished[1].status, finished[1].missing) == ("partial", ((0, SPAN - 1),))
        assert "killed by signal 9" in finished[1].error
        assert scheduler.done


def test_attempts_are_remembered_over_all_runs(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", SPAN)
    poison = ("a.mp4", 0)
    for _ in range(2):
        with opened(out) as store:
            scheduler = probed(store, video)
            assert tasks(scheduler) == [[0]]
            assert scheduler.on_worker_death([poison], "killed") is None
    with opened(out) as store:
        scheduler = probed(store, video)
        assert tasks(scheduler) == [[0]]
        finished = scheduler.on_worker_death([poison], "killed")
        assert finished and finished[1].status == "failed"


def test_a_file_whose_probe_kills_workers_is_given_up(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", SPAN)
    with opened(out) as store:
        scheduler = scheduler_of(store, [video])
        for _ in range(2):
            file = scheduler.next_task()
            assert scheduler.on_worker_death(file, "killed") is None
        file = scheduler.next_task()
        finished = scheduler.on_worker_death(file, "killed by signal 9")
        assert finished and finished[1].status == "failed"
        assert finished[1].error == "killed by signal 9"
        assert scheduler.done


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), workers=st.integers(1, 4))
def test_whichever_workers_die_only_spans_that_died_alone_are_lost(data, workers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deaths")
    videos = [a_video(folder, name, 5 * SPAN) for name in ("a.mp4", "b.mp4")]
    by_name = {video.name: video for video in videos}
    deaths = data.draw(st.integers(0, 12))
    busy: list[InputFile | list[tuple[str, int]]] = []
    died: dict[tuple[str, int], list[bool]] = {}  # of each span's deaths: whether it was alone
    with opened(folder / "results.parquet") as store:
        scheduler = scheduler_of(store, videos)
        records = []
        while not scheduler.done:
            while len(busy) < workers and (task := scheduler.next_task()):
                spans = isinstance(task, SegmentTask) and [
                    (task.video.name, span) for span in task.span_ids.tolist()
                ]
                busy.append(spans or task)
            work = busy.pop(data.draw(st.integers(0, len(busy) - 1)))
            if deaths and not isinstance(work, InputFile) and data.draw(st.booleans()):
                deaths -= 1
                died.setdefault(work[0], []).append(not busy and len(work) == 1)
                finished = scheduler.on_worker_death(work, "killed")
            elif isinstance(work, InputFile):
                finished = scheduler.handle(by_name[work.name])
            else:
                (name, span), *others = work
                finished = scheduler.handle(rows(store, by_name[name], span))
                if others:
                    busy.append(others)
            if finished:
                records.append(finished[1])
        assert not busy
        store.finish()
    lost = {
        (record.video, first // SPAN)
        for record in records
        for gap in record.missing
        for first in range(gap[0], gap[1], SPAN)
    }
    assert lost == {span for span, alone in died.items() if len(alone) >= 3 and alone[-1]}
    table = read_results(folder / "results.parquet").rows
    assert len(table) == (10 - len(lost)) * SPAN
    assert not table.duplicated(["video", "frame"]).any()


def test_why_a_span_failed_is_known_in_the_next_run(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 2 * SPAN)
    with opened(out) as store:
        handled(probed(store, video), [FailedSpan("a.mp4", 0, "it hung")])
    with opened(out) as store:
        scheduler = probed(store, video)
        (record,) = handled(scheduler, [rows(store, video, 1)])
    assert record.error == "4 of 8 sampled frames are missing (it hung)"


@pytest.mark.parametrize("videos", [1, 10])
def test_many_spans_take_time_in_proportion(videos, tmp_path):
    def seconds(spans: int) -> float:
        began = time.process_time()
        drive(tmp_path / f"{spans}", videos, spans * SPAN // videos)
        return time.process_time() - began

    few, many = seconds(200), seconds(1000)
    assert many < 3 * 5 * few  # 25 times if it were quadratic


def test_the_rows_of_finished_videos_are_not_kept(tmp_path):
    def memory(spans: int) -> tuple[int, int]:
        """The most bytes that Python held, and the bytes of all parts."""
        tracemalloc.start()
        size = drive(tmp_path / f"{spans}", 10, spans * SPAN // 10)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak, size

    memory(10)  # what is imported on the way does not count
    (few, few_parts), (many, many_parts) = memory(200), memory(1000)
    assert many - few < 0.3 * (many_parts - few_parts)

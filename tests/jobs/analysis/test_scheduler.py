"""The books come out the same in whatever order workers speak, and whichever of them die."""

import resource
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_bookkeeping import drive, every_frame, stream_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.jobs.analysis.messages import (
    Failed,
    Lost,
    Message,
    Planned,
    Redo,
    Rows,
    Segment,
    Task,
    segments,
)
from emopipe.jobs.analysis.scheduler import Bookkeeper, WorkersError
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media import video as video_module
from emopipe.pipeline.media.video import Video, spans_of
from emopipe.pipeline.run import Observer
from emopipe.pipeline.table.results import VideoRecord, read_results, span_rows
from emopipe.pipeline.table.store import Store, open_store, part_key

SPAN = 4  # frames


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "SPAN_FRAMES", SPAN)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.parquet"


def opened(out: Path):
    return open_store(out, {"settings": {}}, EMOTIONS_8)


def book_of(store: Store, videos: Iterable[Video], observer: Observer | None = None) -> Bookkeeper:
    return Bookkeeper(store, list(map(task, videos)), every_frame, 2, observer or Observer())


def task(video: Video) -> Task:
    return Task(InputFile(video.path, video.name), video.backend)


def planned(video: Video) -> Planned:
    return Planned(InputFile(video.path, video.name), video)


def rows(store: Store, video: Video, span: int) -> Rows:
    numbers = spans_of(every_frame(video))[span]
    found, predictions = a_span([1] * len(numbers), video.name, first=int(numbers[0]), stride=1)
    table = span_rows(found, predictions, predictions.landmarks, store.schema)
    return Rows(video.name, part_key(video), span, stream_of(table))


def lost(video: Video, span: int, reason: str = "it crashed") -> Lost:
    return Lost(video.name, part_key(video), span, reason)


def answers(store: Store, video: Video) -> list[Message]:
    return [planned(video), *(rows(store, video, span) for span in spans_of(every_frame(video)))]


def committed(book: Bookkeeper, messages: Iterable[Message]) -> list[VideoRecord]:
    return [done[1] for message in messages if (done := book.take(message))]


def spans_to_do(book: Bookkeeper) -> list[tuple[str, int]]:
    return [(s.video.name, k) for s in book.todo() if isinstance(s, Segment) for k in s.spans]


@given(st.integers(0, 100), st.integers(1, 20), st.booleans())
def test_segments_hold_each_span_once_in_order_and_shrink(n, most, seekable):
    spans = {span: np.array([span]) for span in range(n)}
    with tempfile.TemporaryDirectory() as folder:
        video = a_video(Path(folder), "a.mp4", 8)
    if not seekable:
        video = replace(video, keys=np.zeros(0, np.int64))
    found = list(segments(video, spans, most))
    assert [span for segment in found for span in segment.spans] == list(spans)
    sizes = [len(segment.spans) for segment in found]
    assert all(size <= most for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= (n / most + 4 if seekable else -(-n // most))
    assert not seekable or n <= most or sizes[-1] <= max(1, most // 2)


def test_what_decord_cannot_read_is_taken_from_pyav(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 3 * SPAN)
    with opened(out) as store:
        asked = Task(InputFile(video.path, video.name), "decord")
        book = Bookkeeper(store, [asked], every_frame, 2, Observer())
        assert book.todo() == [asked]
        (record,) = committed(book, answers(store, video))
        assert (record.status, record.backend) == ("ok", "pyav")


def test_a_video_is_committed_with_its_last_span(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 3 * SPAN)
    with opened(out) as store:
        book = book_of(store, [video])
        assert book.todo() == [task(video)]
        *first, last = answers(store, video)
        assert committed(book, first) == []
        assert spans_to_do(book) == [("a.mp4", 2)]
        (record,) = committed(book, [last])
        assert (record.status, record.frames, book.todo()) == ("ok", 3 * SPAN, [])


def test_a_video_without_sampled_frames_is_committed_when_planned(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 8)
    with opened(out) as store:
        book = Bookkeeper(store, [task(video)], lambda _: np.zeros(0, np.int64), 2, Observer())
        (record,) = committed(book, [planned(video)])
        assert (record.status, record.frames) == ("failed", 0)
        assert "no frame lies between --start and --end" in record.error
        assert book.todo() == []


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_order_of_messages_does_not_matter(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    sound = a_video(folder, "sound.mp4", 3 * SPAN)
    holed = a_video(folder, "holed.mp4", 4 * SPAN)
    odd = a_video(folder, "odd.mp4", 2 * SPAN, backend="decord")
    broken = InputFile(folder / "broken.mp4", "broken.mp4")
    results = []
    with opened(folder / "results.parquet") as store:
        messages = [
            *answers(store, sound),
            *answers(store, holed)[:3],
            lost(holed, 2, "it hung"),
            lost(holed, 3, "it crashed"),
            planned(odd),
            rows(store, odd, 0),
            Redo("odd.mp4"),
            Redo("odd.mp4"),
            Failed(broken, "it is no video"),
        ]
        book = Bookkeeper(
            store,
            [*map(task, (sound, holed, odd)), Task(broken, "pyav")],
            every_frame,
            2,
            Observer(),
        )
        results += committed(book, data.draw(st.permutations(messages)))
        again = replace(odd, backend="pyav")
        assert book.todo() == [Task(InputFile(odd.path, "odd.mp4"), "pyav")]
        results += committed(book, data.draw(st.permutations(answers(store, again))))
        assert book.todo() == []
        records = store.finish()
    assert sorted(results, key=lambda record: record.video) == records
    assert {r.video: (r.status, r.frames, r.missing, r.backend) for r in records} == {
        "broken.mp4": ("failed", 0, (), None),
        "holed.mp4": ("partial", 2 * SPAN, ((8, 15),), "pyav"),
        "odd.mp4": ("ok", 2 * SPAN, (), "pyav"),
        "sound.mp4": ("ok", 3 * SPAN, (), "pyav"),
    }
    assert {r.error for r in records} == {
        None,
        "it is no video",
        "8 of 16 sampled frames could not be had (it crashed)",
    }


class Counting(Observer):
    """Counts the frames it is told of."""

    def __init__(self) -> None:
        self.frames = 0

    def video_begun(self, video: Video, frames: int, done: int) -> None:
        self.frames += done

    def span_done(self, video: Video, frames: int, faces: int) -> None:
        self.frames += frames


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(5)), stop=st.integers(0, 5))
def test_a_stopped_run_goes_on_and_counts_each_frame_once(order, stop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    video = a_video(folder, "a.mp4", 4 * SPAN)
    with opened(folder / "results.parquet") as store:
        messages = answers(store, video)
        committed(book_of(store, [video]), [messages[i] for i in order[: min(stop, 4)]])
        here = store.begun().get(part_key(video), set())
    observer = Counting()
    with opened(folder / "results.parquet") as store:
        book = book_of(store, [video], observer)
        assert book.here.get(part_key(video), set()) == here
        committed(book, [planned(video)])
        todo = [span for _, span in spans_to_do(book)]
        assert set(todo) == set(range(4)) - here
        committed(book, [rows(store, video, span) for span in todo])
        store.finish()
    assert observer.frames == video.frames
    assert len(read_results(folder / "results.parquet").rows) == video.frames


def test_the_span_that_a_dead_worker_was_at_is_done_last_and_alone(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 6 * SPAN)
    key = part_key(video)
    with opened(out) as store:
        book = book_of(store, [video])
        committed(book, [planned(video), rows(store, video, 0)])
        book.died({"actor 1": (key, 1), "actor 2": (key, 3)}, "actor 2", "killed")
        assert spans_to_do(book) == [("a.mp4", span) for span in (1, 2, 4, 5)]
        committed(book, [rows(store, video, span) for span in (1, 2, 4, 5)])
        assert spans_to_do(book) == [("a.mp4", 3)]
        (record,) = committed(book, [rows(store, video, 3)])
        assert record.status == "ok"


def test_where_the_dead_worker_is_not_known_all_spans_begun_are_suspect(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 4 * SPAN)
    key = part_key(video)
    with opened(out) as store:
        book = book_of(store, [video])
        committed(book, [planned(video), rows(store, video, 0)])
        book.died({"1": (key, 0), "2": (key, 1), "3": (key, 3)}, None, "killed")
        assert spans_to_do(book) == [("a.mp4", 2)]
        committed(book, [rows(store, video, 2)])
        for span in (1, 3):
            assert spans_to_do(book) == [("a.mp4", span)]
            committed(book, [rows(store, video, span)])
        assert book.todo() == []


def test_a_span_that_always_kills_its_worker_is_given_up_the_third_time_over_all_runs(
    out, tmp_path
):
    video = a_video(tmp_path, "a.mp4", 2 * SPAN)
    key = part_key(video)
    with opened(out) as store:
        book = book_of(store, [video])
        committed(book, [planned(video)])
        assert book.died({"1": (key, 1)}, "1", "killed by signal 9") is None
        committed(book, [rows(store, video, 0)])
        assert spans_to_do(book) == [("a.mp4", 1)]
        assert book.died({}, None, "killed by signal 9") is None
    with opened(out) as store:
        book = book_of(store, [video])
        committed(book, [planned(video)])
        assert spans_to_do(book) == [("a.mp4", 1)]
        done = book.died({"1": (key, 1)}, "1", "killed by signal 9")
        assert done
        assert done[1].status == "partial"
        assert done[1].missing == ((SPAN, 2 * SPAN - 1),)
        assert "killed by signal 9" in done[1].error
        assert book.todo() == []


def test_why_a_span_was_lost_is_known_in_the_next_run(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 2 * SPAN)
    with opened(out) as store:
        committed(book_of(store, [video]), [lost(video, 0, "it hung")])
    with opened(out) as store:
        book = book_of(store, [video])
        (record,) = committed(book, [planned(video), rows(store, video, 1)])
    assert record.error == "4 of 8 sampled frames could not be had (it hung)"


def test_workers_that_die_before_they_begin_anything_end_the_run_with_a_sentence(out, tmp_path):
    video = a_video(tmp_path, "a.mp4", 2 * SPAN)
    with opened(out) as store:
        book = book_of(store, [video])
        book.died({}, "prober", "no memory")
        committed(book, [planned(video)])  # some progress: the count starts anew
        book.died({}, "prober", "no memory")
        book.died({}, "prober", "no memory")
        with pytest.raises(WorkersError, match=r"no memory.*--local"):
            book.died({}, "prober", "no memory")


@pytest.mark.parametrize("videos", [1, 30])
def test_books_of_many_spans_take_time_and_memory_in_proportion(videos, tmp_path):
    def cost(spans: int) -> float:
        began = time.process_time()
        drive(tmp_path / f"{spans}", videos, spans * SPAN // videos)
        return time.process_time() - began

    few = cost(600)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = cost(3000)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib
    assert many < 2 * 5 * few
    assert grown_kib < 50 * 1024

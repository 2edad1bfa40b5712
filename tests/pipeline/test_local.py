"""Real clips to a table: what is in it, going on where a run stopped, and inputs that fail."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
import pandas as pd
import psutil
import pytest
from made_clips import ffmpeg, zero_packets
from made_faces import FRAMES, face_clip, face_picture
from PIL import Image

from emopipe import analyze as analyze_videos
from emopipe.pipeline import local
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.local import run
from emopipe.pipeline.media import readers, sampling
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import Settings, SettingsError
from emopipe.pipeline.table.in_memory import Results
from emopipe.pipeline.table.output import partial_path
from emopipe.pipeline.table.results import read_results

Analyzed = Callable[[str], Results]

STRIDES = {
    "WolfgangLanger_Pexels.mp4": 12,
    "single_face.mp4": 1,
    "no_face.mp4": 1,
    "face_noface.mov": 1,
}
"""`test_bench.py` looks at every frame of the long one too."""

FAST = Settings(detect_size=160)
"""Where what is found matters less than that it is."""

FACE_COLUMNS = ["face", "x1", "score", "emotion", "p_happy", "valence", "landmark_score"]


@pytest.fixture(scope="module")
def real(clips: Path) -> Analyzed:
    """Gives the results of a real clip, each analyzed once."""
    return cache(lambda name: analyze_videos(clips / name, stride=STRIDES[name]))


@pytest.mark.parametrize(
    ("name", "frames"),
    [("WolfgangLanger_Pexels.mp4", range(0, 472, 12)), ("single_face.mp4", range(72))],
)
def test_a_face_that_is_always_there_has_one_row_a_frame(
    real: Analyzed, name: str, frames: range
) -> None:
    rows = real(name).rows
    assert rows.frame.tolist() == list(frames)
    assert (rows.face == 0).all()
    assert rows[FACE_COLUMNS].notna().all(axis=None)


def test_frames_without_a_face_have_a_row_with_nulls(real: Analyzed) -> None:
    results = real("no_face.mp4")
    assert results.rows.frame.tolist() == list(range(95))
    assert results.rows.time.is_monotonic_increasing and results.rows.time.notna().all()
    assert results.rows[FACE_COLUMNS].isna().all(axis=None)
    assert np.isnan(results.landmarks).all()


def test_faces_are_found_while_there_is_one(real: Analyzed) -> None:
    rows = real("face_noface.mov").rows
    assert rows.frame.tolist() == list(range(169))
    assert (np.diff(rows.time) > 0).all()
    assert rows.frame[rows.face.notna()].tolist() == list(range(72))


@pytest.mark.parametrize(("name", "frame"), [("single_face.mp4", 40), ("face_noface.mov", 30)])
def test_landmarks_lie_where_another_detector_sees_eyes_nose_and_mouth(
    real: Analyzed, clips: Path, shared: Path, name: str, frame: int
) -> None:
    with av.open(str(clips / name)) as container:
        for index, decoded in enumerate(container.decode(video=0)):
            if index == frame:
                picture = decoded.to_ndarray(format="rgb24")
                break
    yunet = load_detector("yunet", weights=shared / "weights" / "face_detection_yunet_2023mar.onnx")
    [seen] = yunet.detect([picture])
    results = real(name)
    index = results.rows.index[results.rows.frame == frame][0]
    points = results.landmarks[index]
    eyes = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    ours = np.array([*eyes, points[30], points[48], points[54]])
    off = np.linalg.norm(ours - seen.points[0], axis=1) / seen.sides[0]
    assert (off < 0.08).all()


def test_landmarks_keep_to_the_face(real: Analyzed) -> None:
    results = real("single_face.mp4")
    corners = results.rows[["x1", "y1", "x2", "y2"]].to_numpy(np.float32)
    margin = 0.15 * (corners[:, 2:] - corners[:, :2]).mean(axis=1)[:, None]
    low, high = corners[:, None, :2] - margin[:, None], corners[:, None, 2:] + margin[:, None]
    assert ((results.landmarks > low) & (results.landmarks < high)).all()
    brows, eyes, nose, mouth, chin = (
        results.landmarks[:, part, 1].mean(axis=1)
        for part in (slice(17, 27), slice(36, 48), slice(30, 36), slice(48, 68), slice(7, 10))
    )
    assert ((brows < eyes) & (eyes < nose) & (nose < mouth) & (mouth < chin)).all()


def test_a_smile_is_called_happy_and_pleasant(real: Analyzed) -> None:
    rows = real("single_face.mp4").rows
    # The smile is gone on the last frame.
    before, smiling = rows[rows.frame < 12], rows[rows.frame.between(24, 69)]
    assert (smiling.emotion == "happy").all()
    assert (before.emotion == "neutral").all()
    assert rows.emotion.iloc[-1] == "neutral"
    assert smiling.valence.min() > before.valence.max() + 0.3


def test_faces_that_smile_in_pictures_are_called_happy(shared: Path) -> None:
    rows = analyze_videos(shared / "data" / "images").rows
    # Of the five on one picture the one that is detected with the lowest score hardly smiles.
    smiling = rows[rows.face < 4]
    assert smiling.groupby("video", observed=True).size().tolist() == [4, 1]
    assert (smiling.emotion == "happy").all()
    assert (smiling.valence > 0.5).all()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_clip(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short clip then has five spans."""
    monkeypatch.setattr(sampling, "SPAN_FRAMES", 10)


class Interrupting(ProgressCallback):
    """Ctrl-C behind so many spans of a run."""

    def __init__(self, spans: int) -> None:
        self._left = spans

    def on_span(self, video: object, frames: int, faces: int) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


class Counting(ProgressCallback):
    """Counts what is done, and what an earlier run had done."""

    inputs_done = frames_done = frames = 0

    def on_start(self, inputs: object, done: int, *estimate: object) -> None:
        self.inputs_done = done

    def on_video_start(self, video: object, frames: int, done: int) -> None:
        self.frames_done += done

    def on_span(self, video: object, frames: int, faces: int) -> None:
        self.frames += frames


def assert_same(a: Results, b: Results) -> None:
    pd.testing.assert_frame_equal(a.rows, b.rows, check_exact=True)
    np.testing.assert_array_equal(a.landmarks, b.landmarks)
    pd.testing.assert_frame_equal(a.videos, b.videos)


@pytest.fixture
def two_clips(clip: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy2(clip, folder / name)
    return folder


@pytest.mark.parametrize("out", ["results.parquet", "results"])
def test_a_run_that_was_stopped_goes_on_to_the_same_table(
    two_clips: Path, tmp_path: Path, short_spans: None, out: str
) -> None:
    inputs = find_inputs([two_clips])
    whole, stopped = tmp_path / "whole" / out, tmp_path / "stopped" / out
    run(inputs, whole, FAST)

    for spans in (3, 4):  # in the first clip, then in the second
        with pytest.raises(KeyboardInterrupt):
            run(inputs, stopped, FAST, progress=Interrupting(spans))
        assert not stopped.exists()
    counting = Counting()
    run(inputs, stopped, FAST, progress=counting)

    assert (counting.inputs_done, counting.frames_done, counting.frames) == (1, 20, 30)
    assert_same(read_results(stopped), read_results(whole))
    assert not partial_path(stopped).exists()


def test_a_second_run_does_what_is_new_or_changed(
    two_clips: Path, tmp_path: Path, clip: Path
) -> None:
    out, settings = tmp_path / "results.parquet", replace(FAST, stride=10)
    run(find_inputs([two_clips]), out, settings)
    ffmpeg("-i", clip, "-c", "copy", "-frames:v", "20", two_clips / "b.mp4")
    shutil.copy2(clip, two_clips / "c.mp4")
    counting = Counting()
    run(find_inputs([two_clips]), out, settings, progress=counting)
    assert (counting.inputs_done, counting.frames) == (1, 2 + 5)
    assert read_results(out).rows.groupby("video", observed=True).size().to_dict() == {
        "a.mp4": 5,
        "b.mp4": 2,
        "c.mp4": 5,
    }


@pytest.fixture(scope="module")
def failing(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A folder with a good clip among all kinds of bad ones, analyzed at every second frame."""
    folder = tmp_path_factory.mktemp("failing")
    content = clip.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("Not a video at all.\n" * 50)
    (folder / "text.png").write_text("Not a picture at all.\n")
    (folder / "truncated.mp4").write_bytes(content[: len(content) * 6 // 10])
    # Without B-frames: of a group that is cut the last frame may be there, but not the ones before.
    ffmpeg("-i", clip, "-c:v", "libx264", "-bf", "0", "-crf", "10", folder / "truncated.mkv")
    os.truncate(folder / "truncated.mkv", (folder / "truncated.mkv").stat().st_size * 6 // 10)
    # What a camera leaves that writes the index last and lost its power.
    ffmpeg("-i", clip, "-c", "copy", folder / "no_index.mp4")
    os.truncate(folder / "no_index.mp4", content.index(b"mdat"))
    late = (folder / "no_index.mp4").read_bytes()
    assert b"moov" not in late
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", folder / "audio.mp4")
    middle = len(content) // 2
    noise = np.random.default_rng(0).bytes(len(content) // 10)
    (folder / "corrupt.mp4").write_bytes(content[:middle] + noise + content[middle + len(noise) :])
    shutil.copy(clip, folder / "good.mp4")
    return analyze_videos(folder, stride=2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty.mp4", "is empty"),
        ("text.mp4", "is not a video"),
        ("text.png", "is not an image"),
        ("no_index.mp4", "without its index"),
        ("audio.mp4", "has no video, perhaps only sound"),
    ],
)
def test_what_cannot_be_had_at_all_is_told_in_a_sentence(
    failing: Results, name: str, says: str
) -> None:
    record = failing.videos.set_index("video").loc[name]
    assert record.status == "failed"
    assert name in record.error and says in record.error and "\n" not in record.error
    assert record.frames == 0 and not (failing.rows.video == name).any()


@pytest.mark.parametrize("out", ["results.parquet", "results"])
def test_where_all_fail_there_are_results_without_rows(tmp_path: Path, out: str) -> None:
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "float.tif")
    results = analyze_videos(tmp_path / "float.tif", out=tmp_path / out)
    assert len(results.rows) == 0 and results.landmarks.shape == (0, 68, 2)
    assert results.rows.frame.dtype == results.videos.width.dtype == pd.Int32Dtype()
    assert "floating-point" in results.videos.error[0]


def test_the_other_videos_are_done(failing: Results) -> None:
    good = failing.rows[failing.rows.video == "good.mp4"]
    assert good.frame.tolist() == list(range(0, FRAMES, 2)) and good.face.notna().all()
    assert failing.videos.set_index("video").status["good.mp4"] == "ok"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated.mp4", "cut short"),
        ("truncated.mkv", "cut short"),
        ("corrupt.mp4", "sampled frames are missing"),
    ],
)
def test_the_good_frames_of_a_damaged_video_are_delivered(
    failing: Results, name: str, says: str
) -> None:
    record = failing.videos.set_index("video").loc[name]
    assert record.status == "partial" and says in record.error
    rows = failing.rows[failing.rows.video == name].set_index("frame")
    assert record.frames == len(rows) and 5 < len(rows) < FRAMES // 2
    missing = [n for gap in record.missing for n in range(gap["first"], gap["last"] + 1)]
    assert not set(rows.index) & set(missing)
    assert set(range(0, FRAMES, 2)) <= set(rows.index) | set(missing)
    # They are the good video's, so what is on them is in the same place.
    good = failing.rows[failing.rows.video == "good.mp4"].set_index("frame").loc[rows.index]
    assert (
        np.abs(rows[["x1", "y1", "x2", "y2"]] - good[["x1", "y1", "x2", "y2"]]).max(axis=None) < 3
    )
    np.testing.assert_allclose(rows.time, good.time, atol=1e-3)


def test_what_the_backend_stumbles_over_fails_with_the_way_out(
    failing: Results, tmp_path: Path
) -> None:
    for name in ("good.mp4", "corrupt.mp4"):
        shutil.copy(failing.videos.set_index("video").path[name], tmp_path / name)
    found = analyze_videos(tmp_path, stride=2, backend="decord")
    videos = found.videos.set_index("video")
    assert videos.status.to_dict() == {"good.mp4": "ok", "corrupt.mp4": "failed"}
    assert videos.backend["good.mp4"] == "decord"
    assert videos.error["corrupt.mp4"].endswith("use `backend` pyav for it.")
    rows, others = found.rows.set_index(["video", "frame"]), failing.rows
    others = others[others.video == "good.mp4"].set_index(["video", "frame"])
    assert rows.index.tolist() == others.index.tolist()
    assert np.abs(rows.valence - others.valence).max() < 0.05


def test_what_the_backend_stumbles_over_midway_fails_as_a_whole(
    failing: Results, tmp_path: Path, short_spans: None
) -> None:
    """Frames that it decoded before are not kept: the other backend will decode all of them."""
    path = tmp_path / "damaged.mp4"
    shutil.copy(failing.videos.set_index("video").path["good.mp4"], path)
    spoiling = Spoiling(path)
    out = tmp_path / "results.parquet"
    inputs = find_inputs([path])
    [record] = run(inputs, out, replace(FAST, backend="decord"), progress=spoiling)
    assert record.status == "failed" and record.frames == 0
    assert "decord met a damaged frame" in record.error
    assert record.error.endswith("use `backend` pyav for it.")
    assert len(read_results(out).rows) == 0


class Spoiling(ProgressCallback):
    """Damages a video once it is probed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_video_start(self, video: object, frames: int, done: int) -> None:
        zero_packets(self._path, slice(40, 44))


def test_a_backend_is_refused_where_it_is_not_installed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "find_spec", lambda name: None if name == "decord" else True)
    with pytest.raises(SettingsError, match="`backend` decord: the package decord is not inst"):
        run(find_inputs([clip]), tmp_path / "results.parquet", replace(FAST, backend="decord"))
    [record] = run(find_inputs([clip]), tmp_path / "results.parquet", FAST)
    assert record.backend == "pyav"


class Striking(ProgressCallback):
    """Sends the decoding child a signal behind the first span."""

    def __init__(self, blow: signal.Signals) -> None:
        self._blow: signal.Signals | None = blow

    def on_span(self, video: object, frames: int, faces: int) -> None:
        if self._blow:
            children = psutil.Process().children()
            decoding = "emopipe.pipeline.media.decoder_child"
            [child] = [one for one in children if decoding in " ".join(one.cmdline())]
            child.send_signal(self._blow)
            self._blow = None


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["crashes", "hangs"])
def test_a_decoder_that_dies_once_costs_nothing(
    clip: Path,
    tmp_path: Path,
    short_spans: None,
    monkeypatch: pytest.MonkeyPatch,
    blow: signal.Signals,
) -> None:
    monkeypatch.setattr(local, "Decoder", partial(Decoder, timeout_s=3.0))
    # So large that it is not yet all in shared memory when the child is struck.
    large, out = tmp_path / "large.mp4", tmp_path / "results.parquet"
    ffmpeg("-i", clip, "-vf", "scale=960:960", "-frames:v", "30", large)
    [record] = run(find_inputs([large]), out, FAST, progress=Striking(blow))
    assert (record.status, record.frames, record.error) == ("ok", 30, None)
    assert read_results(out).rows.frame.tolist() == list(range(30))


POISON = """
import os, signal
from emopipe.pipeline.media import readers

opened = readers.open_reader

def open_reader(video, *arguments):
    reader = opened(video, *arguments)
    if video.name != "a.mp4":
        return reader
    decode = reader.frame
    def poisoned(number):
        if 20 <= number < 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(number)
    reader.frame = poisoned
    return reader

readers.open_reader = open_reader
"""


def test_frames_that_always_crash_the_decoder_are_given_up_and_named(
    two_clips: Path, tmp_path: Path, short_spans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child is a fresh interpreter: this is its one way in.
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "results.parquet"
    bad, good = run(find_inputs([two_clips]), out, FAST)
    assert bad.status == "partial" and bad.missing == ((20, 29),)
    assert "10 of 50 sampled frames" in bad.error and "crashed" in bad.error
    assert (good.status, good.frames) == ("ok", FRAMES)
    rows = read_results(out).rows
    assert rows.frame[rows.video == "a.mp4"].tolist() == [*range(20), *range(30, FRAMES)]


def test_pictures_are_videos_of_one_frame_as_displayed(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    upright = face_picture()
    upright.putalpha(255)
    upright.save(folder / "alpha.png")
    turn = Image.Exif()
    turn[0x0112] = 6  # EXIF orientation: to be turned clockwise for display
    on_its_side = face_picture().transpose(Image.Transpose.ROTATE_90)
    on_its_side.save(folder / "turned.jpg", quality=95, exif=turn)
    results = analyze_videos(folder)
    assert results.rows.frame.tolist() == [0, 0] and results.rows.time.tolist() == [0.0, 0.0]
    assert results.videos.backend.tolist() == ["image", "image"]
    boxes = results.rows[["x1", "y1", "x2", "y2"]].to_numpy(np.float32)
    np.testing.assert_allclose(*boxes, atol=2)
    np.testing.assert_allclose(*results.landmarks, atol=4)
    # The face in scikit-image's portrait.
    assert 150 < boxes[0, 0] < boxes[0, 2] < 300 and 50 < boxes[0, 1] < boxes[0, 3] < 220


def test_an_animation_has_rows_of_every_picture_with_its_time(tmp_path: Path) -> None:
    face, nobody = face_picture(), Image.new("RGB", (512, 512), "grey")
    shown, durations = [face, nobody, face, nobody, face], [200, 100, 50, 150, 100]
    options = {"save_all": True, "append_images": shown[1:], "duration": durations}
    shown[0].save(tmp_path / "a.webp", **options)
    results = analyze_videos(tmp_path / "a.webp")
    assert results.rows.frame.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(results.rows.time, [0, 0.2, 0.3, 0.35, 0.5])
    assert results.rows.face.isna().tolist() == [False, True, False, True, False]
    video = results.videos.iloc[0]
    assert (video.status, video.backend, video.frames) == ("ok", "image", 5)


def test_the_faces_that_count_can_be_chosen(shared: Path) -> None:
    group = partial(analyze_videos, shared / "data" / "images" / "multi_face.jpg")
    everyone = group().rows
    assert everyone.face.tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(everyone.score) <= 0).all()
    sides = ((everyone.x2 - everyone.x1) + (everyone.y2 - everyone.y1)) / 2

    assert group(faces="largest").rows.x1.tolist() == [everyone.x1[sides.idxmax()]]
    assert group(max_faces=2).rows.x1.tolist() == everyone.x1[:2].tolist()
    assert (
        group(min_size=float(sides[2])).rows.x1.tolist() == everyone.x1[sides >= sides[2]].tolist()
    )
    last = everyone.iloc[4]
    region = tuple(float(v) for v in last[["x1", "y1", "x2", "y2"]])
    assert group(roi=region).rows.x1.tolist() == [last.x1]
    assert group(min_score=0.9).rows.x1.tolist() == everyone.x1[everyone.score >= 0.9].tolist()
    nobody = group(min_score=0.99).rows
    assert nobody.frame.tolist() == [0] and nobody.face.isna().all()


class Stopper(ProgressCallback):
    """Freezes the decoding child, then ends the run as Ctrl-C does."""

    def __init__(self) -> None:
        self.others = psutil.Process().children()

    def on_span(self, video: object, frames: int, faces: int) -> None:
        for child in psutil.Process().children():
            if child not in self.others:
                child.suspend()
        raise KeyboardInterrupt


def test_an_interrupted_run_does_not_wait_for_the_span_at_work(tmp_path: Path) -> None:
    long_clip = tmp_path / "long.mp4"
    repeat(face_clip(tmp_path), 20, long_clip)
    began, stopper = time.monotonic(), Stopper()
    with pytest.raises(KeyboardInterrupt):
        run(find_inputs([long_clip]), tmp_path / "results.parquet", FAST, progress=stopper)
    assert time.monotonic() - began < 30  # the child would be waited for a minute
    assert psutil.Process().children() == stopper.others


def test_the_next_item_is_taken_while_one_is_used_and_errors_arrive() -> None:
    taken = threading.Semaphore(0)

    def items() -> Iterator[int]:
        yield 1
        taken.release()
        yield 2
        raise ValueError("three")

    with ThreadPoolExecutor(1) as beside:
        upcoming = local._prefetched(items(), beside)
        assert next(upcoming) == 1
        assert taken.acquire(timeout=10)
        assert next(upcoming) == 2
        with pytest.raises(ValueError, match="three"):
            next(upcoming)

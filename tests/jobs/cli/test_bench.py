"""`emopipe bench`: the table, the JSON, and what it answers to mistakes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import run_command
from made_clips import make_clip
from made_faces import face_picture

from emopipe.emonet.roofline import Roofline
from emopipe.jobs.cli import bench
from emopipe.pipeline.agreement import Agreement
from emopipe.pipeline.bench import EveryFrame, Whole
from emopipe.pipeline.bench_stages import STAGES, Speed
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.settings import Settings

FRAMES = 3 * SPAN_FRAMES
QUICK = ("--frames", str(FRAMES), "--seconds", "0.05", "--detect-size", "160")
SPEED = ("ms_per_frame", "frames_per_second", "faces_per_second", "frames", "faces", "seconds")


def test_without_a_video_it_measures_the_demos_sample_and_prints_json() -> None:
    result = run_command("bench", *QUICK, "--no-mirror", "--detect-every", "4", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert told["video"] == {"name": "sample.mp4", "width": 320, "height": 320, "copies": 2}
    assert list(told["stages"]) == list(STAGES)
    for speed in (*told["stages"].values(), told["whole"], told["plain_loop"]):
        assert all(speed[figure] > 0 for figure in SPEED)
    whole = told["whole"]
    assert (whole["total_frames"], whole["total_faces"]) == (FRAMES, FRAMES)
    assert whole["frames"] == FRAMES - 2 * SPAN_FRAMES
    assert whole["peak_memory_mib"] > 150
    assert whole["memory"] == ("PSS" if sys.platform == "linux" else "RSS")
    assert told["settings"]["detect_size"] == 160 and told["settings"]["mirror"] is False
    assert told["settings"]["precision"] in ("float32", "bfloat16", "float16")
    assert told["roofline"]["matrix_side"] >= 2048
    assert told["roofline"]["network_gflop_per_face"] == pytest.approx(0.54, abs=0.01)
    detected = told["every_frame_detected"]
    assert (detected["total_frames"], detected["total_faces"]) == (FRAMES, FRAMES)
    assert (detected["agreement"]["faces"], detected["agreement"]["faces_found"]) == (FRAMES, 1)
    assert 0 < detected["agreement"]["landmark_distance"] < 0.05
    roofline = told["roofline"]
    assert roofline["network_share"] == pytest.approx(
        roofline["network_gflop_per_second"] / roofline["matrix_gflop_per_second"]
    )
    assert told["machine"]["cpu"] and told["machine"]["cores"] >= 1
    assert {"emopipe", "python", "torch", "av"} <= told["machine"]["versions"].keys()


def test_of_a_longer_video_the_first_frames_count_and_what_lacks_faces_is_told(
    tmp_path: Path,
) -> None:
    clip = tmp_path / "long.mp4"
    repeat(make_clip(tmp_path, "h264.mp4"), 2, clip)
    result = run_command("bench", clip, *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line[:24].strip(): line[24:].split() for line in result.stdout.splitlines()}
    for name in STAGES:
        figures = rows[f"{name} alone"]
        assert len(figures) == 3
        assert (figures == ["—"] * 3) == (name in ("align", "network"))
    assert "Not measured: align and network, as no face is found." in result.stdout
    assert f"long.mp4, 160×96: {FRAMES} frames, 0 faces" in result.stdout
    assert "torch " in result.stdout and " cores" in result.stdout
    for word in ("Start-up", "Memory", "plain loop", "GFLOP/s"):
        assert word in result.stdout
    assert "--detect-every" not in result.stdout


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.25, "25 GFLOP/s, 25% of the roofline."), (None, "25 GFLOP/s in float32 on cpu.")],
)
def test_a_detector_is_held_against_the_roofline_of_its_own_precision_only(
    share: float | None, told: str
) -> None:
    measured = SimpleNamespace(
        roofline=Roofline(2048, 100e9, 64, 10.0, 10**9),
        settings=Settings(device="cpu", runtime="torch", precision="bfloat16"),
        detector_flop_per_frame=10**9,
        detector_flop_per_second=25e9,
        detector_share=share,
    )
    assert bench._roofline(measured)[-1] == (
        f"The detector takes 1 GFLOP a frame: it reaches {told}"
    )


def test_what_following_faces_gains_and_costs_is_a_sentence() -> None:
    fast, slow = (Whole(1.0, Speed(100, 100, s), 5.0, 124, 124, 1) for s in (1.0, 2.0))
    measured = SimpleNamespace(whole=fast, settings=Settings(detect_every=5))

    def sentence(agreement: Agreement) -> str:
        return bench._agreement(measured, EveryFrame(slow, agreement))

    assert sentence(Agreement(1240, 0.99, 0.01, 0.975, 0.006, 0.02, 0.1)) == (
        "With --detect-every 5 the whole is 2.0 times as fast as without. Without, 1,240 faces are "
        "found: with it 99.0% of them, and 1.0% more. 97.5% have the same emotion, landmarks 0.60% "
        "of the outer eye corners' distance away, valence 0.020 away on average and 0.100 at most."
    )
    assert "landmarks" not in sentence(Agreement(9, 1.0, 0.0, 1.0, None, 0.0, 0.0))
    assert "no face is found" in sentence(Agreement(0, None, None, None, None, None, None))


def test_its_options_are_those_of_analyze_that_change_the_speed() -> None:
    text = run_command("bench", "--help").output
    headings = [line for line in text.splitlines() if line.endswith(":") and line[:1].isalpha()]
    assert headings == ["Input:", "Faces:", "Model:", "Speed:", "Other options:"]
    for option in ("--frames", "--seconds", "--detector", "--model", "--precision", "--threads"):
        assert f"{option} " in text
    for option in ("--out", "--stride", "--roi", "--classes"):
        assert option not in text
    assert "bench " in run_command("--help").output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.mp4"], "gone.mp4 does not exist"),
        (["notes.md"], "notes.md was skipped: .md is not a type of video or image"),
        (["face.png"], "VIDEO is a video, and face.png an image"),
        (["empty.mp4"], "empty.mp4 is empty"),
        (["two"], "VIDEO is one video, and two has 2 inputs"),
        (["--frames", "71"], "--frames is 72 or more, not 71"),
        (["--seconds", "0"], "--seconds is more than 0, not 0"),
        (["--detector", "yunett"], "--detector is one of"),
        (["--model", "gone.pth"], "--model gone.pth: there is no such file"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("notes")
    Path("empty.mp4").touch()
    Path("two").mkdir()
    for picture in ("face.png", "two/a.png", "two/b.png"):
        face_picture().save(picture)
    result = run_command("bench", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1
    assert sentence in result.output


def test_without_scikit_image_it_asks_for_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "emopipe.jobs.demo", raising=False)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    result = run_command("bench")
    assert result.exit_code == 2
    assert "Error: VIDEO is missing" in result.output and "install scikit-image" in result.output

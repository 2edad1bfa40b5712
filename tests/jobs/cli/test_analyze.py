"""`emopipe analyze`: exit statuses, errors, help, and what each option does."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from made_faces import face_clip, two_faces_picture
from numpy.typing import NDArray
from safetensors.torch import save_file

from emopipe import analyze as analyze_videos
from emopipe.emonet.checkpoint import random_weights, save
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import rules_of
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.jobs.cli import main
from emopipe.jobs.cluster import ClusterOptions
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.inputs import Inputs
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.in_memory import Results
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.store import Store

BOX = ["x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of one face and an image of two."""
    folder = tmp_path_factory.mktemp("media")
    face_clip(folder)
    two_faces_picture().save(folder / "two.png")
    (folder / "bad.mp4").touch()
    return folder


@pytest.fixture
def here(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with the media beside and no weights fetched."""
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def command(*arguments: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def analyze(*arguments: str | Path) -> Result:
    return command("analyze", "--local", *arguments)


def table(*arguments: str | Path) -> Results:
    """What an analysis that goes well writes."""
    result = analyze(*arguments, "--overwrite", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    return read_results("results.parquet")


def test_all_done_is_0_and_says_where_the_results_are(here: Path, media: Path) -> None:
    result = analyze(media / "two.png")
    assert result.exit_code == 0
    assert "1 ok, 0 partial, 0 failed: 1 frame, 2 faces" in result.stdout
    assert "results.parquet" in result.stdout and "results.videos.parquet" in result.stdout
    assert "emonet-lite (bundled)" in result.stderr and "models fetch emonet-8" in result.stderr
    assert len(read_results("results.parquet").rows) == 2


def test_failed_inputs_are_3_and_named_with_the_rest_done(here: Path, media: Path) -> None:
    (here / "notes.md").write_text("notes")
    result = analyze(media / "bad.mp4", "notes.md", media / "two.png", "--json")
    assert result.exit_code == 3
    assert "failed: bad.mp4:" in result.stderr and "is empty" in result.stderr
    assert "failed: notes.md: notes.md was skipped" in result.stderr
    summary = json.loads(result.stdout)
    assert {key: summary[key] for key in ("inputs", "ok", "partial", "failed")} == {
        "inputs": 3,
        "ok": 1,
        "partial": 0,
        "failed": 2,
    }
    assert (summary["frames"], summary["faces"]) == (1, 2)
    assert summary["results"] == "results.parquet" and Path(summary["videos"]).exists()
    assert sorted(summary["problems"]) == ["bad.mp4", "notes.md"]
    assert "is empty" in summary["problems"]["bad.mp4"]
    videos = read_results("results.parquet").videos.set_index("video")
    assert videos.status["notes.md"] == "failed" and "convert it" in videos.error["notes.md"]


def test_lines_of_a_list_that_lead_nowhere_are_3_and_the_others_are_done(
    here: Path, media: Path
) -> None:
    shutil.copy(media / "two.png", "old.png")
    lines = ["gone.mp4", "old.png", f'"{media / "two.png"}"', "https://example.org/x.mp4"]
    Path("list.txt").write_text("\n".join(lines))
    result = analyze("list.txt")
    assert result.exit_code == 3
    assert "2 ok, 0 partial, 2 failed: 2 frames, 4 faces" in result.stdout
    assert "failed: gone.mp4: gone.mp4 does not exist" in result.stderr
    Path("old.png").unlink()  # its rows may be all that is left of it
    result = analyze("list.txt")
    assert result.exit_code == 3 and "2 of 4 inputs were done" in result.stderr
    assert frames_of("results.parquet") == {"old.png": 1, "two.png": 1}


def told(result: Result) -> tuple[int, int]:
    """The frames that a summary tells of: those of its inputs, and others in the results."""
    summary = json.loads(result.stdout)
    return summary["frames"], summary["others"]["frames"]


def frames_of(results: str) -> dict[str, int]:
    """How many frames each video has in the results."""
    rows = read_results(results).rows
    return rows.groupby("video", observed=True).frame.nunique().to_dict()


def test_a_file_that_is_added_renames_no_other_and_all_that_the_results_hold_is_told(
    here: Path, media: Path
) -> None:
    picture = media / "two.png"
    for name in ("mon/p01.png", "mon/p02.png", "tue/p03.png"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, name)
    assert told(analyze("mon", "tue", "--json")) == (3, 0)
    shutil.copy(picture, "tue/p01.png")
    shutil.copy(picture, "mon/p03.png")
    assert told(analyze("mon", "tue", "--json")) == (5, 0)
    assert frames_of("results.parquet").keys() == {
        *("p01.png", "p02.png", "mon/p03.png", "p03.png", "tue/p01.png")
    }
    paths = read_results("results.parquet").videos.path
    assert len(set(paths)) == len(paths) == 5
    assert told(analyze("tue", "--json")) == (2, 3)
    Path("mon/p02.png").unlink()
    result = analyze("mon")
    assert "2 ok, 0 partial, 0 failed: 2 frames, 4 faces, all by an earlier run\n" in result.stdout
    assert (
        "also in the results: 3 inputs of earlier runs not named here (1 of their files is gone): "
        "3 frames, 6 faces; --overwrite leaves them out"
    ) in result.stdout


def test_folders_that_were_moved_are_known_whatever_their_names(here: Path) -> None:
    """The second one's is part of a video's name."""
    for width, folder in enumerate(("mon", "tue"), 700):
        Path(folder).mkdir()
        two_faces_picture().resize((width, 480)).save(f"{folder}/p01.png")
    assert told(analyze("mon", "tue", "--json")) == (2, 0)
    Path("tue").rename("a")
    Path("mon").rename("b")
    for _ in range(2):
        result = analyze("a", "b")  # in the other order too
        assert "all 2 inputs were done by an earlier run" in result.stderr
        assert "also in the results" not in result.stdout
    videos = read_results("results.parquet").videos.set_index("video")
    assert videos.width.to_dict() == {"p01.png": 700, "tue/p01.png": 701}
    assert videos.path["tue/p01.png"] == str(here / "a" / "p01.png")


def test_what_failed_before_a_stop_is_tried_again(
    here: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    Path("a.png").write_text("the disk is away")
    shutil.copy(media / "two.png", "b.png")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "finish", interrupted)
        assert analyze("a.png", "b.png").exit_code == 130
    shutil.copy(media / "two.png", "a.png")
    result = analyze("a.png", "b.png")
    assert "1 of 2 inputs was done by an earlier run" in result.stderr
    assert result.exit_code == 0 and frames_of("results.parquet") == {"a.png": 1, "b.png": 1}


def test_a_run_says_what_is_new_in_it(here: Path, media: Path) -> None:
    first, second, third = (
        analyze(*names, "--stride", "25")
        for names in (
            [media / "two.png"],
            [media / "two.png"],
            [media / "two.png", media / "face.mp4"],
        )
    )
    line = "model emonet-lite (bundled), valence and arousal derived from the emotion; for the"
    assert line in first.stderr and "--model emonet-8" in first.stderr
    assert "frames/s" in first.stdout
    assert "model" not in second.stderr + third.stderr
    assert "1 frame, 2 faces, all by an earlier run\n" in second.stdout
    assert "frames/s" not in second.stdout
    assert "3 frames, 4 faces, 1 of the frames by an earlier run, the others in" in third.stdout


def test_the_home_folder_in_every_place_and_the_model_in_words(
    here: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copy(media / "two.png", home)
    save(*random_weights(0, EMOTIONS_8, 16, 64), home / "random.safetensors")
    options = ["--out=~/r.parquet", "--model=~/random.safetensors"]
    result = analyze("~/two.png", *options)
    assert result.exit_code == 0
    assert "model random, valence and arousal mean nothing\n" in result.stderr
    results = analyze_videos("~/two.png", "~/python.parquet", model="~/random.safetensors")
    assert len(read_results("~/python.parquet").rows) == len(results.rows) == 2
    assert {path.name for path in home.glob("*.parquet")} == {
        *("r.parquet", "r.videos.parquet", "python.parquet", "python.videos.parquet")
    }
    assert [path.name for path in here.iterdir()] == ["home"]
    result = analyze("~/two.png", "--detector=yunet", "--detector-weights=~/yunet")
    assert f"{home}/yunet does not exist" in result.stderr
    with pytest.raises(EmopipeError, match=f"{home}/yunet does not exist"):
        analyze_videos("~/two.png", detector="yunet", detector_weights="~/yunet")


def test_quiet_prints_failures_only(here: Path, media: Path) -> None:
    assert analyze(media / "two.png", "--quiet").output == ""
    result = analyze(media / "bad.mp4", "--quiet", "--out", "other.parquet")
    assert result.exit_code == 3
    assert result.stdout == "" and result.stderr.startswith("failed: bad.mp4:")


@pytest.fixture
def traps(here: Path, media: Path) -> None:
    """The current folder with a good image, and files that are not what their names say."""
    shutil.copy(media / "two.png", here)
    Path("folder").mkdir()
    for name in ("folder/readme.md", "notes.md", "mine.parquet", "text.pth"):
        Path(name).write_text("text")
    torch.save({"weight": torch.zeros(3)}, "other.pth")
    save_file({"weight": torch.zeros(3)}, "other.safetensors")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("absent.mp4", "absent.mp4 does not exist"),
        ("no*.mp4", "Nothing matches no*.mp4"),
        ("folder", "folder holds no video"),
        ("mine.parquet", "mine.parquet is a table"),
        ("https://example.org/clip.mp4", "is a URL"),
        ("two.png --out notes.md/results.parquet", "cannot be written"),
        ("two.png --out .", "has no name of its own"),
        ("two.png --out mine.parquet", "choose another --out"),
        ("two.png --model absent.pth", "absent.pth"),
        ("two.png --model emonet-8", "emopipe models fetch emonet-8"),
        ("two.png --model other.pth", "another network"),
        ("two.png --model other.safetensors", "what network"),
        ("two.png --model text.pth", "text.pth is not"),
        ("two.png --classes a,b", "has 8"),
        ("two.png --classes a,a", "--classes are distinct names"),
        ("two.png --fps 2 --stride 2", "--fps and --stride exclude each other"),
        ("two.png --fps 0", "--fps is more than 0"),
        ("two.png --fps inf", "--fps is more than 0"),
        ("two.png --start 2 --end 1", "--end is later than --start"),
        ("two.png --start -1", "--start is 0 or more"),
        ("two.png --roi 1,2,3", "--roi is four numbers"),
        ("two.png --roi 9,9,1,1", "--roi 9,9,1,1 is empty"),
        ("two.png --min-score 2", "--min-score is from 0 to 1"),
        ("two.png --detect-size 8", "--detect-size is 160 or more, not 8"),
        ("two.png --detect-every 0", "--detect-every is 1 or more, not 0"),
        ("two.png --detector yunet", "emopipe models fetch yunet"),
        ("two.png --detector-weights absent.onnx", "absent.onnx does not exist"),
        ("two.png --detector-weights text.pth", "text.pth"),
        ("two.png --device quantum", "--device"),
        ("two.png --precision float8", "not 'float8': did you mean float32?"),
        ("two.png --address auto", "only Ray takes --address"),
        ("two.png --cpus 2 --gpus 1", "only Ray takes --cpus, --gpus"),
        ("two.png --engine ray", "leave it or --engine ray out"),
        ("two.png --dry-run --overwrite", "--dry-run"),
    ],
)
def test_an_invalid_command_is_2_and_one_sentence(
    here: Path, traps: None, arguments: str, says: str
) -> None:
    result = analyze(*arguments.split())
    assert result.exit_code == 2
    [sentence] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert says in sentence
    assert "Traceback" not in result.output
    assert not list(here.glob("*.partial"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has such a device")
def test_a_device_that_is_not_there_is_2(here: Path, media: Path) -> None:
    result = analyze(media / "two.png", "--device", "cuda")
    assert result.exit_code == 2 and "use --device cpu" in result.stderr


def test_other_settings_are_refused_and_harm_nothing(here: Path, media: Path) -> None:
    assert analyze(media / "two.png").exit_code == 0
    before = Path("results.parquet").read_bytes()
    result = analyze(media / "two.png", "--crop", "box")
    assert result.exit_code == 2 and "crop was square and is box" in result.stderr
    assert Path("results.parquet").read_bytes() == before
    result = analyze(media / "two.png")
    assert result.exit_code == 0 and "the input was done by an earlier run" in result.stderr


def test_a_dry_run_prints_the_estimate_and_leaves_nothing(here: Path, media: Path) -> None:
    result = analyze(media / "face.mp4", "--stride", "5", "--dry-run")
    assert result.exit_code == 0 and "about 10 frames" in result.stderr
    summary = json.loads(analyze(media / "face.mp4", "--stride", "5", "--dry-run", "--json").stdout)
    assert (summary["inputs"], summary["frames"], summary["seconds"]) == (1, 10, 2.0)
    assert list(here.iterdir()) == []


def test_a_folder_as_output_gets_one_file_a_video(here: Path, media: Path) -> None:
    options = ["--stride", "25", "--out", "results/"]
    assert analyze(media / "face.mp4", media / "two.png", *options).exit_code == 0
    files = sorted(path.name for path in Path("results").iterdir())
    assert files == ["face.mp4.parquet", "two.png.parquet"]
    assert len(read_results("results").rows) == 2 + 2
    assert analyze(media / "two.png").exit_code == 0  # to results.parquet, beside it
    assert len(read_results("results.parquet").videos) == 1
    assert len(read_results("results").videos) == 2


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command gives to the engine, which does nothing here."""
    seen: list[dict[str, Any]] = []

    def run(
        inputs: Inputs,
        out: Path,
        settings: Settings,
        overwrite: bool,
        progress: object,
        **more: Any,
    ) -> list[object]:
        seen.append({"out": out, "settings": settings, "overwrite": overwrite, **more})
        return []

    monkeypatch.setattr("emopipe.jobs.engine.run", run)
    return seen


def test_every_option_reaches_its_setting(
    here: Path, media: Path, runs: list[dict[str, Any]]
) -> None:
    common = shlex.split(
        "--model m.pth --classes a,b --detector sfd --detector-weights w --detect-size 320 "
        "--detect-every 5 "
        "--min-score 0.7 --min-size 30 --max-faces 3 --faces largest --roi 1,2,3,4 --crop box "
        "--max-gap 7 "
        "--backend decord --no-deinterlace "
        "--start 1.5 --end 2.5 --landmarks none --device cuda --precision float16 "
        "--runtime torch --faces-per-batch 7 --threads 3 --no-mirror --smooth emonet"
    )
    analyze(media, *common, "--stride", "5")
    analyze(media, *common, "--fps", "2.5")
    strided = Settings(
        model="m.pth",
        classes=("a", "b"),
        detector="sfd",
        detector_weights=Path("w"),
        detect_size=320,
        detect_every=5,
        selection=Selection(0.7, 30.0, 3, "largest", (1.0, 2.0, 3.0, 4.0)),
        backend="decord",
        deinterlace=False,
        crop="box",
        stride=5,
        start=1.5,
        end=2.5,
        landmarks="none",
        device="cuda",
        precision="float16",
        runtime="torch",
        faces_per_batch=7,
        threads=3,
        mirror=False,
        max_gap=7.0,
        smooth="emonet",
    )
    assert [run["settings"] for run in runs] == [strided, replace(strided, stride=1, fps=2.5)]
    defaults = vars(Settings()) | vars(Selection())
    for setting, value in (vars(strided) | vars(strided.selection) | {"fps": 2.5}).items():
        assert value != defaults[setting], f"{setting} has no option, or is not tried here"


def test_smoothing_takes_a_name_or_seconds(
    here: Path, media: Path, runs: list[dict[str, Any]]
) -> None:
    for value in ("emonet", "0.5", "2"):
        assert command("analyze", media, "--smooth", value).exit_code == 0
    assert [run["settings"].smooth for run in runs] == ["emonet", 0.5, 2.0]
    for wrong in ("emonett", "0,5", "0", "-1", "nan"):
        refused = command("analyze", media, "--smooth", wrong)
        assert refused.exit_code == 2
        assert "--smooth is " in refused.output and "more than 0" in refused.output
    assert len(runs) == 3


def test_without_options_every_setting_has_its_default(
    here: Path, media: Path, runs: list[dict[str, Any]]
) -> None:
    assert command("analyze", media).exit_code == 0
    assert runs == [
        {
            "out": Path("results.parquet"),
            "settings": Settings(),
            "overwrite": False,
            "engine": "auto",
            "cluster": ClusterOptions(),
        }
    ]


@pytest.mark.parametrize(
    ("options", "engine", "cluster"),
    [
        ("--engine local", "local", ClusterOptions()),
        ("--local", "local", ClusterOptions()),
        ("--local --engine local", "local", ClusterOptions()),
        ("--engine ray", "ray", ClusterOptions()),
        ("--address auto --gpus 2", "auto", ClusterOptions(address="auto", gpus=2)),
        (
            "--engine ray --cpus 4 --face-actors 3 --network-actors 1",
            "ray",
            ClusterOptions(cpus=4, face_actors=3, network_actors=1),
        ),
    ],
)
def test_the_engine_and_its_cluster_can_be_chosen(
    here: Path,
    media: Path,
    runs: list[dict[str, Any]],
    options: str,
    engine: str,
    cluster: ClusterOptions,
) -> None:
    assert command("analyze", media, *options.split()).exit_code == 0
    assert [(run["engine"], run["cluster"]) for run in runs] == [(engine, cluster)]


def test_an_unknown_engine_is_2(here: Path, media: Path) -> None:
    result = command("analyze", media, "--engine", "spark")
    assert result.exit_code == 2 and "--engine" in result.stderr and "ray" in result.stderr


def test_a_dry_run_starts_no_ray(here: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("ray.init", started)
    for options in ([], ["--engine", "ray"], ["--cpus", "2"]):
        result = command("analyze", media / "two.png", "--dry-run", *options)
        assert result.exit_code == 0, result.output
        assert "about 1 frame" in result.stderr


@pytest.fixture(scope="module")
def plain(media: Path) -> Results:
    """Results of the image of two faces with default settings."""
    return analyze_videos(media / "two.png")


def by_place(results: Results) -> NDArray[np.float32]:
    return results.rows.sort_values("x1")[BOX].to_numpy(np.float32)


def test_frames_and_faces_can_be_chosen(here: Path, media: Path) -> None:
    choice = ["--start", "1", "--end", "1.6", "--fps", "5", "--roi", "512,0,768,512"]
    rows = table(media / "face.mp4", *choice).rows
    assert rows.frame.tolist() == [25, 30, 35]
    assert rows.face.isna().all()  # the clip's face is not there


def test_the_size_for_detection_can_be_chosen(here: Path, media: Path, plain: Results) -> None:
    off = np.abs(by_place(table(media / "two.png", "--detect-size", "256")) - by_place(plain))
    assert 0.1 < off.max() < 12


def test_the_detector_can_be_another(here: Path, media: Path, shared: Path, plain: Results) -> None:
    weights = ["--detector-weights", shared / "weights"]
    seen = table(media / "two.png", "--detector", "yunet", *weights)
    assert seen.settings["settings"]["detector"] == "yunet"
    off = np.abs(by_place(seen) - by_place(plain))
    assert 0.1 < off.max() < 30


def test_the_crop_can_be_the_stretched_box(here: Path, media: Path, plain: Results) -> None:
    stretched = table(media / "two.png", "--crop", "box")
    assert stretched.rows[BOX].equals(plain.rows[BOX])
    assert not stretched.rows.valence.equals(plain.rows.valence)


def test_predictions_can_be_of_single_views(here: Path, media: Path, plain: Results) -> None:
    assert plain.settings["settings"]["mirror"] is True
    single = table(media / "two.png", "--no-mirror")
    assert single.settings["settings"]["mirror"] is False
    assert single.rows[BOX].equals(plain.rows[BOX])
    assert not single.rows.valence.equals(plain.rows.valence)


def test_the_network_and_its_names_can_be_others(
    here: Path, media: Path, plain: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = table(media / "two.png", "--classes", "a,b,c,d,e,f,g,h")
    assert renamed.rows.p_b.tolist() == plain.rows.p_happy.tolist()
    assert set(renamed.rows.emotion) <= set("abcdefgh")
    save(*random_weights(0, EMOTIONS_8, 16, 64), Path("random.safetensors"))
    monkeypatch.setenv("EMOPIPE_MODEL", "random.safetensors")
    random = table(media / "two.png")
    assert random.settings["checkpoint"]["name"] == "random"
    assert not random.rows.valence.equals(plain.rows.valence)


def test_options_choose_how_the_network_runs(here: Path, media: Path) -> None:
    common = [media / "two.png", "--device", "cpu"]
    exact = table(*common, "--precision", "float32", "--faces-per-batch", "1", "--threads", "1")
    assert torch.get_num_threads() == 1
    assert (exact.settings["device"], exact.settings["faces_per_batch"]) == ("cpu", 1)
    half = table(*common, "--precision", "bfloat16", "--threads", "2")
    assert torch.get_num_threads() == 2
    assert half.settings["settings"]["precision"] == "bfloat16"
    assert 0 < np.abs(half.rows.valence - exact.rows.valence).max() < 0.05


def test_the_type_of_the_landmarks_can_be_chosen(here: Path, media: Path) -> None:
    results = table(media / "two.png", "--landmarks", "float16")
    field = pq.read_schema("results.parquet").field("landmarks")
    assert field.type.value_type == pa.float16()
    assert results.landmarks is not None and results.landmarks.shape == (2, 68, 2)
    assert table(media / "two.png", "--landmarks", "none").landmarks is None
    assert "landmarks" not in pq.read_schema("results.parquet").names


def test_ctrl_c_is_130_leaves_no_process_and_the_same_command_resumes(
    here: Path, media: Path
) -> None:
    folder = here / "videos"
    folder.mkdir()
    for index in range(12):
        shutil.copy(media / "face.mp4", folder / f"{index:02}.mp4")
    arguments = ["analyze", "videos", "--local", "--stride", "10"]
    program = [sys.executable, "-m", "emopipe.jobs.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    committed = here / "results.parquet.partial"
    while len(list(committed.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "the same command resumes here" in err
    assert "Traceback" not in out + err
    assert not psutil.wait_procs(children, timeout=2)[1]
    assert not (here / "results.parquet").exists()

    again = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0
    assert "of 12 inputs were done by an earlier run" in again.stderr
    assert "12 ok, 0 partial, 0 failed: 60 frames, 60 faces" in again.stdout
    assert "of the frames by an earlier run, the others in" in again.stdout
    assert len(read_results("results.parquet").rows) == 12 * 5


def sections(help_text: str) -> dict[str, str]:
    """The options' text under each heading of a help, on one line."""
    parts = re.split(r"^(\w[\w ]*):$", help_text, flags=re.MULTILINE)
    return {
        heading: " ".join(text.split())
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_lists_every_field_under_its_heading(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    listed = sections(command("analyze", "--help").output)
    assert list(listed) == [
        *("Input", "Faces", "Model", "Speed", "Cluster", "Output"),
        "Other options",
    ]
    for settings in (Settings, Selection, ClusterOptions):
        for name, rule in rules_of(settings).items():
            text = rule.help.replace("`stride`", "--stride")
            assert f"--{name.replace('_', '-')} " in listed[rule.group.capitalize()]
            assert text in listed[rule.group.capitalize()]
    assert "[160 or more; default: 640]" in listed["Faces"]
    assert "[from 0 to 1; default: the detector's own]" in listed["Faces"]
    assert "--detector [centerface|yunet|blazeface|sfd]" in listed["Faces"]
    assert "[env var: EMOPIPE_MODEL; default: emonet-lite]" in listed["Model"]


def test_help_names_the_commands_and_the_exit_statuses() -> None:
    text = " ".join(command("--help").output.split())
    assert "130 stopped by Ctrl-C" in text
    for name in ("analyze", "evaluate", "finetune", "pretrain", "models", "doctor"):
        assert f" {name} " in text


@pytest.mark.parametrize(
    "arguments", ["", "analyze", "evaluate", "finetune", "pretrain", "models", "models fetch"]
)
def test_help_loads_no_heavy_library(arguments: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom emopipe.jobs.cli import main\n"
        f"main([*{arguments.split()}, '--help'], standalone_mode=False)\n"
        "print({'torch', 'ray', 'pandas', 'matplotlib'} & sys.modules.keys(), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert "Usage:" in ran.stdout
    assert ran.stderr == "set()\n"


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emopipe.jobs.cli", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ran.stdout.startswith("emopipe, version")

"""Measuring an analysis: on which frames, what is counted, and what is left behind."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from made_clips import ffmpeg
from made_faces import FRAMES, face_clip

from emopipe import analyze as analyze_videos
from emopipe.emonet import runtime
from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.registry import locate
from emopipe.pipeline import bench, bench_child
from emopipe.pipeline.bench import Bench, measure, summed_memory
from emopipe.pipeline.bench_stages import STAGES, BenchError, Speed, Stages
from emopipe.pipeline.faces.centerface import flop_per_image
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.settings import Settings, resolved
from emopipe.pipeline.stages import load_predictor

FAST = Settings(detect_size=160, threads=2, precision="float32")
MEASURED = FRAMES + 10
"""More than the clip has: it is repeated."""
SECONDS = 0.05
STARTING_S = 3.0
"""The process of the whole analysis waits so long before it runs anything of ours."""

MIB = 2**20


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Measuring sets PyTorch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of what is measured."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def measured(clip: Path, left_behind: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    slow = tmp_path_factory.mktemp("slow")
    (slow / "sitecustomize.py").write_text(
        f"import sys, time\n"
        f"if {bench_child.__name__!r} in sys.orig_argv:\n"
        f"    time.sleep({STARTING_S})\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(slow), prepend=os.pathsep)
        patch.setattr(tempfile, "tempdir", str(left_behind))
        return measure(clip, FAST, MEASURED, SECONDS)


def test_every_stage_is_measured_on_frames_and_their_faces(measured: Bench) -> None:
    assert list(measured.stages) == list(STAGES)
    for name, speed in measured.stages.items():
        assert speed is not None
        assert speed.seconds >= SECONDS, name
        assert speed.faces == speed.frames > 0, name
        assert speed.frames_per_second == pytest.approx(1 / speed.seconds_per_frame)
    assert measured.seconds_per_frame == pytest.approx(
        sum(speed.seconds / speed.frames for speed in measured.stages.values() if speed)
    )


@pytest.mark.parametrize(("every", "detections"), [(1, 24), (5, 5), (12, 2), (48, 1)])
def test_in_sequence_each_span_begins_with_a_detection(
    measured: Bench, every: int, detections: int
) -> None:
    stages = {name: Speed(100, 100, 1.0) for name in STAGES}
    stages["detect"] = Speed(10, 10, 1.0)
    made = replace(measured, stages=stages, settings=replace(FAST, detect_every=every))
    # A span of 24 frames: four stages at 10 ms a frame, and detections at 100 ms.
    assert made.seconds_per_frame * 24 == pytest.approx(4 * 24 * 0.01 + detections * 0.1)


def test_the_whole_is_all_frames_and_its_start_is_apart(measured: Bench) -> None:
    whole = measured.whole
    assert (measured.video.name, measured.copies) == ("face.mp4", 2)
    assert (whole.frames, whole.faces) == (MEASURED, MEASURED)
    assert (whole.steady.frames, whole.steady.faces) == (SPAN_FRAMES,) * 2
    assert whole.startup_seconds > STARTING_S
    assert whole.startup_seconds + whole.steady.seconds < whole.total_seconds


def test_its_memory_is_that_of_a_process_with_pytorch_and_more(measured: Bench) -> None:
    assert measured.whole.peak_memory_bytes > 150 * MIB


def test_it_is_held_against_a_plain_loop_and_a_matrix_product(measured: Bench) -> None:
    assert measured.plain_loop.faces == measured.plain_loop.frames > 0
    rate = measured.whole.steady.frames_per_second
    assert measured.times_plain_loop * measured.plain_loop.frames_per_second == pytest.approx(rate)
    assert measured.times_stages_in_sequence == pytest.approx(rate * measured.seconds_per_frame)
    # CenterFace takes 2.962 GFLOP for 640×384 pixels (as counted in its ONNX file), and the clip is
    # shrunk to 160×160.
    pixels = 160 * 160 / (640 * 384)
    assert measured.detector_flop_per_frame == pytest.approx(2.962e9 * pixels, rel=1e-3)
    detect, product = measured.stages["detect"], measured.roofline.matrix_flop_per_second
    assert detect
    reached = detect.frames * measured.detector_flop_per_frame / detect.seconds
    assert measured.detector_share == pytest.approx(reached / product)


@pytest.mark.parametrize(
    ("settings", "comparable"),
    [
        (Settings(runtime="torch", device="cpu", precision="float32"), True),
        (Settings(runtime="torch", device="cpu", precision="bfloat16"), False),
        (Settings(runtime="torch", device="cpu", precision="float16"), False),
        (Settings(runtime="torch", device="cuda", precision="bfloat16"), True),
        (Settings(runtime="torch", device="cuda", precision="float32", detector="sfd"), False),
    ],
)
def test_a_detector_of_another_precision_or_device_has_no_share_of_the_roofline(
    measured: Bench, settings: Settings, comparable: bool
) -> None:
    share = replace(measured, settings=settings).detector_share
    assert share == (measured.detector_share if comparable else None)


def test_openvino_computes_centerface_alone_in_the_networks_precision(
    measured: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(runtime, "resolve_runtime", str)
    settings = Settings(runtime="openvino", device="cpu", precision="bfloat16")
    assert replace(measured, settings=settings).detector_share == measured.detector_share
    settings = replace(settings, detector="yunet")
    assert replace(measured, settings=settings).detector_share is None


@pytest.mark.parametrize(("height", "width"), [(384, 640), (360, 640), (353, 609)])
def test_centerface_is_counted_with_what_its_input_is_padded_with(height: int, width: int) -> None:
    assert flop_per_image(locate("centerface"), height, width) == pytest.approx(2.962e9, rel=1e-3)


def test_a_network_that_pytorch_does_not_run_is_measured_but_not_counted(
    clip: Path, tmp_path: Path
) -> None:
    network = onnx.load(str(locate("centerface")))
    next(node for node in network.graph.node if node.op_type == "Relu").op_type = "Elu"
    other = tmp_path / "other.onnx"
    onnx.save(network, str(other))
    model, checkpoint = open_model(FAST.model)
    settings = resolved(replace(FAST, device="cpu", detector_weights=other), checkpoint)
    predictor = load_predictor(settings, model, checkpoint)
    with Decoder() as decoder:
        video = decoder.probe(clip, clip.name)
        wanted = np.arange(FRAMES)
        stages = Stages(settings, predictor, decoder, video, wanted, tmp_path / "out.parquet")
        assert stages.measure("detect", SECONDS)
        assert stages.detector_flop_per_frame() is None


def test_nothing_is_left_behind(measured: Bench, left_behind: Path) -> None:
    assert list(left_behind.iterdir()) == []
    below = psutil.Process().children(recursive=True)
    assert [one.cmdline() for one in below if "emopipe" in " ".join(one.cmdline())] == []


def test_memory_is_summed_over_processes() -> None:
    alone = summed_memory(psutil.Process())
    hungry = f"held = bytearray(b'1' * {50 * MIB}); print(len(held), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline()
        # Less by what other processes, started meanwhile, take over of the shared libraries.
        assert summed_memory(psutil.Process()) > alone + 40 * MIB
        child.communicate(b"\n")


def test_a_short_video_that_cannot_be_repeated_is_refused(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    short = tmp_path / "short.264"
    ffmpeg("-i", made("raw.264"), "-c", "copy", "-frames:v", "10", short)
    with pytest.raises(BenchError, match=r"short\.264 has 10 frames .* more than 48"):
        measure(short, FAST, MEASURED, SECONDS)


def test_a_child_that_fails_says_why(clip: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(tmp_path / "gone.safetensors"))
    task = (clip, tmp_path / "out.parquet", settings)
    with pytest.raises(BenchError, match=r"the whole analysis fails: `model` .*gone.safetensors"):
        bench._run_child(task, tmp_path / "errors")


def test_each_frame_of_a_real_clip_is_there_with_its_face(clips: Path) -> None:
    """The whole clip that `make bench` measures on."""
    clip = clips / "WolfgangLanger_Pexels.mp4"
    rows = analyze_videos(clip, mirror=False, landmarks="none", engine="local").rows
    assert rows.frame.tolist() == list(range(472)), "a frame is missing or comes twice"
    assert (rows.face == 0).all()

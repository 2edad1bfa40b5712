"""CenterFace in PyTorch is the ONNX file's network, and finds what OpenCV finds."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from made_faces import two_faces_picture
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from real_frames import clip_frames, load_image

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.registry import locate
from emopipe.emonet.runtime import Compute
from emopipe.pipeline.faces import centerface
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector, DetectorError
from emopipe.pipeline.faces.detectors import DETECTORS, _ResizingDetector, device_of, load_detector
from emopipe.pipeline.faces.networks import padded
from emopipe.pipeline.faces.onnx_module import onnx_module
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.settings import DEFAULT_MODEL, Settings
from emopipe.pipeline.stages import FaceStage

WEIGHTS = locate("centerface")
MIN_SCORE = 0.5
CPU = Compute("torch", "float32")


def on_torch(precision: str = "float32", min_score: float = MIN_SCORE) -> Detector:
    """CenterFace as it runs on a GPU, on the CPU."""
    compute = Compute("torch", precision)
    cells_of = centerface._on_torch(WEIGHTS, compute, min(min_score, centerface._VOTE))
    network = centerface._network(cells_of, min_score)
    return _ResizingDetector("centerface", BoxToLandmarks((0, 0), 1), network, 160, 640)


def made_frames() -> list[NDArray[np.uint8]]:
    picture = np.asarray(two_faces_picture())
    return [picture, picture[:, ::-1], np.zeros_like(picture), picture[:333, :517]]


@pytest.fixture(scope="module")
def shown(clips: Path, shared: Path) -> list[NDArray[np.uint8]]:
    """Frames of one face, of none and of five."""
    frames = [
        frame
        for clip in ("single_face.mp4", "face_noface.mov", "no_face.mp4")
        for frame in clip_frames(clips / clip, 60)
    ]
    return [*frames, load_image(shared / "data" / "images" / "multi_face.jpg")]


def assert_maps_agree(frames: list[NDArray[np.uint8]]) -> None:
    """All four maps, within 1e-4: of a score in [0, 1], a log of a size, a cell, and a size."""
    ways: list[Callable[[Path, Compute], centerface._Maps]] = [centerface._on_opencv]
    try:
        import openvino  # noqa: F401

        ways.append(centerface._on_openvino)
    except ImportError:  # it has no wheel for this machine
        pass
    module = onnx_module(WEIGHTS, centerface._OUTPUTS)
    for way in ways:
        maps_of = way(WEIGHTS, CPU)
        for frame in frames:
            image = padded(frame, *centerface._padded_sides(*frame.shape[:2]))[None]
            ours = module(torch.from_numpy(image).permute(0, 3, 1, 2).float())
            for one, other in zip(ours, maps_of(image), strict=True):
                np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sides", [(32, 32), (96, 160), (200, 130), (384, 640)])
def test_its_maps_are_those_of_the_onnx_network_for_made_images(sides: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    face = cv2.resize(np.asarray(two_faces_picture()), sides[::-1])
    assert_maps_agree([noise, face])


def test_its_maps_are_those_of_the_onnx_network_for_real_frames(
    shown: list[NDArray[np.uint8]],
) -> None:
    assert_maps_agree(shown)


def assert_same_faces(
    frames: list[NDArray[np.uint8]], precision: str, pixels: float, score: float
) -> None:
    expected = load_detector("centerface", compute=CPU).detect(frames)
    found = on_torch(precision).detect(frames)
    assert [len(faces) for faces in found] == [len(faces) for faces in expected]
    assert any(map(len, expected))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=score)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=0, atol=pixels)
        np.testing.assert_allclose(ours.points, theirs.points, rtol=0, atol=pixels)


@pytest.mark.parametrize(
    ("precision", "pixels", "score"), [("float32", 1e-3, 1e-5), ("bfloat16", 2.0, 0.03)]
)
def test_it_finds_the_faces_that_opencv_finds(precision: str, pixels: float, score: float) -> None:
    assert_same_faces(made_frames(), precision, pixels, score)


def test_it_finds_the_faces_of_real_frames(shown: list[NDArray[np.uint8]]) -> None:
    assert_same_faces(shown, "float32", 0.01, 1e-4)


def test_half_precision_does_not_overflow() -> None:
    white, (face, *_) = np.full((160, 160, 3), 255, np.uint8), made_frames()
    (none, found) = on_torch("float16").detect([white, cv2.resize(face, (240, 160))])
    assert (len(none), len(found)) == (0, 2)


def test_faces_do_not_depend_on_the_other_frames_of_a_batch() -> None:
    detector, frames = on_torch(), made_frames()
    for frame, faces in zip(frames, detector.detect(frames), strict=True):
        (alone,) = detector.detect([frame])
        np.testing.assert_array_equal(faces.boxes, alone.boxes)
        np.testing.assert_array_equal(faces.scores, alone.scores)
        np.testing.assert_array_equal(faces.points, alone.points)


def test_a_crowd_takes_bounded_memory() -> None:
    """Of 3,000 faces far from each other, each is its own cell; all pairs would take 400 MB."""
    corners = np.stack(np.divmod(np.arange(3000), 60), axis=1) * 20.0
    boxes = np.concatenate([corners, corners + 10], axis=1)
    scores = np.linspace(1, 0.6, len(boxes), dtype=np.float32)
    points = np.repeat(corners[:, None], 5, axis=1)
    tracemalloc.start()
    found = centerface._faces(boxes, scores, points, MIN_SCORE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_allclose(found.boxes, boxes)
    np.testing.assert_allclose(found.points, points)


def test_only_centerface_runs_on_a_gpu() -> None:
    assert [name for name in DETECTORS if device_of(name, "cuda") == "cuda"] == ["centerface"]


def test_the_others_run_on_the_cpu_of_a_machine_with_a_gpu(shared: Path) -> None:
    compute = Compute("torch", "float16", device="cuda")
    frames = made_frames()[:1]
    (faces,) = load_detector("yunet", weights=shared / "weights", compute=compute).detect(frames)
    assert len(faces) == 2


BROKEN_GPU = Compute("torch", "float32", device="meta")
"""A device that every machine has and on which nothing can be computed."""


def test_a_gpu_that_fails_is_not_taken_for_a_wrong_file() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        load_detector("centerface", compute=BROKEN_GPU)


def test_an_analysis_detects_on_its_device() -> None:
    settings = Settings(device="meta", precision="float32")
    with Decoder() as decoder, pytest.raises(RuntimeError, match="meta"):
        FaceStage(settings, open_model(DEFAULT_MODEL)[1], decoder)


def damaged(change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load(str(WEIGHTS))
    change(model)
    return model.SerializeToString()


def with_other_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Elu"


def with_other_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("auto_pad", "VALID"))


def with_uneven_padding(model: onnx.ModelProto) -> None:
    (pads,) = (one for one in model.graph.node[0].attribute if one.name == "pads")
    pads.ints[0] = 0


def with_fewer_channels(model: onnx.ModelProto) -> None:
    last = model.graph.initializer[-1]
    array = numpy_helper.to_array(last)
    last.CopyFrom(numpy_helper.from_array(array[:1], last.name))


def without_an_output(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]


def with_cut_weights(model: onnx.ModelProto) -> None:
    weights = next(one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT)
    weights.raw_data = weights.raw_data[:-4]


CHANGES = [
    with_other_operator,
    with_other_attribute,
    with_uneven_padding,
    with_fewer_channels,
    without_an_output,
    with_cut_weights,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_of_another_kind_is_refused_by_name(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    assert_refused(damaged(change), tmp_path)


@pytest.mark.parametrize("length", [0, 10, 10_000, -1000])
def test_a_file_that_was_cut_off_is_refused_by_name(length: int, tmp_path: Path) -> None:
    assert_refused(WEIGHTS.read_bytes()[:length], tmp_path)


def assert_refused(content: bytes, folder: Path) -> None:
    path = folder / "wrong.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.onnx is not an ONNX network like CenterFace: "):
        onnx_module(path, centerface._OUTPUTS)
    with pytest.raises(DetectorError, match=r"wrong\.onnx cannot be used as the weights of center"):
        load_detector("centerface", weights=path, compute=BROKEN_GPU)


def test_an_operator_that_is_not_supported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(damaged(with_other_operator))
    with pytest.raises(ValueError, match="the operator Elu with no attributes is not supported"):
        onnx_module(path, centerface._OUTPUTS)


def test_a_value_before_its_normalization_cannot_be_used_elsewhere(tmp_path: Path) -> None:
    def read_before(model: onnx.ModelProto) -> None:
        norm = next(one for one in model.graph.node if one.op_type == "BatchNormalization")
        model.graph.node.append(helper.make_node("Relu", [norm.input[0]], ["before"]))

    path = tmp_path / "wrong.onnx"
    path.write_bytes(damaged(read_before))
    with pytest.raises(ValueError, match="is not an ONNX network like CenterFace"):
        onnx_module(path, centerface._OUTPUTS)

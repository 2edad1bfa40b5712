"""Detectors find the faces of real clips and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_faces import two_faces_picture
from numpy.typing import NDArray
from real_frames import clip_frames, load_image

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.registry import MissingWeightsError
from emopipe.emonet.runtime import Compute, Runtime
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector, DetectorError, Faces
from emopipe.pipeline.faces.detectors import (
    DETECTORS,
    _ResizingDetector,
    detect,
    load_detector,
)
from emopipe.pipeline.faces.networks import Detections

CUT = 0.15  # of a face, beyond the frame's edge
PERSON_GONE = 72
"""First frame of face_noface.mov without the person."""


@pytest.fixture(scope="module")
def centerface() -> Detector:
    return load_detector("centerface")


@pytest.fixture(scope="module", params=["centerface", "yunet"])
def detector(request: pytest.FixtureRequest, shared: Path) -> Detector:
    if request.param == "centerface":
        return load_detector("centerface")
    return load_detector(request.param, weights=shared / "weights")


@pytest.fixture(scope="module")
def portrait(shared: Path) -> NDArray[np.uint8]:
    """A 640×360 frame with one face."""
    return clip_frames(shared / "data" / "videos" / "single_face.mp4")[0]


@pytest.fixture
def opencv_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


def only(faces: Faces) -> NDArray[np.float32]:
    """The box of the one face."""
    assert len(faces) == 1
    return faces.boxes[0]


@pytest.mark.parametrize(
    ("clip", "step", "faces"),
    [("WolfgangLanger_Pexels.mp4", 8, 1), ("single_face.mp4", 6, 1), ("no_face.mp4", 5, 0)],
)
def test_each_frame_has_the_faces_it_shows(
    detector: Detector, clips: Path, clip: str, step: int, faces: int
) -> None:
    found = detector.detect(clip_frames(clips / clip, step))
    assert [len(one) for one in found] == [faces] * len(found)


def test_a_face_is_found_while_it_is_there_and_not_after(detector: Detector, clips: Path) -> None:
    step = 4
    found = detector.detect(clip_frames(clips / "face_noface.mov", step))
    there = PERSON_GONE // step
    assert [len(one) for one in found] == [1] * there + [0] * (len(found) - there)


def test_every_face_of_a_group_is_found_best_first(detector: Detector, shared: Path) -> None:
    (faces,) = detector.detect([load_image(shared / "data" / "images" / "multi_face.jpg")])
    assert len(faces) == 5
    assert np.all(np.diff(faces.scores) <= 0)


def test_points_are_where_eyes_nose_and_mouth_are(detector: Detector, shared: Path) -> None:
    (faces,) = detector.detect([load_image(shared / "data" / "images" / "multi_face.jpg")])
    assert faces.points is not None
    for (x1, y1, x2, y2), points in zip(faces.boxes, faces.points, strict=True):
        assert np.all((points > [x1, y1]) & (points < [x2, y2]))
        right_eye, left_eye, nose, right_mouth, left_mouth = points
        # A person's right is on the left of the image.
        assert right_eye[0] < nose[0] < left_eye[0]
        assert right_mouth[0] < left_mouth[0]
        assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])


def test_a_mirrored_frame_has_mirrored_boxes(
    detector: Detector, portrait: NDArray[np.uint8]
) -> None:
    plain, mirrored = detector.detect([portrait, np.ascontiguousarray(portrait[:, ::-1])])
    x1, y1, x2, y2 = only(mirrored)
    width = portrait.shape[1]
    np.testing.assert_allclose([width - x2, y1, width - x1, y2], only(plain), atol=6)


@pytest.mark.parametrize("factor", [0.5, 3])
def test_boxes_are_in_pixels_of_the_frame_whatever_its_size(
    detector: Detector, portrait: NDArray[np.uint8], factor: float
) -> None:
    resized = cv2.resize(portrait, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    plain, other = detector.detect([portrait, resized])
    side = plain.sides[0]
    np.testing.assert_allclose(only(other) / factor, only(plain), atol=0.1 * side)


def test_a_face_cut_off_by_the_edge_keeps_its_other_side(
    detector: Detector, portrait: NDArray[np.uint8]
) -> None:
    x1, _, x2, _ = only(detector.detect([portrait])[0])
    start = int(x1 + CUT * (x2 - x1))
    (cut_off,) = detector.detect([np.ascontiguousarray(portrait[:, start:])])
    assert abs(only(cut_off)[2] + start - x2) < 0.05 * (x2 - x1)


def test_the_box_of_a_still_face_hardly_jitters(
    centerface: Detector, portrait: NDArray[np.uint8]
) -> None:
    shifts = np.linspace(0, 8, 9)
    frames = [
        cv2.warpAffine(
            portrait,
            np.array([[1, 0, shift], [0, 1, 0]]),
            portrait.shape[1::-1],
            borderMode=cv2.BORDER_REPLICATE,
        )
        for shift in shifts
    ]
    boxes = np.array([only(faces) for faces in centerface.detect(frames)])
    centres = (boxes[:, 0] + boxes[:, 2]) / 2 - shifts
    sides = (boxes[:, 2:] - boxes[:, :2]).mean(axis=1)
    assert centres.std() < 0.005 * sides.mean()
    assert sides.std() < 0.01 * sides.mean()


def test_an_image_as_small_as_fer2013s_is_enlarged(
    detector: Detector, portrait: NDArray[np.uint8]
) -> None:
    x1, y1, x2, y2 = only(detector.detect([portrait])[0]).astype(int)
    around = portrait[max(0, y1 - 30) : y2 + 30, x1 - 60 : x2 + 60]
    (faces,) = detector.detect([cv2.resize(around, (48, 48), interpolation=cv2.INTER_AREA)])
    assert len(faces) == 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (2000, 3), (7, 5), (33, 31)])
@pytest.mark.parametrize("level", [0, 128])
def test_a_flat_image_of_any_shape_has_no_face(
    detector: Detector, shape: tuple[int, int], level: int
) -> None:
    (faces,) = detector.detect([np.full((*shape, 3), level, np.uint8)])
    assert len(faces) == 0
    assert faces.boxes.shape == (0, 4)
    assert faces.points is not None
    assert faces.points.shape == (0, 5, 2)


def test_no_frames_give_no_faces(centerface: Detector) -> None:
    assert centerface.detect([]) == []


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_faces_do_not_depend_on_the_other_frames_of_a_batch(runtime: Runtime) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="has no wheel for this machine")
    detector = load_detector("centerface", compute=Compute(runtime, "float32"))
    two = np.asarray(two_faces_picture())
    frames = [two, two[:, ::-1], np.zeros_like(two), two[:400], two[:, 100:740], two]
    together = detector.detect(frames)
    assert [len(faces) for faces in together] == [2, 2, 0, 2, 2, 2]
    for frame, faces in zip(frames, together, strict=True):
        (alone,) = detector.detect([frame])
        np.testing.assert_array_equal(faces.boxes, alone.boxes)
        np.testing.assert_array_equal(faces.scores, alone.scores)
        np.testing.assert_array_equal(faces.points, alone.points)


def test_a_network_gets_frames_of_one_shape_and_bounded_size() -> None:
    batches = []

    def network(images: list[NDArray[np.uint8]]) -> list[Detections]:
        batches.append([image.shape[:2] for image in images])
        boxes = [np.array([[0, 0, *image.shape[1::-1]]]) for image in images]
        return [Detections(box, np.ones(1), None) for box in boxes]

    detector = _ResizingDetector("whole", BoxToLandmarks((0, 0), 1), network, 160, 2048)
    sizes = [(360, 640)] * 3 + [(64, 32)] * 2 + [(128, 64)] + [(2304, 4096)] * 4
    faces = detector.detect([np.zeros((*size, 3), np.uint8) for size in sizes])
    assert batches == [[(360, 640)] * 3, [(160, 80)] * 3, *[[(1152, 2048)]] * 4]
    np.testing.assert_allclose([only(one) for one in faces], [[0, 0, w, h] for h, w in sizes])


def test_blazeface_sees_the_whole_frame_not_only_its_middle(
    shared: Path, portrait: NDArray[np.uint8]
) -> None:
    detector = load_detector("blazeface", weights=shared / "weights")
    at_the_side = np.ascontiguousarray(portrait[:, 190:])
    plain, aside = detector.detect([portrait, at_the_side])
    np.testing.assert_allclose(only(aside), only(plain) - np.array([190, 0, 190, 0]), atol=12)


def test_sfd_runs_from_a_file_of_its_weights(tmp_path: Path) -> None:
    from face_alignment.detection.sfd.net_s3fd import s3fd

    # A network of zeros is undecided everywhere: its boxes are the anchors as they are.
    with torch.device("meta"):
        shapes = s3fd().state_dict()
    path = tmp_path / "s3fd.pth"
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}, path)
    (faces,) = load_detector("sfd", weights=path, min_score=0.4).detect(
        [np.zeros((40, 160, 3), np.uint8)]
    )
    assert len(faces) > 10
    np.testing.assert_allclose(faces.scores, 0.5)
    assert faces.points is None


def test_invalid_boxes_are_dropped_and_the_rest_sorted() -> None:
    def network(_images: list[NDArray[np.uint8]]) -> list[Detections]:
        boxes = [[1, 1, 5, 5], [np.nan, 0, 4, 4], [0, 0, np.inf, 4], [3, 3, 3, 9], [2, 2, 9, 9]]
        scores = np.array([0.5, 0.9, 0.8, 0.7, 1.0001])
        return [Detections(np.array(boxes), scores, np.zeros((5, 5, 2)))]

    detector = _ResizingDetector("faulty", BoxToLandmarks((0, 0), 1), network, 160, 640)
    (faces,) = detector.detect([np.zeros((160, 160, 3), np.uint8)])
    np.testing.assert_array_equal(faces.boxes, [[2, 2, 9, 9], [1, 1, 5, 5]])
    np.testing.assert_array_equal(faces.scores, [1, 0.5])


def test_a_detector_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DetectorError, match=r"centerface, yunet, blazeface, sfd, not 'retinaface'"):
        load_detector("retinaface")


@pytest.mark.parametrize("name", ["yunet", "blazeface", "sfd"])
def test_missing_weights_say_how_to_get_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=f"emopipe models fetch {name}"):
        load_detector(name)


@pytest.mark.parametrize("name", DETECTORS)
def test_weights_that_do_not_exist_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=f"none.bin does not exist: {name} needs it"):
        load_detector(name, weights=tmp_path / "none.bin")


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("content", [b"", b"this is a text", b"\x80\x04garbage"])
def test_a_file_that_is_not_its_weights_is_named(
    name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.bin"
    path.write_bytes(content)
    path.with_name("anchors.npy").write_bytes(content)
    with pytest.raises(
        DetectorError, match=rf"wrong\.bin.* cannot be used as the weights of {name}"
    ):
        load_detector(name, weights=path)
    assert capfd.readouterr().err == ""


def test_the_weights_of_another_detector_are_refused(shared: Path) -> None:
    with pytest.raises(DetectorError, match="cannot be used as the weights of centerface"):
        load_detector("centerface", weights=next((shared / "weights").glob("*yunet*.onnx")))


def test_weights_may_be_given_as_a_file_or_its_folder(
    shared: Path, portrait: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shared / "weights"
    for name, file in (
        ("yunet", "face_detection_yunet_2023mar.onnx"),
        ("blazeface", "blazeface.pth"),
    ):
        by_folder = load_detector(name, weights=folder).detect([portrait])[0]
        by_file = load_detector(name, weights=folder / file).detect([portrait])[0]
        np.testing.assert_array_equal(by_folder.boxes, by_file.boxes)
    assert capfd.readouterr().err == ""


def test_a_higher_least_score_leaves_the_other_faces_as_they_were(shared: Path) -> None:
    image = load_image(shared / "data" / "images" / "multi_face.jpg")
    (every,) = load_detector("centerface").detect([image])
    between = float(every.scores[2:4].mean())
    (best,) = load_detector("centerface", min_score=between).detect([image])
    np.testing.assert_array_equal(best.boxes, every.boxes[:3])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_score": 1.5}, "`min_score` is from 0 to 1, not 1.5"),
        ({"long_side": 20}, "`detect_size` is 160 or more, not 20"),
    ],
)
def test_detector_options_out_of_range_are_refused(
    options: dict[str, float], sentence: str
) -> None:
    with pytest.raises(DetectorError, match=sentence):
        load_detector("centerface", **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("opencv_threads")
def test_threads_are_those_asked_for() -> None:
    for threads in (1, 2):
        load_detector("centerface", compute=Compute("torch", "float32", threads))
        assert cv2.getNumThreads() == threads


@pytest.mark.parametrize(
    ("precision", "pixels", "score"), [("float32", 0.01, 1e-4), ("bfloat16", 2.0, 0.03)]
)
def test_openvino_finds_the_faces_that_opencv_finds(
    precision: str, pixels: float, score: float
) -> None:
    pytest.importorskip("openvino", reason="has no wheel for this machine")
    image = np.asarray(two_faces_picture())
    expected, found = (
        load_detector("centerface", compute=Compute(runtime, precision)).detect([image])[0]
        for runtime in ("torch", "openvino")
    )
    assert len(found) == len(expected) == 2
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=score)


def test_one_image_may_be_a_file_or_an_array(tmp_path: Path) -> None:
    image = two_faces_picture()
    image.save(tmp_path / "two.png")
    from_array, from_file = detect(np.asarray(image)), detect(tmp_path / "two.png")
    assert len(from_array) == 2
    np.testing.assert_array_equal(from_array.boxes, from_file.boxes)
    best = float(from_array.scores.mean())
    assert len(detect(str(tmp_path / "two.png"), min_score=best)) == 1


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), {}, r"`image` is an image file or a .*, not uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), {}, r"not float64 \(4, 4, 3\)"),
        (5, {}, "`image` is .*, not 5"),
        ("nowhere.png", {}, r"nowhere\.png"),
        (
            np.zeros((4, 4, 3), np.uint8),
            {"detector": "haar"},
            "`detector` is one of centerface",
        ),
        (np.zeros((4, 4, 3), np.uint8), {"min_scor": 1}, "`min_scor`: did you mean min_score"),
    ],
)
def test_what_cannot_be_detected_on_is_a_sentence(
    image: object, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(EmopipeError, match=sentence):
        detect(image, **options)  # type: ignore[arg-type]

"""`usable` keeps faces that show an expression, and drops damaged, tiny and turned ones."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_faces import face_picture, two_faces_picture
from numpy.typing import NDArray
from real_frames import clip_frames, load_image

from emopipe.emonet.data.landmarks68 import LandmarkSet, Sample, read_samples, split
from emopipe.emonet.predictor import Predictor, load_model
from emopipe.pipeline.faces.align import crop_boxes, cut, sharpness, to_frame
from emopipe.pipeline.faces.base import Detector, Faces, overlaps
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.pose import head_poses
from emopipe.pipeline.faces.quality import SeenFaces, criteria, thresholds, usable

Image = NDArray[np.uint8]
Box = NDArray[np.float64]
Damage = Callable[[Image, Box], Image]

SIDE = 384
FACE = 160  # pixels, a pasted face's box
FEW = 0.03  # of many people's faces: what one criterion or another may get wrong


@cache
def detector() -> Detector:
    return load_detector("centerface")


@cache
def predictor() -> Predictor:
    return load_model()


def seen(image: Image, found: Faces, model: Predictor | None = None) -> SeenFaces:
    """What a span has of faces."""
    model = model or predictor()
    size = model.checkpoint.input_size
    boxes = crop_boxes(found, detector().calibration, model.checkpoint.crop)
    crops = cut(image, boxes, size)
    predictions = model(crops)
    landmarks = to_frame(predictions.landmarks, boxes, size)
    return SeenFaces(
        boxes=found.boxes,
        scores=found.scores,
        crops=crops,
        crop_boxes=boxes,
        sharpness=sharpness(crops, boxes, found.boxes),
        landmarks=landmarks,
        landmark_score=predictions.landmark_score,
        poses=head_poses(landmarks),
        frame_size=(image.shape[1], image.shape[0]),
    )


def usable_on(image: Image, model: Predictor | None = None) -> list[bool]:
    """The flags of an image's faces, by descending score."""
    (found,) = detector().detect([image])
    return usable(seen(image, found, model), "centerface").tolist()


def blurred(image: Image, box: Box, sigma: float = 6 / 160) -> Image:
    """By a Gaussian of a standard deviation in units of the face's size."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma * (box[2:] - box[:2]).mean()), np.uint8)


def upside_down(image: Image, box: Box) -> Image:
    return np.ascontiguousarray(image[::-1, ::-1])


def hidden(side: str, what: str) -> Damage:
    """Hide 55 % of a face from one side with grey, black or something like fingers."""

    def damage(image: Image, box: Box) -> Image:
        x1, y1, x2, y2 = box
        margin = 0.3 * (x2 - x1)
        cover = {
            "lower": (x1 - margin, y2 - 0.55 * (y2 - y1), x2 + margin, y2 + margin),
            "upper": (x1 - margin, y1 - margin, x2 + margin, y1 + 0.55 * (y2 - y1)),
            "left": (x1 - margin, y1 - margin, x1 + 0.55 * (x2 - x1), y2 + margin),
            "right": (x2 - 0.55 * (x2 - x1), y1 - margin, x2 + margin, y2 + margin),
        }[side]
        limits = np.tile(image.shape[1::-1], 2)
        left, top, right, bottom = np.clip(np.round(cover), 0, limits).astype(int)
        damaged = image.copy()
        place = damaged[top:bottom, left:right]
        place[:] = {"grey": 128, "black": 0, "hand": 0}[what]
        if what == "hand":
            middle = ((box[:2] + box[2:]) / 2).astype(int)
            skin = image[middle[1], middle[0]].astype(float)
            across = np.arange(bottom - top)[:, None] * np.ones(right - left)
            if side in ("left", "right"):
                across = np.ones((bottom - top, 1)) * np.arange(right - left)
            fingers = 4 * across / across.max()
            light = 0.6 + 0.4 * np.sqrt(1 - (2 * (fingers % 1) - 1) ** 2)
            place[:] = np.clip(skin * light[..., None], 0, 255)
        return damaged

    return damage


HIDDEN = {
    f"{side} half behind {what}": hidden(side, what)
    for side in ("lower", "upper", "left", "right")
    for what in ("grey", "black", "hand")
}


def turn(sample: Sample) -> float:
    """How far a head is turned: where its nose lies between the ends of the jaw."""
    right, left, nose = sample.landmarks[[0, 16, 30], 0]
    return abs(float((nose - right) / (left - right)) - 0.5)


@cache
def people(shared: Path) -> list[Sample]:
    """The most frontal image of each person that no network here has learnt from."""
    path = shared / "data" / "landmarks68" / "landmarks68.parquet"
    names = pq.read_table(path, columns=["name"]).column("name").to_pylist()
    owners = np.array([name.rpartition("_")[0] for name in names])
    n = len(owners)
    images, points = np.zeros((n, 1, 1, 3), np.uint8), np.zeros((n, 68, 2), np.float32)
    _, rows = split(LandmarkSet(images, points, owners, path.name, ""), seed=0)
    others = set(owners[rows].tolist())
    samples = [sample for sample in read_samples(path) if sample.person in others]
    return [
        min((sample for sample in samples if sample.person == person), key=turn)
        for person in sorted(others)
    ]


def pasted(sample: Sample, face: float) -> tuple[Image, Box]:
    """A grey frame with a face of that many pixels in its middle, and the face's box."""
    low, high = sample.landmarks.min(axis=0), sample.landmarks.max(axis=0)
    scale = face / (high - low).mean() * detector().calibration.scale
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=method)
    frame = np.full((SIDE, SIDE, 3), 110, np.uint8)
    y, x = (SIDE - image.shape[0]) // 2, (SIDE - image.shape[1]) // 2
    frame[y : y + image.shape[0], x : x + image.shape[1]] = image
    centre = (low + high) / 2 * scale + [x, y] - [0, 0.155 * face]
    half = np.array([0.43, 0.57]) * face
    return frame, np.concatenate([centre - half, centre + half])


def share_usable(
    samples: Iterable[Sample], damage: Damage | None = None, face: float = FACE
) -> float:
    """Share of people whose face is usable; one that is not found is not."""
    flags = []
    for sample in samples:
        frame, box = pasted(sample, face)
        if damage:
            frame = damage(frame, box)
        if damage is upside_down:
            box = SIDE - box[[2, 3, 0, 1]]
        (found,) = detector().detect([frame])
        found = found[overlaps(found.boxes, box[None].astype(np.float32))[:, 0] > 0.1]
        flags.append(usable(seen(frame, found), "centerface").any())
    return float(np.mean(flags))


def made_face() -> tuple[Image, Box]:
    """A picture with one face, and the face's box."""
    picture = np.array(face_picture())
    (found,) = detector().detect([picture])
    return picture, found.boxes[0].astype(np.float64)


@pytest.mark.parametrize(
    ("clip", "step"),
    [
        ("WolfgangLanger_Pexels.mp4", 12),
        ("single_face.mp4", 6),
        ("face_noface.mov", 8),
        ("phone_selfie.mp4", 6),
    ],
)
def test_nearly_all_frames_of_frontal_faces_are_usable(clips: Path, clip: str, step: int) -> None:
    frames = clip_frames(clips / clip, step)
    if clip == "phone_selfie.mp4":  # held upright, coded lying on its side
        frames = [np.ascontiguousarray(np.rot90(frame)) for frame in frames]
    flags = [flag for frame in frames for flag in usable_on(frame)]
    assert len(flags) >= 9
    assert np.mean(flags) >= 0.95


def test_nearly_all_people_are_usable_at_any_size_above_the_least(shared: Path) -> None:
    for face in (FACE, 50, 28):
        assert share_usable(people(shared), face=face) >= 0.95


@pytest.mark.parametrize("face", [16, 19])
def test_faces_below_20_pixels_are_not_usable(shared: Path, face: int) -> None:
    assert share_usable(people(shared), face=face) <= FEW


@pytest.mark.parametrize("face", [FACE, 60])
def test_blurred_faces_are_not_usable(shared: Path, face: int) -> None:
    assert share_usable(people(shared), blurred, face) == 0


@pytest.mark.parametrize("face", [FACE, 60])
def test_upside_down_faces_are_not_usable(shared: Path, face: int) -> None:
    assert share_usable(people(shared), upside_down, face) <= FEW


@pytest.mark.parametrize("case", HIDDEN)
def test_faces_hidden_by_more_than_half_are_not_usable(shared: Path, case: str) -> None:
    assert share_usable(people(shared), HIDDEN[case]) <= FEW


def test_profiles_are_not_usable_and_nearly_frontal_faces_are(shared: Path, clips: Path) -> None:
    pictures = shared / "data" / "pose"
    for name in ("image00475", "image02420"):  # turned by 66° and 71°
        assert not any(usable_on(load_image(pictures / f"{name}.jpg")))
    for name in ("image00050", "image03614", "image01322"):  # by 1°, 18° and -5°
        assert all(usable_on(load_image(pictures / f"{name}.jpg")))
    before_they_turn = clip_frames(clips / "debate.mp4", 8)[:8]
    enlarged = [cv2.resize(frame, None, fx=3, fy=3) for frame in before_they_turn]
    assert sum(len(usable_on(np.asarray(frame, np.uint8))) for frame in enlarged) >= 8
    assert not any(flag for frame in enlarged for flag in usable_on(np.asarray(frame, np.uint8)))


def test_people_in_a_group_are_usable_one_by_one(shared: Path) -> None:
    image = load_image(shared / "data" / "images" / "multi_face.jpg")
    (found,) = detector().detect([image])
    faces = seen(image, found)
    together = usable(faces, "centerface")
    assert together.sum() >= 4  # one wears sunglasses
    alone = [usable(seen(image, found[i : i + 1]), "centerface").item() for i in range(len(found))]
    assert together.tolist() == alone


def test_another_model_of_the_same_kind_needs_no_other_thresholds(
    shared: Path, clips: Path
) -> None:
    other = load_model(shared / "weights" / "reference-lite.safetensors")
    image = load_image(shared / "data" / "images" / "single_face.jpg")
    assert usable_on(image, other) == [True]
    frame = clip_frames(clips / "single_face.mp4")[0]
    assert usable_on(frame, other) == [True]
    assert not any(usable_on(upside_down(frame, np.zeros(4)), other))


def test_a_made_face_is_usable_and_damaged_it_is_not() -> None:
    picture, box = made_face()
    assert usable_on(picture) == [True]
    for case, damage in (HIDDEN | {"blurred": blurred, "upside down": upside_down}).items():
        assert not any(usable_on(damage(picture, box))), case
    tiny = cv2.resize(
        picture,
        None,
        fx=18 / np.ptp(box[1::2]),
        fy=18 / np.ptp(box[1::2]),
        interpolation=cv2.INTER_AREA,
    )
    assert not any(usable_on(np.asarray(tiny, np.uint8)))


def test_small_faces_are_usable_too() -> None:
    picture = two_faces_picture()
    half = np.array(picture.resize((picture.width // 2, picture.height // 2)))
    (found,) = detector().detect([half])
    assert found.sides.min() < 30
    assert usable(seen(half, found), "centerface").tolist() == [True, True]


def test_a_face_that_leaves_the_frame_is_no_longer_usable() -> None:
    picture, box = made_face()
    gone = int(box[0] + 0.4 * np.ptp(box[::2]))
    assert not any(usable_on(np.ascontiguousarray(picture[:, gone:])))
    whole = seen(picture, detector().detect([picture])[0])
    inside = criteria(whole, "centerface")["most_cut_off"]
    assert inside.all()
    chin = float(whole.landmarks[0, :, 1].max())
    shorter = replace(whole, frame_size=(picture.shape[1], int(chin - 0.2 * np.ptp(box[1::2]))))
    assert not criteria(shorter, "centerface")["most_cut_off"].any()


def test_each_criterion_counts() -> None:
    picture, _ = made_face()
    face = seen(picture, detector().detect([picture])[0])
    turned = replace(face.poses, angles=face.poses.angles + np.array([70, 0, 0], np.float32))
    misfit = replace(face.poses, residual=face.poses.residual + 1)
    worse = {
        "least_sharpness": replace(face, sharpness=face.sharpness * 0),
        "least_landmark_score": replace(face, landmark_score=face.landmark_score * 0.5),
        "least_score": replace(face, scores=face.scores * 0.5),
        "most_yaw": replace(face, poses=turned),
        "most_residual": replace(face, poses=misfit),
        "most_hidden": replace(face, crops=face.crops[:, ::-1]),
    }
    for name, one in worse.items():
        failed = [key for key, met in criteria(one, "centerface").items() if not met.all()]
        assert failed == [name]
        assert not usable(one, "centerface").any()


def test_thresholds_are_recorded_by_the_names_of_the_criteria() -> None:
    picture, _ = made_face()
    face = seen(picture, detector().detect([picture])[0])
    recorded = json.loads(json.dumps(thresholds("centerface")))
    assert recorded.keys() == criteria(face, "centerface").keys()
    assert recorded["least_size"] == 20
    assert thresholds("blazeface")["least_score"] == 0


def test_no_faces_give_no_flags() -> None:
    blank = np.zeros((SIDE, SIDE, 3), np.uint8)
    none = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert usable(seen(blank, none), "centerface").shape == (0,)

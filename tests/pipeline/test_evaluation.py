"""Labelled images and annotated videos are scored."""

import numpy as np
import pandas as pd
import pytest
from made_faces import face_picture
from PIL import Image

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import Predictor
from emopipe.pipeline.annotations import AnnotationError, read_continuous, read_images
from emopipe.pipeline.evaluation import (
    evaluate_continuous,
    evaluate_images,
    join_continuous,
    predict_images,
)
from emopipe.pipeline.faces.align import crop_boxes, cut, to_frame
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.table.in_memory import Results


def test_landmarks_a_box_and_detection_lead_to_similar_predictions(tmp_path):
    face_picture().save(tmp_path / "face.png")
    predictor = Predictor(*open_model("emonet-lite"), "cpu", "float32")
    detector = load_detector("centerface")
    (faces,) = detector.detect([np.asarray(face_picture())])
    boxes = crop_boxes(faces[:1], detector.calibration, predictor.checkpoint.crop)
    crops = cut(np.asarray(face_picture()), boxes, predictor.checkpoint.input_size)
    points = to_frame(predictor(crops).landmarks, boxes, predictor.checkpoint.input_size)[0]
    forms = {
        "detected": ("", ""),
        "box": (",x1,y1,x2,y2", "".join(f",{edge}" for edge in faces.boxes[0])),
        "landmarks": (",facial_landmarks", "," + ";".join(map(str, points.ravel()))),
    }
    valence = {}
    for form, (columns, values) in forms.items():
        path = tmp_path / f"{form}.csv"
        path.write_text(f"image,expression{columns}\nface.png,happy{values}\n")
        _, prediction, problems = predict_images(predictor, read_images(path))
        assert not problems
        assert EMOTIONS_8[prediction.probabilities[0].argmax()] == "happy"
        valence[form] = prediction.valence[0]
    assert valence["box"] == valence["detected"]
    assert valence["landmarks"] == pytest.approx(valence["box"], abs=0.1)


def test_images_without_a_face_are_named_and_the_others_scored(tmp_path):
    face_picture().save(tmp_path / "face.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "nobody.png")
    path = tmp_path / "labels.csv"
    path.write_text("image,expression\nmissing.png,1\nnobody.png,1\nface.png,1\n")
    predictor = Predictor(*open_model("emonet-lite"), "cpu", "float32")
    used, prediction, problems = predict_images(predictor, read_images(path))
    assert used.tolist() == [2]
    assert len(prediction.probabilities) == 1
    assert "missing.png cannot be read" in problems[0]
    assert "nobody.png: no face" in problems[1]

    report = evaluate_images(predictor, read_images(path))
    assert (report.images, report.given) == (1, 3)
    assert report.classes == EMOTIONS_8
    assert report.expressions["mirror"].accuracy == 1
    assert report.dimensions == {}
    assert report.as_json()["expression, plain"]["samples"] == 1


def results(times, values, nobody_at=99.0):
    n = len(times)
    rows = pd.DataFrame(
        {
            "video": pd.Categorical(["a.mp4"] * n),
            "time": times,
            "face": pd.array([0] * n, "Int16"),
            "valence": np.array(values, np.float32),
            "arousal": np.array(values, np.float32) / 2,
        }
    )
    second = rows.assign(face=pd.array([1] * n, "Int16"), valence=np.float32(9))
    nobody = rows[:1].assign(
        time=nobody_at, face=pd.array([pd.NA], "Int16"), valence=np.float32("nan")
    )
    return Results(pd.concat([rows, second, nobody]), None, {}, None)


def test_each_frame_is_joined_with_the_nearest_annotation_and_none_far_off(tmp_path):
    path = tmp_path / "ratings.csv"
    lines = [f"a.mp4,{t},{t / 10},0" for t in (0.0, 1.0, 2.0, 3.0)]
    path.write_text(
        "\n".join(["video,time,valence,arousal", *lines, "a.mp4,7,-5,-5", "b.mp4,0,0,0"])
    )
    made = results([0.1, 0.4, 0.9, 2.6, 7.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    joined, notes = join_continuous(made, read_continuous(path))
    assert joined["time"].tolist() == [0.1, 0.4, 0.9, 2.6]
    assert joined["valence_annotated"].tolist() == [0, 0, 0.1, 0.3]
    np.testing.assert_allclose(joined["valence"], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert notes == ("annotated, but without a face in the results: b.mp4",)

    report = evaluate_continuous(made, read_continuous(path))
    assert report.dimensions["a.mp4: valence"] == report.dimensions["all videos: valence"]
    assert report.dimensions["a.mp4: valence"].samples == 4
    assert report.as_json()["notes"] == list(notes)

    path.write_text("video,time,valence,arousal\nb.mp4,0,0,0\n")
    with pytest.raises(AnnotationError, match=r"have the videos a\.mp4, the annotation b\.mp4"):
        join_continuous(made, read_continuous(path))


def ratings(path, times, video="a.mp4"):
    rows = [f"{video},{time:g},{i % 10 / 10},0" for i, time in enumerate(times)]
    path.write_text("\n".join(["video,time,valence,arousal", *rows]) + "\n")
    return read_continuous(path)


@pytest.mark.parametrize(
    ("unit", "first_seconds"),
    [(1000, 4.0), (1000, 0.4), (25, 4.0), (30, 1.0)],  # of a clip of 4 s
)
def test_times_in_other_units_than_seconds_are_refused(tmp_path, unit, first_seconds):
    times = np.arange(0, first_seconds, 0.04)
    made = results([0.0, 1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.4], nobody_at=4.0)
    with pytest.raises(AnnotationError, match=r"column `time` is in seconds, but a\.mp4") as said:
        join_continuous(made, ratings(tmp_path / "r.csv", times * unit))
    assert "divide milliseconds by 1,000, or frame numbers by" in str(said.value)
    assert not join_continuous(made, ratings(tmp_path / "r.csv", np.arange(0, 4.2, 0.04)))[1]


def test_annotations_of_a_video_that_was_analyzed_in_part_may_go_on(tmp_path):
    made = results([0.0, 1.0, 2.0], [0.1, 0.2, 0.3], nobody_at=2.5)
    made.settings["settings"] = {"end": 3.0}
    joined, notes = join_continuous(made, ratings(tmp_path / "r.csv", range(600)))
    assert len(joined) == 3
    assert notes == (
        "annotated far beyond the last analyzed frame, as if `time` were no seconds: a.mp4",
    )


def test_videos_of_which_little_is_annotated_are_named(tmp_path):
    made = results(np.arange(10.0), np.arange(10) / 10)
    joined, notes = join_continuous(made, ratings(tmp_path / "r.csv", [0.0, 0.5, 1.0, 1.5]))
    assert len(joined) == 2
    assert notes == (
        "few of the frames with a face have an annotated time beside them: a.mp4 (2 of 10)",
    )


def test_two_raters_of_the_same_times_are_no_closer_than_their_times(tmp_path):
    made = results([0.1, 1.1, 2.1], [0.1, 0.2, 0.3])
    joined, _ = join_continuous(made, ratings(tmp_path / "r.csv", [0, 0, 1, 1, 2, 2]))
    assert len(joined) == 3


def two_people(persons=("Ann", "Bob"), video="a.mp4"):
    """Four frames of two faces; Ann's valence grows, Bob's falls, and they change places."""
    times = np.repeat(np.arange(4.0), 2)
    first = np.array([0, 1, 1, 0, 0, 1, 1, 0])  # which of the two each row is of
    valence = np.where(first == 0, times / 10, 0.9 - times / 10).astype(np.float32)
    rows = pd.DataFrame(
        {
            "video": pd.Categorical([video] * 8),
            "time": times,
            "face": pd.array([0, 1] * 4, "Int16"),
            "person": pd.Categorical.from_codes(
                [i if persons[i] else -1 for i in first], ["Ann", "Bob"]
            ),
            "valence": valence,
            "arousal": valence / 2,
        }
    )
    return Results(rows, None, {}, None)


def people_ratings(path, *lines, columns="video,time,person,valence,arousal"):
    path.write_text("\n".join([columns, *lines]) + "\n")
    return read_continuous(path)


def test_each_named_person_is_scored_against_their_own_annotation(tmp_path):
    lines = [f"a.mp4,{t},Ann,{t / 10},0" for t in range(4)]
    lines += [f"a.mp4,{t},Bob,{0.9 - t / 10},0" for t in range(4)]
    annotation = people_ratings(tmp_path / "r.csv", *lines, "a.mp4,0,Cem,0,0")
    report = evaluate_continuous(two_people(), annotation)
    assert list(report.dimensions) == [
        f"{who}: {name}"
        for who in ("a.mp4, Ann", "a.mp4, Bob", "all videos")
        for name in ("valence", "arousal")
    ]
    for who in ("Ann", "Bob"):
        scores = report.dimensions[f"a.mp4, {who}: valence"]
        assert (scores.samples, round(scores.ccc, 6)) == (4, 1)
    assert report.dimensions["all videos: valence"].samples == 8
    assert report.notes == ("annotated, but without a face in the results: a.mp4, Cem",)


def test_the_only_named_person_counts_though_the_first_face_is_another(tmp_path):
    lines = [f"a.mp4,{t},{t / 10},0" for t in range(4)]
    annotation = people_ratings(tmp_path / "r.csv", *lines, columns="video,time,valence,arousal")
    report = evaluate_continuous(two_people(("Ann", None)), annotation)
    assert report.dimensions["a.mp4, Ann: valence"].ccc == pytest.approx(1)
    assert report.notes == ()
    first = two_people()
    del first.rows["person"]
    assert evaluate_continuous(first, annotation).dimensions["a.mp4: valence"].ccc < 0.5


def test_it_must_be_known_whom_an_annotation_is_about(tmp_path):
    lines = [f"a.mp4,{t},0,0" for t in range(4)]
    plain = people_ratings(tmp_path / "r.csv", *lines, columns="video,time,valence,arousal")
    with pytest.raises(AnnotationError, match=r"a\.mp4 has 2 named people \(Ann, Bob\)") as raised:
        evaluate_continuous(two_people(), plain)
    assert "add a column person to it, or name only that one in `people`" in str(raised.value)
    both = people_ratings(tmp_path / "r.csv", "a.mp4,0,Ann,0,0", "a.mp4,0,Bob,0,0")
    with pytest.raises(AnnotationError, match=r"annotated for 2 people \(Ann, Bob\)") as raised:
        evaluate_continuous(two_people((None, None)), both)
    assert "name them in `people`, a CSV of video, track, person" in str(raised.value)
    with pytest.raises(AnnotationError, match="has 1 row without a person: name each row's"):
        people_ratings(tmp_path / "r.csv", "a.mp4,0,Ann,0,0", "a.mp4,0, ,0,0")


def test_in_videos_without_names_the_first_face_counts_and_a_note_says_so(tmp_path):
    made = two_people()
    other = two_people((None, None), "b.mp4").rows
    made = Results(pd.concat([made.rows, other]).astype({"video": "category"}), None, {}, None)
    lines = [f"{video},{t},Ann,{t / 10},0" for video in ("a.mp4", "b.mp4") for t in range(4)]
    joined, notes = join_continuous(made, people_ratings(tmp_path / "r.csv", *lines))
    assert joined.subject.value_counts().to_dict() == {"a.mp4, Ann": 4, "b.mp4": 4}
    assert joined.valence[joined.subject == "b.mp4"].tolist() == pytest.approx([0, 0.8, 0.2, 0.6])
    assert notes == (
        "in the results, but not annotated: a.mp4, Bob",
        "nobody is named, so the first face of each frame counts: b.mp4",
    )

"""Labelled pictures and annotated videos meet what the network says of the same."""

import numpy as np
import pandas as pd
import pytest
from made_faces import face_picture
from PIL import Image

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import Predictor
from emopipe.pipeline.annotations import (
    NO_EXPRESSION,
    AnnotationError,
    join_continuous,
    predict_pictures,
    read_continuous,
    read_pictures,
)
from emopipe.pipeline.faces.align import crop_boxes, cut, to_frame
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.table.results import Results


def test_affectnet_rows_are_understood(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text(
        "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
        "expression,valence,arousal\n"
        "1/a.jpg,10,20,30,40,12;24;30;50;20;40,1,0.8,0.1\n"
        "1/b.jpg,10,20,30,40,12;24;30;50,9,-2,-2\n"
    )
    pictures = read_pictures(path, tmp_path / "faces")
    assert pictures.paths[0] == tmp_path / "faces" / "1" / "a.jpg"
    assert pictures.expression.tolist() == [EMOTIONS_8.index("happy"), NO_EXPRESSION]
    np.testing.assert_array_equal(pictures.dimensions, [[0.8, 0.1], [np.nan, np.nan]])
    assert pictures.of_landmarks
    assert pictures.boxes[0].tolist() == [12, 24, 30, 50]


def test_plain_names_will_do_and_a_box_may_be_width_and_height(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "Image, Expression, face_x, face_y, face_width, face_height\na.png,Angry,1,2,3,4\n"
    )
    pictures = read_pictures(path)
    assert pictures.paths == (tmp_path / "a.png",)
    assert pictures.expression.tolist() == [EMOTIONS_8.index("anger")]
    assert pictures.boxes.tolist() == [[1, 2, 4, 6]]
    assert not pictures.of_landmarks
    assert np.isnan(pictures.dimensions).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "needs the picture's path"),
        ("image,expression\na.png,bored\n", "'bored' is unknown"),
        ("image,expression,facial_landmarks\na.png,1,1;2;x\n", "landmarks are x;y"),
        ("image,valence\na.png,1\n", "or valence and arousal"),
        ("image,valence,arousal\na.png,calm,0\n", "valence is a number, not 'calm'"),
        ("image,valence,arousal\na.png,0,7\n", "from -1 to 1, not at 0, 7: rescale"),
        ("image,expression,x1,y1,x2,y2\na.png,sad,0,0,9,wide\n", "y2 is a number, not 'wide'"),
        ("", "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_used_is_refused_with_words(tmp_path, text, complaint):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=complaint):
        read_pictures(path)


def test_landmarks_a_box_and_detection_lead_to_like_answers(tmp_path):
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
    answers = {}
    for form, (columns, values) in forms.items():
        path = tmp_path / f"{form}.csv"
        path.write_text(f"image,expression{columns}\nface.png,happy{values}\n")
        _, said, problems = predict_pictures(predictor, read_pictures(path), mirror=True)
        assert not problems
        assert EMOTIONS_8[said.probabilities[0].argmax()] == "happy"
        answers[form] = said.valence[0]
    assert answers["box"] == answers["detected"]
    assert answers["landmarks"] == pytest.approx(answers["box"], abs=0.1)


def test_pictures_without_a_face_are_named_and_the_others_scored(tmp_path):
    face_picture().save(tmp_path / "face.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "nobody.png")
    path = tmp_path / "labels.csv"
    path.write_text("image,expression\nmissing.png,1\nnobody.png,1\nface.png,1\n")
    predictor = Predictor(*open_model("emonet-lite"), "cpu", "float32")
    done, said, problems = predict_pictures(predictor, read_pictures(path), mirror=False)
    assert done.tolist() == [2]
    assert len(said.probabilities) == 1
    assert "missing.png cannot be read" in problems[0]
    assert "nobody.png: no face" in problems[1]


def results(times, values):
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
    nobody = rows[:1].assign(time=99.0, face=pd.array([pd.NA], "Int16"), valence=np.float32("nan"))
    return Results(pd.concat([rows, second, nobody]), None, {}, None)


def test_each_frame_meets_the_nearest_annotation_and_none_far_off(tmp_path):
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

    for time, complaint in (("00:01", "time is a number, not '00:01'"), ("", "without a time")):
        path.write_text(f"video,time,valence,arousal\nb.mp4,{time},0,0\n")
        with pytest.raises(AnnotationError, match=complaint):
            read_continuous(path)

    path.write_text("video,time,valence,arousal\nb.mp4,0,0,0\n")
    with pytest.raises(AnnotationError, match=r"have the videos a\.mp4, the annotation b\.mp4"):
        join_continuous(made, read_continuous(path))

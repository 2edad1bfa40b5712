"""Labels of images and annotations of videos are read as they are distributed."""

import gzip

import numpy as np
import pytest

from emopipe.emonet.labels import EMOTIONS_8, NO_EXPRESSION
from emopipe.pipeline.annotations import AnnotationError, read_continuous, read_images


def test_affectnet_rows_are_understood(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text(
        "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
        "expression,valence,arousal\n"
        "1/a.jpg,10,20,30,40,12;24;30;50;20;40,1,0.8,0.1\n"
        "1/b.jpg,10,20,30,40,12;24;30;50,9,-2,-2\n"
    )
    images = read_images(path, tmp_path / "faces")
    assert images.paths[0] == tmp_path / "faces" / "1" / "a.jpg"
    assert images.expression.tolist() == [EMOTIONS_8.index("happy"), NO_EXPRESSION]
    np.testing.assert_array_equal(images.dimensions, [[0.8, 0.1], [np.nan, np.nan]])
    assert images.of_landmarks
    assert images.boxes[0].tolist() == [12, 24, 30, 50]


def test_plain_names_will_do_and_a_box_may_be_width_and_height(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "Image, Expression, face_x, face_y, face_width, face_height\na.png,Angry,1,2,3,4\n"
    )
    images = read_images(path)
    assert images.paths == (tmp_path / "a.png",)
    assert images.expression.tolist() == [EMOTIONS_8.index("anger")]
    assert images.boxes.tolist() == [[1, 2, 4, 6]]
    assert not images.of_landmarks
    assert np.isnan(images.dimensions).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "needs the image's path"),
        ("image,expression\na.png,bored\n", "'bored' is unknown"),
        ("image,expression,facial_landmarks\na.png,1,1;2;x\n", "landmarks are x;y"),
        ("image,valence\na.png,1\n", "or valence and arousal"),
        ("image,valence,arousal\na.png,calm,0\n", "valence is a number, not 'calm'"),
        ("image,valence,arousal\na.png,0,7\n", "from -1 to 1, not at 0, 7: rescale"),
        ("image,expression,x1,y1,x2,y2\na.png,sad,0,0,9,wide\n", "y2 is a number, not 'wide'"),
        ("", "cannot be read as CSV"),
        ("image,expression\n", "has no row"),
        ("image,expression\n._a.png,sad\n", "names no image"),
        ("image,expression,Expression\na.png,sad,sad\n", "several columns expression"),
    ],
)
def test_what_cannot_be_used_is_refused_with_words(tmp_path, text, complaint):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=complaint):
        read_images(path)


@pytest.mark.parametrize(
    "content",
    [
        "image;valence;arousal\r\né.png;0,5;-0,25\r\n".encode("latin-1"),
        "image\tvalence\tarousal\né.png\t0.5\t-0.25\n".encode("utf-16"),
        gzip.compress("image,valence,arousal,\né.png,0.5,-0.25,\n".encode("utf-8-sig")),
    ],
)
def test_spreadsheets_forms_are_read(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    images = read_images(path)
    assert images.paths == (tmp_path / "é.png",)
    assert images.dimensions.tolist() == [[0.5, -0.25]]


def test_rows_of_macos_resource_forks_are_left_out(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,expression\na/._1.png,happy\na/1.png,sad\n._2.png,happy\n")
    images = read_images(path)
    assert images.paths == (tmp_path / "a" / "1.png",)
    assert images.expression.tolist() == [EMOTIONS_8.index("sad")]


def test_times_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "ratings.csv"
    for time, complaint in (("00:01", "time is a number, not '00:01'"), ("", "without a time")):
        path.write_text(f"video,time,valence,arousal\nb.mp4,{time},0,0\n")
        with pytest.raises(AnnotationError, match=complaint):
            read_continuous(path)

"""Evaluation matches classes by name, and says what limits its scores."""

from dataclasses import replace

import numpy as np
import pytest
from made_fer2013 import face_set

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.errors import EvaluationError
from emopipe.emonet.evaluation import (
    evaluate_fer2013,
    expected_classes,
    match_classes,
    score_labels,
    trained_on,
)
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7, NO_EXPRESSION
from emopipe.emonet.predictor import Predictions, Predictor


def test_classes_are_matched_by_name_and_what_one_side_lacks_is_noted():
    given = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    matched, notes = match_classes(given, ("sad", "happy", "bored"), ("happy", "sad", "fear"))
    np.testing.assert_allclose(matched, [[0.375, 0.625, 0], [0, 0, 0]])
    assert "does not know fear" in notes[0]
    assert "have no bored" in notes[1]
    with pytest.raises(EvaluationError, match="no class is the same"):
        match_classes(given, ("a", "b", "c"), ("happy",))


def test_fer2013_is_evaluated_with_and_without_copies_plain_and_mirrored():
    faces = face_set(42, np.repeat([0, 1, 2], [14, 14, 14]).astype(np.int8))
    faces.images[14] = faces.images[0]
    network, described = random_weights(0, FER2013_7, width=16, input_size=64)
    provenance = {"data": {"sha256": faces.sha256}, "validation": "PublicTest"}
    checkpoint = replace(described, provenance=provenance)
    report = evaluate_fer2013(Predictor(network, checkpoint, "cpu", "float32"), faces)
    ways = [(e.test, e.without_copies, e.mirror, e.scores.samples) for e in report.evaluations]
    assert ways == [
        ("PublicTest", False, False, 14),
        ("PublicTest", False, True, 14),
        ("PublicTest", True, False, 13),
        ("PublicTest", True, True, 13),
        ("PrivateTest", False, False, 14),
        ("PrivateTest", False, True, 14),
    ]
    (note,) = report.notes
    assert note == f"{described.name} was selected by PublicTest: its scores there say little"
    shown = report.as_json()
    assert set(shown) == {"notes", "judged"}
    assert shown["judged"][0]["classes"] == list(FER2013_7)
    assert trained_on(described, faces, ("Training",)) == ()


def test_both_ways_are_evaluated_whatever_the_checkpoint_s_own_is():
    faces = face_set(28, np.repeat([0, 1], [14, 14]).astype(np.int8))
    network, described = random_weights(0, FER2013_7, width=16, input_size=64)
    plain, averaged = (
        evaluate_fer2013(
            Predictor(network, replace(described, mirror=mirror), "cpu", "float32"), faces
        ).as_json()
        for mirror in (False, True)
    )
    assert plain == averaged
    one, other = plain["judged"]
    assert one["calibration_error"] != other["calibration_error"]


def test_each_image_may_lack_labels():
    predictions = Predictions(
        probabilities=np.eye(8, dtype=np.float32)[[1, 2, 3]],
        valence=np.array([0.1, 0.2, 0.3], np.float32),
        arousal=np.zeros(3, np.float32),
        landmarks=np.zeros((3, 68, 2), np.float32),
        landmark_score=np.zeros(3, np.float32),
    )
    expressions = np.array([1, NO_EXPRESSION, 2])
    dimensions = np.array([[np.nan, np.nan], [0.2, np.nan], [0.3, np.nan]])
    classes = expected_classes(expressions, EMOTIONS_8)
    assert classes == EMOTIONS_8
    scores, rated, notes = score_labels(predictions, EMOTIONS_8, classes, expressions, dimensions)
    assert scores.accuracy == 0.5
    assert list(rated) == ["valence"]
    assert rated["valence"].rmse == pytest.approx(0, abs=1e-6)
    assert notes == ()
    nobody = np.full(3, NO_EXPRESSION)
    assert score_labels(predictions, EMOTIONS_8, classes, nobody, dimensions)[0] is None
    assert expected_classes(np.array([1, NO_EXPRESSION]), ("calm", "sad")) == ("happy", "sad")

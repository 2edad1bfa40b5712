"""Evaluation of a checkpoint on labelled images: scores and reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet import metrics
from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.fer2013 import USAGES, FaceSet
from emopipe.emonet.data.splits import in_training
from emopipe.emonet.errors import EvaluationError
from emopipe.emonet.inference import predict_fer2013
from emopipe.emonet.labels import EMOTIONS_8, NO_EXPRESSION
from emopipe.emonet.metrics import (
    DimensionScores,
    ExpressionScores,
    score_dimension,
    score_expressions,
)
from emopipe.emonet.predictor import Predictions, Predictor

VIEWS = {"plain": False, "mirror": True}
"""Name of each way of predicting, and whether it averages over the mirror image."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a test of FER2013, evaluated in one way.

    Attributes:
        test: name of the test.
        without_copies: whether images with a copy in Training were left out.
        mirror: whether probabilities were averaged over each image and its mirror image.
        classes: names, in the scores' order.
        scores: of the expressions.
    """

    test: str
    without_copies: bool
    mirror: bool
    classes: tuple[str, ...]
    scores: ExpressionScores

    def as_json(self) -> dict[str, Any]:
        """The fields and the scores' fields as JSON has them."""
        return {
            "test": self.test,
            "without_copies": self.without_copies,
            "mirror": self.mirror,
            "classes": list(self.classes),
            **metrics.as_json(self.scores),
        }


@dataclass(frozen=True)
class FER2013Report:
    """Scores on FER2013.

    Attributes:
        notes: what to know when reading the scores, in sentences.
        evaluations: of each test, with and without copies, plain and mirrored.
    """

    notes: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]

    def as_json(self) -> dict[str, Any]:
        """What `emopipe evaluate --json` prints."""
        return {"notes": list(self.notes), "judged": [one.as_json() for one in self.evaluations]}


@dataclass(frozen=True)
class ImageReport:
    """Scores on labelled images.

    Attributes:
        images: number of images that were evaluated.
        given: number of images that were asked for.
        classes: names, in the order of the expressions' scores.
        notes: what to know when reading the scores, in sentences.
        expressions: scores by view ("plain" or "mirror"); empty without expression labels.
        dimensions: scores by dimension and view, such as "valence, plain"; empty without labels.
    """

    images: int
    given: int
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    expressions: dict[str, ExpressionScores]
    dimensions: dict[str, DimensionScores]

    def as_json(self) -> dict[str, Any]:
        """What `emopipe evaluate --json` prints."""
        return {
            "pictures": self.images,
            "classes": list(self.classes),
            "notes": list(self.notes),
            **{f"expression, {view}": metrics.as_json(s) for view, s in self.expressions.items()},
            **{name: metrics.as_json(scores) for name, scores in self.dimensions.items()},
        }


@dataclass(frozen=True)
class VideoReport:
    """Scores on continuously annotated videos.

    Attributes:
        notes: what to know when reading the scores, in sentences.
        dimensions: scores by video and dimension, such as "clip.mp4: valence", or "clip.mp4, Ann:
            valence" where people are named; the last ones are those of "all videos".
    """

    notes: tuple[str, ...]
    dimensions: dict[str, DimensionScores]

    def as_json(self) -> dict[str, Any]:
        """What `emopipe evaluate --json` prints."""
        scores = {name: metrics.as_json(one) for name, one in self.dimensions.items()}
        return {"notes": list(self.notes), **scores}


def evaluate_fer2013(predictor: Predictor, faces: FaceSet) -> FER2013Report:
    """Evaluate a network on FER2013's tests, or on Training where there is nothing else.

    Args:
        predictor: the network.
        faces: the images.

    Raises:
        EvaluationError: network and data have no class in common.
    """
    tests = {
        name: np.flatnonzero(faces.usage == i)
        for i, name in enumerate(USAGES)
        if (faces.usage == i).any()
    }
    if len(tests) > 1:
        tests.pop(USAGES[0], None)
    classes = predictor.checkpoint.classes
    _, unmatched = match_classes(np.zeros((0, len(classes))), classes, faces.classes)
    return FER2013Report(
        notes=(*unmatched, *faces.notes, *trained_on(predictor.checkpoint, faces, tests)),
        evaluations=tuple(evaluate(predictor, faces, tests, in_training(faces, tests))),
    )


def evaluate(
    predictor: Predictor,
    faces: FaceSet,
    tests: dict[str, NDArray[np.int64]],
    copies: dict[str, NDArray[np.bool_]],
) -> list[Evaluation]:
    """Evaluate a network on each test, plain and mirrored.

    A test in which images have a copy in Training is evaluated with and without these.

    Args:
        predictor: the network; its classes are matched with the images' by name.
        faces: the images.
        tests: name to (n,) int64 rows of the images.
        copies: name to (n,) bool, which of those rows have a copy in Training, see
            `splits.in_training`.

    Raises:
        EvaluationError: network and images have no class in common.
        PredictionError: an output of the network is not finite.
    """
    evaluations = []
    for test, rows in tests.items():
        images, truth = faces.images[rows], faces.labels[rows]
        predicted = {
            mirror: match_classes(
                predict_fer2013(predictor.with_mirror(mirror), images).probabilities,
                predictor.checkpoint.classes,
                faces.classes,
            )[0]
            for mirror in VIEWS.values()
        }
        subsets = {False: np.ones(len(rows), np.bool_)}
        if copies[test].any():
            subsets[True] = ~copies[test]
        for without_copies, used in subsets.items():
            for mirror, probabilities in predicted.items():
                if used.any():
                    scores = score_expressions(probabilities[used], truth[used])
                    evaluations.append(
                        Evaluation(test, without_copies, mirror, faces.classes, scores)
                    )
    return evaluations


def expected_classes(expressions: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes to score by: those that occur and those that the network has.

    The latter count too where none occurs: of happy faces alone, any other prediction is wrong.

    Args:
        expressions: (n,) index into `EMOTIONS_8`, or `NO_EXPRESSION`.
        classes: the network's.

    Returns:
        Names, in the order of `EMOTIONS_8`.
    """
    used = {EMOTIONS_8[i] for i in expressions if i != NO_EXPRESSION}.union(classes)
    return tuple(name for name in EMOTIONS_8 if name in used)


def score_labels(
    predictions: Predictions,
    model_classes: tuple[str, ...],
    classes: tuple[str, ...],
    expressions: NDArray[np.int64],
    dimensions: NDArray[np.float64],
) -> tuple[ExpressionScores | None, dict[str, DimensionScores], tuple[str, ...]]:
    """Score predictions for images, each of which may lack labels.

    Args:
        predictions: for n images.
        model_classes: the network's classes.
        classes: names to score by, see `expected_classes`.
        expressions: (n,) index into `EMOTIONS_8`, or `NO_EXPRESSION`.
        dimensions: (n, 2) valence and arousal; NaN where there is none.

    Returns:
        Scores of the expressions, None if no image has one; scores of "valence" and "arousal",
        each where there are labels; and sentences about classes that one side lacks.

    Raises:
        EvaluationError: network and labels have no class in common.
    """
    scores: ExpressionScores | None = None
    notes: tuple[str, ...] = ()
    labelled = expressions != NO_EXPRESSION
    if labelled.any():
        probabilities, notes = match_classes(predictions.probabilities, model_classes, classes)
        truth = np.array([classes.index(EMOTIONS_8[i]) for i in expressions[labelled]])
        scores = score_expressions(probabilities[labelled], truth)
    by_dimension = {}
    for i, name in enumerate(("valence", "arousal")):
        rated = np.isfinite(dimensions[:, i])
        if rated.any():
            predicted = getattr(predictions, name)[rated]
            by_dimension[name] = score_dimension(predicted, dimensions[rated, i])
    return scores, by_dimension, notes


def trained_on(checkpoint: Checkpoint, faces: FaceSet, tests: Iterable[str]) -> tuple[str, ...]:
    """Sentences about tests that a checkpoint was trained on or selected by, as far as it says.

    Args:
        checkpoint: the checkpoint.
        faces: the images of the tests.
        tests: their names.
    """
    if checkpoint.provenance.get("data", {}).get("sha256") != faces.sha256:
        return ()
    uses = {checkpoint.provenance.get("validation"): "was selected by", "Training": "learnt from"}
    return tuple(
        f"{checkpoint.name} {uses[test]} {test}: its scores there say little"
        for test in tests
        if test in uses
    )


def match_classes(
    probabilities: NDArray[np.floating], classes: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Bring a network's classes into the data's order, by name.

    Classes that the data lack are left out and the remaining probabilities rescaled to sum to 1;
    classes that the network lacks get probability 0.

    Args:
        probabilities: (n, len(classes)).
        classes: the network's.
        wanted: the data's.

    Returns:
        (n, len(wanted)) probabilities, and sentences about classes that one side lacks.

    Raises:
        EvaluationError: they have none in common.
    """
    if not set(classes) & set(wanted):
        raise EvaluationError(
            f"the model has the classes {', '.join(classes)}, the data {', '.join(wanted)}: no "
            "class is the same, so there is nothing to score"
        )
    matched = np.zeros((len(probabilities), len(wanted)))
    for column, name in enumerate(wanted):
        if name in classes:
            matched[:, column] = probabilities[:, classes.index(name)]
    total = matched.sum(axis=1, keepdims=True)
    matched = np.divide(matched, total, out=np.zeros_like(matched), where=total > 0)
    notes = []
    if lacking := [name for name in wanted if name not in classes]:
        notes.append(f"the model does not know {', '.join(lacking)}: all such samples count wrong")
    if unused := [name for name in classes if name not in wanted]:
        notes.append(
            f"the data have no {', '.join(unused)}: left out, the other probabilities rescaled"
        )
    return matched, tuple(notes)

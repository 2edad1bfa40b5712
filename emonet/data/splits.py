"""Division of FER2013 into images for training, selection and test, without copies across sides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.data.fer2013 import USAGES, DataError, FaceSet

HELD_OUT = 0.1
"""Share of Training that is drawn for validation or test where the official subset is not used."""

HELD_OUT_TEST = "a held-out part of Training"
"""Name of the test where the data have no official one."""


@dataclass(frozen=True)
class Split:
    """Indices into a `FaceSet` by use; all copies of an image are on the same side.

    Attributes:
        train: (n,) int64, to train on.
        validation: (n,) int64, to select the model by.
        tests: name to (n,) int64, to evaluate the selected model on.
        in_training: name to (n,) bool for each test: images with a copy in Training, which a start
            model may have been trained on.
        notes: what is unusual about the split, in sentences.
        drawn: purposes ("validation", "test") whose images are drawn from Training.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    tests: dict[str, NDArray[np.int64]]
    in_training: dict[str, NDArray[np.bool_]]
    notes: tuple[str, ...]
    drawn: tuple[str, ...] = ()


def split(faces: FaceSet, seed: int, validation: str = "PublicTest") -> Split:
    """Divide images into those to train on, to select by and to test on.

    PublicTest is for selection and PrivateTest for the test; with `validation` "Training", a part
    of Training is for selection and both are tests. What is missing is drawn from Training, the
    same share of each class. An image with copies on several sides stays on the test side, else on
    the selection side.

    Args:
        faces: the images.
        seed: of the random draws.
        validation: "PublicTest" or "Training".

    Raises:
        DataError: there is too little to train on.
    """
    ids = image_ids(faces.images)
    parts = {name: np.flatnonzero(faces.usage == i) for i, name in enumerate(USAGES)}
    training = parts["Training"]
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    drawn_for: list[str] = []
    tests = {name: parts[name] for name in USAGES[1:] if name != validation and len(parts[name])}
    selecting = parts[validation] if validation != "Training" else training[:0]

    def draw(purpose: str) -> NDArray[np.int64]:
        taken = [*tests.values(), selecting]
        free = training[~np.isin(ids[training], ids[np.concatenate(taken)])]
        drawn = _draw(free, ids, faces.labels, rng)
        drawn_for.append(purpose)
        notes.append(
            f"{len(drawn):,} images drawn from Training, {HELD_OUT:.0%} of each class "
            f"(seed {seed}), serve as {purpose} images"
        )
        return drawn

    if not tests:
        tests[HELD_OUT_TEST] = draw("test")
    if not len(selecting):
        selecting = draw("validation")
    tested = np.concatenate(list(tests.values()))
    selecting = selecting[~np.isin(ids[selecting], ids[tested])]
    held_out = ids[np.concatenate((tested, selecting))]
    train = training[~np.isin(ids[training], held_out)]
    if not len(train) or not len(selecting):
        raise DataError(
            f"{faces.source} has {len(training)} Training images, too few to train on and to "
            "hold some out"
        )
    drawn_rows = np.concatenate([selecting, *tests.values()])
    copies = len(training) - len(train) - np.isin(training, drawn_rows).sum()
    if copies:
        notes.append(f"{copies:,} Training images are copies of held-out ones and left out")
    return Split(
        train=train,
        validation=selecting,
        tests=tests,
        in_training=in_training(faces, tests),
        notes=tuple(notes),
        drawn=tuple(drawn_for),
    )


def in_training(
    faces: FaceSet, tests: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.bool_]]:
    """Find the test images with a copy in Training outside of the test itself.

    Args:
        faces: the images.
        tests: name to (n,) rows.

    Returns:
        Name to (n,) bool.
    """
    ids = image_ids(faces.images)
    training = np.flatnonzero(faces.usage == 0)
    return {
        name: np.isin(ids[rows], ids[np.setdiff1d(training, rows)]) for name, rows in tests.items()
    }


def image_ids(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number images so that exact copies have the same number.

    Args:
        images: (n, height, width) uint8.

    Returns:
        (n,) int64, the index of each image's first copy.
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(x.tobytes(), i) for i, x in enumerate(images)], np.int64)


def _draw(
    free: NDArray[np.int64],
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw `HELD_OUT` of each class from the rows `free`, each image with all its copies."""
    chosen: list[NDArray[np.int64]] = []
    distinct = np.unique(ids[free])
    for label in np.unique(labels[distinct]):
        candidates = rng.permutation(distinct[labels[distinct] == label])
        chosen.append(candidates[: round(HELD_OUT * len(candidates))])
    return free[np.isin(ids[free], np.concatenate(chosen))] if chosen else free[:0]

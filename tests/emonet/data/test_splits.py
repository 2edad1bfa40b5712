"""FER2013 is divided without leaks between the sides."""

from itertools import pairwise

import numpy as np
from hypothesis import given, reject
from hypothesis import strategies as st
from made_fer2013 import face_set

from emopipe.emonet.data.fer2013 import USAGES, DataError
from emopipe.emonet.data.splits import image_ids, split


@given(
    usage=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=60, max_size=60),
    copies=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=12),
    validation=st.sampled_from(["PublicTest", "Training"]),
    seed=st.integers(0, 5),
)
def test_no_image_is_on_two_sides(usage, copies, validation, seed):
    faces = face_set(60, np.array(usage, np.int8))
    for source, target in copies:
        faces.images[target] = faces.images[source]
    try:
        divided = split(faces, seed, validation)
    except DataError:  # so many copies that nothing is left to hold out
        reject()

    tests = np.concatenate(list(divided.tests.values()))
    for one, other in pairwise((tests, divided.validation, divided.train, tests)):
        shared = np.intersect1d(one, other)
        assert not len(shared)
        kinds = image_ids(faces.images)
        assert not np.isin(kinds[one], kinds[other]).any()
    assert set(faces.usage[divided.train]) == {0}
    for name, rows in divided.tests.items():
        if name in USAGES:
            assert rows.tolist() == np.flatnonzero(faces.usage == USAGES.index(name)).tolist()
            training = faces.images[faces.usage == 0].tolist()
            expected = [faces.images[row].tolist() in training for row in rows]
            assert divided.in_training[name].tolist() == expected
    again = split(faces, seed, validation)
    assert (again.train == divided.train).all()


def test_what_is_missing_is_drawn_evenly_from_training_and_noted():
    divided = split(face_set(210), seed=1)
    labels = face_set(210).labels
    for rows in (divided.validation, divided.tests["a held-out part of Training"]):
        assert np.bincount(labels[rows]).tolist() == [3] * 7
    assert len(divided.train) == 210 - 42
    assert divided.notes[0] == (
        "21 images drawn from Training, 10% of each class (seed 1), serve as test images"
    )
    assert (split(face_set(210), seed=2).validation != divided.validation).any()

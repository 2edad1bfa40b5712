"""Class names and their order in each label set, and the number of landmarks."""

EMOTIONS_8 = (
    "neutral",
    "happy",
    "sad",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
"""The published 8-class order (AffectNet)."""

EMOTIONS_5 = EMOTIONS_8[:5]
"""The published 5-class order. Its last class is disputed: see the model card of `emonet-5`."""

FER2013_7 = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The order of FER2013's labels 0 to 6, named as in `EMOTIONS_8`."""

CLASSES_BY_COUNT = {5: EMOTIONS_5, 7: FER2013_7, 8: EMOTIONS_8}
"""What a checkpoint without class names is taken to mean, by the size of its last layer."""

N_LANDMARKS = 68
"""Points a face, in the iBUG / 300-W order."""

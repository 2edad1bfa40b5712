"""Expression classes of each label set in their order, and the landmarks' order."""

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
"""FER2013's labels 0 to 6, with the names of `EMOTIONS_8`."""

CLASSES_BY_COUNT = {5: EMOTIONS_5, 7: FER2013_7, 8: EMOTIONS_8}
"""Classes assumed for a checkpoint without class names, by the size of its last layer."""

NO_EXPRESSION = -1
"""Class index of an image without an expression label."""

N_LANDMARKS = 68
"""Points per face, in the iBUG / 300-W order."""

MIRRORED_LANDMARKS = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # ridge of the nose
    *range(35, 30, -1),  # nostrils
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *range(54, 47, -1),  # upper edge of the lips
    *range(59, 54, -1),  # lower edge of the lips
    *range(64, 59, -1),  # lower edge of the upper lip
    *range(67, 64, -1),  # upper edge of the lower lip
)
"""Landmark i of a mirrored face is landmark `MIRRORED_LANDMARKS[i]` of the original."""

OUTER_EYE_CORNERS = (36, 45)
"""The two landmarks whose distance normalises landmark errors."""

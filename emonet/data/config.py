"""How strongly training images are changed. Needs no PyTorch."""

from dataclasses import dataclass, fields, replace

from emopipe.emonet.errors import TrainingError


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; each change is drawn uniformly from its range.

    Attributes:
        flip: probability of mirroring.
        zoom: scale by a factor within 1 ± zoom.
        turn: rotate by up to this many degrees either way.
        shift: translate by up to this share of the image on each axis.
        brightness: add up to this much, either way, to values in [0, 1].
        contrast: scale the distance from the image's mean by a factor within 1 ± contrast.
        erase: probability of filling a rectangle (Zhong et al., "Random Erasing Data Augmentation",
            AAAI 2020).
        erase_side: largest side of that rectangle, as a share of the image's.
        blur: largest weight of an image blurred over about two pixels, mixed with the image.
        grey: probability of removing the colours.
        tint: scale red, green and blue each by a factor within 1 ± tint.
    """

    flip: float = 0.5
    zoom: float = 0.15
    turn: float = 12.0
    shift: float = 0.08
    brightness: float = 0.15
    contrast: float = 0.3
    erase: float = 0.3
    erase_side: float = 0.4
    blur: float = 0.5
    grey: float = 0.3
    tint: float = 0.2

    def __post_init__(self) -> None:
        for name in ("zoom", "contrast", "tint"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"`{name}` is 0 or more and below 1, not {getattr(self, name)}")

    def halved(self) -> "Augmentation":
        """Half as strong; as many images are mirrored."""
        values = {f.name: getattr(self, f.name) / 2 for f in fields(self)}
        return replace(self, **{**values, "flip": self.flip})


NONE = Augmentation(**dict.fromkeys((f.name for f in fields(Augmentation)), 0.0))
"""Leaves images as they are."""

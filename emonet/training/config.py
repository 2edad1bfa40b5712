"""All that a user can choose of a training, checked where it is made. It needs no PyTorch."""

from dataclasses import dataclass, field, fields, replace

from emopipe.emonet.errors import EmopipeError

PRECISIONS = ("float32", "bfloat16")
BATCH_NORMS = ("train", "frozen")
PARTS = ("head", "emotion", "all")
BALANCES = ("none", "loss", "sampling")

WIDTH = 128
"""Channels of the hourglasses of a network that is trained from scratch."""

INPUT_SIZE = 64
"""Side of its crops, pixels."""


class TrainingError(EmopipeError):
    """Training that cannot be done or gone on with as asked for."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise TrainingError(sentence)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        epochs: passes over the data at most.
        batch_size: samples a step and worker.
        learning_rate: AdamW's, at its highest.
        weight_decay: AdamW's, on weights of two and more dimensions but the last layer's.
        warmup: share of the steps over which the learning rate rises from 0.
        cycles: half cosines by which it falls to 0 after that; more than 1: warm restarts.
        clip: the gradient's norm is cut to it.
        ema: decay a step of the averaged weights, which are what is selected and kept.
        patience: epochs without a better score after which training ends.
        precision: "float32", or "bfloat16" for autocast.
        batch_norm: "train" to take statistics of each batch, "frozen" to keep those of the start.
            Frozen layers keep theirs in any case.
        settle: last epochs; they begin with the averaged weights and keep their batch norm's
            statistics. A batch's own statistics hold down pictures that make the network burst
            in use: only so is it taught not to. Pictures are changed half as much, nearer to those
            that the network will see.
        seed: of what is random in training, and of what fine-tuning holds out.
    """

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    cycles: int = 1
    clip: float = 1.0
    ema: float = 0.999
    patience: int = 4
    precision: str = "float32"
    batch_norm: str = BATCH_NORMS[0]
    settle: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "cycles", "patience"):
            _require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is 1 or more")
        _require(0 <= self.settle <= self.epochs, "--settle is from 0 to --epochs")
        _require(self.learning_rate > 0, "--learning-rate is more than 0")
        _require(self.weight_decay >= 0, "--weight-decay is 0 or more")
        _require(self.clip > 0, "--clip is more than 0")
        _require(0 <= self.warmup < 1, "--warmup is a share of the steps, 0 or more and below 1")
        _require(0 <= self.seed < 2**63, "--seed is 0 or more and below 2^63")
        _require(0 <= self.ema < 1, "--ema is 0 or more and below 1")
        _require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}")
        _require(self.batch_norm in BATCH_NORMS, f"--batch-norm is one of {', '.join(BATCH_NORMS)}")


@dataclass(frozen=True)
class Augmentation:
    """How strong the changes are; each is drawn evenly from its range.

    Attributes:
        flip: probability of mirroring.
        zoom: scale by a factor within 1 ± zoom.
        turn: rotate by up to so many degrees either way.
        shift: move by up to this share of the picture on each axis.
        brightness: add up to this much, either way, to values in [0, 1].
        contrast: scale the distance from the picture's mean by a factor within 1 ± contrast.
        erase: probability of painting over a rectangle (Zhong et al., "Random Erasing Data
            Augmentation", AAAI 2020).
        erase_side: its sides are up to this share of the picture's.
        blur: mix with a picture blurred over some two pixels, up to this share of it.
        grey: probability of taking the colours away.
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
        below_1 = all(0 <= getattr(self, name) < 1 for name in ("zoom", "contrast", "tint"))
        _require(below_1, "zoom, contrast and tint are 0 or more and below 1")

    def halved(self) -> "Augmentation":
        """Half as strong; as many pictures are mirrored."""
        values = {f.name: getattr(self, f.name) / 2 for f in fields(self)}
        return replace(self, **{**values, "flip": self.flip})


NONE = Augmentation(**dict.fromkeys((f.name for f in fields(Augmentation)), 0.0))
"""Leaves pictures as they are."""


@dataclass(frozen=True)
class FineTuning:
    """What to learn, and how to look at the pictures.

    Attributes:
        trained: "head" (the last layer's expressions), "emotion" (the emotion branch, as the paper
            does) or "all".
        balance: "none", "loss" (rare classes weigh more in it) or "sampling" (classes are drawn
            equally often, with replacement).
        smoothing: share of each target that is spread evenly over all classes.
        keep: weight of the penalty for leaving the start model's valence, arousal and heatmaps.
        augmentation: how strong.
    """

    trained: str = "emotion"
    balance: str = "none"
    smoothing: float = 0.1
    keep: float = 1.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        _require(self.trained in PARTS, f"--train is one of {', '.join(PARTS)}")
        _require(self.balance in BALANCES, f"--balance is one of {', '.join(BALANCES)}")
        _require(0 <= self.smoothing < 1, "--smoothing is 0 or more and below 1")
        _require(self.keep >= 0, "--keep is 0 or more")


@dataclass(frozen=True)
class Pretraining:
    """How to learn all outputs at once.

    Attributes:
        landmark_share: faces with landmarks in a batch, for each face with votes.
        balance: rare classes weigh more in the loss, by their share to the power of minus this.
        faces: changes to faces with votes.
        landmarked: changes to faces with landmarks.
    """

    landmark_share: float = 0.25
    balance: float = 0.5
    faces: Augmentation = field(default_factory=lambda: Augmentation(turn=15.0))
    landmarked: Augmentation = field(default_factory=lambda: Augmentation(turn=25.0))

    def __post_init__(self) -> None:
        _require(self.landmark_share > 0, "--landmark-share is more than 0")
        _require(0 <= self.balance <= 1, "--balance is from 0 to 1")

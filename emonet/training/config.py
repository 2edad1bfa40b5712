"""Settings of a training run, checked where they are made. Needs no PyTorch."""

from dataclasses import dataclass, field

from emopipe.emonet.data.config import Augmentation
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.fields import check_settings, documented, setting

PRECISIONS = ("auto", "float32", "bfloat16")
BATCH_NORMS = ("train", "frozen")
PARTS = ("head", "emotion", "all")
BALANCES = ("none", "loss", "sampling")

WIDTH = 128
"""Channels of the hourglasses of a network that is pretrained from random weights."""

INPUT_SIZE = 64
"""Side of its crops, pixels."""

COOLDOWN_EPOCHS = 3
"""Cooldown epochs where none are asked for and the training is not short."""


@documented
@dataclass(frozen=True)
class TrainingConfig:
    """How to train: optimizer, schedule, precision and stopping.

    AdamW's weight decay applies to weights of two and more dimensions except the last layer's. The
    learning rate rises linearly from 0 and then falls to 0. The exponential moving average of the
    weights is what is evaluated, selected and saved. Layers that are not trained keep their batch
    norm statistics whatever `batch_norm` is.

    The cooldown epochs start from the averaged weights, keep all batch norm statistics and augment
    half as strongly, closer to the images that the network will see. A batch's own statistics mask
    images whose activations explode in use, where the statistics are fixed: only with fixed ones
    does the loss see them.

    Raises:
        TrainingError: a value of the wrong type or out of its range.
    """

    epochs: int = setting(12, "Passes over the data at most.", least=1, group="training")
    batch_size: int = setting(64, "Images per step and worker.", least=1, group="training")
    learning_rate: float = setting(
        1e-3, "Highest learning rate of AdamW.", above=0, group="training"
    )
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", least=0, group="training")
    warmup: float = setting(
        0.05,
        "Share of the steps over which the learning rate rises.",
        least=0,
        below=1,
        group="training",
    )
    cycles: int = setting(
        1,
        "Half cosines by which the learning rate falls; more than 1: warm restarts.",
        least=1,
        group="training",
    )
    clip: float = setting(1.0, "Largest norm of the gradient.", above=0, group="training")
    ema: float = setting(
        0.999,
        "Decay per step of the averaged weights, which are saved.",
        least=0,
        below=1,
        group="training",
    )
    patience: int = setting(
        4, "Epochs without a better score after which training ends.", least=1, group="training"
    )
    precision: str = setting(
        "auto",
        "bfloat16 is mixed precision; auto takes it where it is native.",
        choices=PRECISIONS,
        group="training",
    )
    batch_norm: str = setting(
        "train",
        "Normalize by the statistics of each batch, or keep those of the start.",
        choices=BATCH_NORMS,
        group="training",
    )
    cooldown_epochs: int | None = setting(
        None,
        "Last epochs, in which batch norm keeps its statistics and images are augmented less.",
        least=0,
        unset=f"{COOLDOWN_EPOCHS}, or a quarter of the epochs if that is less",
        group="training",
    )
    seed: int = setting(0, "Seed of the run's random choices.", least=0, group="training")

    def __post_init__(self) -> None:
        check_settings(self, TrainingError)
        if self.cooldown_epochs is not None and self.cooldown_epochs > self.epochs:
            raise TrainingError(
                f"`cooldown_epochs` is from 0 to `epochs`, {self.epochs}, "
                f"not {self.cooldown_epochs}"
            )
        if self.seed >= 2**63:
            raise TrainingError(f"`seed` is below 2^63, not {self.seed}")


FINETUNE_DEFAULTS = TrainingConfig(epochs=14, ema=0.998, patience=8)
"""What `emopipe finetune` trains with."""

PRETRAIN_DEFAULTS = TrainingConfig(
    epochs=16, learning_rate=2e-3, weight_decay=0.05, ema=0.998, patience=16
)
"""What `emopipe pretrain` trains with."""


@documented
@dataclass(frozen=True)
class FineTuning:
    """What to learn from expression labels.

    `trained`: "head" is the last layer's expressions, "emotion" the emotion branch as in the paper,
    "all" every weight. `balance`: "loss" weighs rare classes more, "sampling" draws classes equally
    often, with replacement. The distillation loss is the distance of valence, arousal and heatmaps
    from the start model's (Li, Hoiem, "Learning without Forgetting", ECCV 2016). `augmentation` is
    how strongly images are changed.

    Raises:
        TrainingError: a value of the wrong type or out of its range.
    """

    trained: str = setting(
        "emotion",
        "What is trained: the last layer, the emotion branch, or everything.",
        choices=PARTS,
        group="training",
    )
    balance: str = setting(
        "none",
        "Make up for rare classes in the loss or by drawing them more often.",
        choices=BALANCES,
        group="training",
    )
    smoothing: float = setting(
        0.1,
        "Share of each target that is spread over all classes.",
        least=0,
        below=1,
        group="training",
    )
    distill: float = setting(
        1.0,
        "Weight of distillation: holding valence, arousal, landmarks to the start model's.",
        least=0,
        group="training",
    )
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_settings(self, TrainingError)


@documented
@dataclass(frozen=True)
class Pretraining:
    """How to learn all outputs at once.

    `balance` is the power: a class weighs in the loss by its share to the power of minus `balance`.
    `faces` and `landmarked` are the augmentation of images with votes and of those with landmarks.

    Raises:
        TrainingError: a value of the wrong type or out of its range.
    """

    landmark_share: float = setting(
        0.25,
        "Ratio of images with landmarks to images with votes in a batch.",
        above=0,
        group="training",
    )
    balance: float = setting(
        0.5,
        "How much more rare classes weigh: 0 none, 1 in full.",
        least=0,
        most=1,
        group="training",
    )
    faces: Augmentation = field(default_factory=lambda: Augmentation(turn=15.0))
    landmarked: Augmentation = field(default_factory=lambda: Augmentation(turn=25.0))

    def __post_init__(self) -> None:
        check_settings(self, TrainingError)


@documented
@dataclass(frozen=True)
class NetworkSize:
    """Dimensions of the network to pretrain.

    Raises:
        TrainingError: a value of the wrong type or out of its range.
    """

    width: int | None = setting(
        None,
        "Channels of the hourglasses, a multiple of 16; the published network's: 256.",
        least=16,
        unset=f"{WIDTH}, or those of `start_model`",
        group="model",
    )
    input_size: int | None = setting(
        None,
        "Side of the crops, pixels, a multiple of 64.",
        least=64,
        unset=f"{INPUT_SIZE}, or that of `start_model`",
        group="model",
    )

    def __post_init__(self) -> None:
        check_settings(self, TrainingError)

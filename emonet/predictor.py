"""Crops to predictions: the network on a device, in a precision, in batches of fixed size."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emopipe.emonet.arguments import ArgumentError, public
from emopipe.emonet.checkpoint import Checkpoint, open_model
from emopipe.emonet.conversion import openvino_trunk
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import MIRRORED_LANDMARKS, N_LANDMARKS
from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.model import EmoNet
from emopipe.emonet.runtime import (
    OPENVINO_PRECISIONS,
    Infer,
    compiled,
    multiplies_bfloat16,
    resolve_runtime,
)

T = TypeVar("T", bound=np.generic)

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

FACES_PER_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
"""Crops per forward pass, by device type."""

LEAST_CROPS = 16
"""On a CPU, PyTorch gets no smaller batch: it is padded. With 1 to 12 crops the last digits
depended on the number of threads (in float32's 1×1 convolutions and bfloat16's last layers), from
16 on not. OpenVINO's do not: only what goes into the last layers is padded then."""


class DeviceError(EmopipeError):
    """A device or precision that this machine does not have."""


class PredictionError(EmopipeError):
    """Outputs of the network are not finite."""


@dataclass(frozen=True)
class Predictions:
    """The network's predictions for N crops.

    Attributes:
        probabilities: (N, classes) float32, each row sums to 1.
        valence: (N,) float32 in [-1, 1], negative to positive.
        arousal: (N,) float32 in [-1, 1], calm to excited.
        landmarks: (N, 68, 2) float32, x and y in crop pixels, 300-W order.
        landmark_score: (N,) float32 in [0, 1], the mean of the 68 heatmaps' maxima.
    """

    probabilities: NDArray[np.float32]
    valence: NDArray[np.float32]
    arousal: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    landmark_score: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.probabilities)
        shapes = {
            "valence": (n,),
            "arousal": (n,),
            "landmarks": (n, N_LANDMARKS, 2),
            "landmark_score": (n,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, not {shape}")

    def __getitem__(self, which: slice | NDArray[np.intp]) -> "Predictions":
        """Return the predictions for some of the crops."""
        return Predictions(*(values[which] for values in _arrays(self)))


class CropsError(EmopipeError, ValueError):
    """What should be crops has another type or shape."""


class Predictor:
    """A network on a device, in a precision.

    Args:
        model: the network; it is moved and converted in place.
        checkpoint: its description.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" (the fastest available).
        precision: "float32", "bfloat16", "float16" or "auto" (the fastest native to the device).
        faces_per_batch: crops per forward pass; None for the device's default.
        runtime: what computes the network on a CPU, one of `emonet.runtime.RUNTIMES`; elsewhere,
            and in float16, it is PyTorch. OpenVINO takes the weights from the checkpoint.
        threads: CPU threads of OpenVINO; None for all cores. PyTorch's are the process's.
        mirror: whether to average predictions with those for the mirror images, which are crops
            as the others are; None: as the checkpoint is meant to be used.

    Raises:
        DeviceError: the machine has no such device, or the precision is unknown.
        RuntimeChoiceError: OpenVINO is asked for, but does not load.
    """

    def __init__(
        self,
        model: EmoNet,
        checkpoint: Checkpoint,
        device: str = "auto",
        precision: str = "auto",
        faces_per_batch: int | None = None,
        runtime: str = "torch",
        threads: int | None = None,
        mirror: bool | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.faces_per_batch = faces_per_batch or FACES_PER_BATCH[self.device.type]
        self.mirror = checkpoint.mirror if mirror is None else mirror
        self._dtype = PRECISIONS[self.precision]
        self._trunk: Infer | None = None
        on_cpu = self.device.type == "cpu" and self.precision in OPENVINO_PRECISIONS
        if resolve_runtime(runtime) == "openvino" and on_cpu:
            trunk = openvino_trunk(model, checkpoint)
            self._trunk = compiled(trunk, self.precision, threads)
        self._model = model.eval().to(self.device, self._dtype)
        self._model.emo_fc_2.float()
        # PyTorch's stubs lack this overload.
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, crops: NDArray[np.uint8]) -> Predictions:
        """Predict from crops.

        Args:
            crops: (N, size, size, 3) uint8 RGB, size being the checkpoint's; N may be 0.

        Raises:
            CropsError: crops of another shape or type.
            PredictionError: an output is not finite, for example if float16 overflows.
        """
        size = self.checkpoint.input_size
        wanted = f"{self.checkpoint.name} takes a uint8 array of crops (N, {size}, {size}, 3)"
        if not isinstance(crops, np.ndarray):
            raise CropsError(f"{wanted}, not a {type(crops).__name__}")
        if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
            raise CropsError(f"{wanted}, not {crops.dtype} {crops.shape}")
        if self.mirror:
            n, both = len(crops), self._predict(np.concatenate([crops, crops[:, :, ::-1]]))
            predictions = _averaged(both[:n], both[n:], size)
        else:
            predictions = self._predict(crops)
        outputs = (
            predictions.probabilities,
            predictions.valence,
            predictions.arousal,
            predictions.landmarks,
        )
        if not all(np.isfinite(values).all() for values in outputs):
            exact = "" if self.precision == "float32" else "`precision` float32, or "
            raise PredictionError(
                f"{self.checkpoint.name} gives values that are not finite in {self.precision}: "
                f"use {exact}another model"
            )
        return predictions

    def with_mirror(self, mirror: bool) -> "Predictor":
        """The same network, with predictions averaged with the mirror images' or not."""
        other = copy.copy(self)
        other.mirror = mirror
        return other

    def _predict(self, crops: NDArray[np.uint8]) -> Predictions:
        """Predictions for any number of crops, as they are."""
        step = self.faces_per_batch
        # A GPU is given all batches before the first is fetched, which waits for it.
        batches = [self._forward(crops[i : i + step]) for i in range(0, len(crops), step)]
        fetched = [Predictions(*(one.cpu().numpy() for one in batch)) for batch in batches]
        return concatenated(fetched) if fetched else self._empty()

    @torch.inference_mode()
    def _forward(self, crops: NDArray[np.uint8]) -> list[Tensor]:
        """The fields of `Predictions` for a batch, on the device."""
        n = len(crops)
        crops = np.ascontiguousarray(crops)
        least = LEAST_CROPS if self.device.type == "cpu" else n
        if self._trunk:
            [outputs] = self._trunk([crops])
            heatmaps, features = (torch.from_numpy(_padded(one, least)) for one in outputs)
        else:
            # Crops are (N, H, W, C) in memory: permuted to (N, C, H, W), they are channels-last.
            # From pinned memory the copy to a GPU does not stop this thread.
            x = torch.tensor(_padded(crops, least), pin_memory=self.device.type == "cuda")
            x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            heatmaps, features, _ = self._model.trunk(x.to(self._dtype) / 255)
        logits, valence, arousal = self._model.head(features)
        points, heights = decode_heatmaps(heatmaps)
        tensors = (
            logits.float().softmax(dim=1),
            valence.float().clamp(-1, 1),
            arousal.float().clamp(-1, 1),
            points,
            heights.mean(dim=1).clamp(0, 1),
        )
        return [tensor[:n] for tensor in tensors]

    def _empty(self) -> Predictions:
        empty = np.zeros(0, np.float32)
        return Predictions(
            probabilities=np.zeros((0, len(self.checkpoint.classes)), np.float32),
            valence=empty,
            arousal=empty,
            landmarks=np.zeros((0, N_LANDMARKS, 2), np.float32),
            landmark_score=empty,
        )


def concatenated(parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions for consecutive crops; 1 or more."""
    return Predictions(
        *(np.concatenate(values) for values in zip(*map(_arrays, parts), strict=True))
    )


def _averaged(plain: Predictions, mirrored: Predictions, size: int) -> Predictions:
    """Average the predictions for crops with those for their mirror images.

    Args:
        plain: for the crops.
        mirrored: for their mirror images.
        size: side of the crops, pixels.
    """
    landmarks = mirrored.landmarks[:, MIRRORED_LANDMARKS]
    landmarks[..., 0] = size - landmarks[..., 0]
    mirrored = replace(mirrored, landmarks=landmarks)
    return Predictions(
        *(np.mean(pair, axis=0) for pair in zip(_arrays(plain), _arrays(mirrored), strict=True))
    )


def _arrays(predictions: Predictions) -> list[NDArray[np.float32]]:
    return [getattr(predictions, field.name) for field in fields(predictions)]


def _padded(values: NDArray[T], least: int) -> NDArray[T]:
    """Extend an array with zeros to at least so many rows."""
    missing = max(0, least - len(values))
    if not missing:
        return values
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])


@public
def load_model(
    name: str | os.PathLike[str] = "emonet-lite",
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    mirror: bool | None = None,
) -> Predictor:
    """Load a model that predicts from crops of faces. Nothing is downloaded.

    Example:
        >>> import emopipe
        >>> import numpy as np
        >>> model = emopipe.load_model("emonet-lite")
        >>> size = model.checkpoint.input_size
        >>> crops = np.zeros((2, size, size, 3), np.uint8)  # RGB
        >>> predictions = model(crops)
        >>> predictions.valence.shape, predictions.landmarks.shape
        ((2,), (2, 68, 2))
        >>> model.checkpoint.classes[:3]
        ('neutral', 'happy', 'sad')

    Args:
        name: of a registered model (`emopipe models list`), or a checkpoint's path.
        classes: names for its classes, in the order of its logits, instead of its own.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" (the fastest available).
        precision: "float32", "bfloat16", "float16" or "auto" (the fastest native to the device).
        runtime: what computes it on a CPU: "openvino", "torch" or "auto" (OpenVINO if installed).
        mirror: whether to average predictions with those for the mirror images, which takes twice
            as long; None: as the model is meant to be used (`checkpoint.mirror`).

    Returns:
        A function of (N, size, size, 3) uint8 RGB crops that returns `Predictions`. Where a crop is
        to lie on the face, its `checkpoint.crop` says.

    Raises:
        EmopipeError: there is no such model here, or an argument is invalid.
    """
    if not isinstance(name, str | os.PathLike):
        raise ArgumentError(f"`name` is a model's name or a checkpoint's path, not {name!r}")
    names = None if classes is None else tuple(map(str, classes))
    model, checkpoint = open_model(os.fspath(name), names, argument="name")
    return Predictor(model, checkpoint, device, precision, runtime=runtime, mirror=mirror)


def resolve_device(device: str) -> torch.device:
    """Turn a device's name, or "auto", into a device of this machine.

    Raises:
        DeviceError: the name is unknown, or the machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"`device` {device} is unknown: use auto, cpu, cuda or mps") from error
    if resolved.type not in FACES_PER_BATCH:
        raise DeviceError(f"`device` {device} is unknown: use auto, cpu, cuda or mps")
    missing_cuda = resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count()
    missing_mps = resolved.type == "mps" and not torch.backends.mps.is_available()
    if missing_cuda or missing_mps:
        raise DeviceError(
            f"`device` {device}: PyTorch {torch.__version__} finds no such device here; "
            f"use `device` cpu, or install a PyTorch built for it (see `emopipe doctor`)"
        )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the fastest precision that the device supports natively.

    Raises:
        DeviceError: an unknown precision.
    """
    if precision == "auto":
        return _native_precision(device)
    if precision not in PRECISIONS:
        raise DeviceError(f"`precision` {precision} is unknown: use auto, {', '.join(PRECISIONS)}")
    return precision


def _native_precision(device: torch.device) -> str:
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        # Tensor cores: float16 since Volta (7), bfloat16 since Ampere (8).
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"
    if device.type == "mps":
        return "float16"
    return "bfloat16" if multiplies_bfloat16() else "float32"

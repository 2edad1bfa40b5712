"""Checkpoints: weights together with what is needed to use them.

Those of emopipe are `.safetensors` files with the description as JSON under the metadata key
`emonet`. Published ones, and users' own, are `.pth` state dicts; the registry describes them, or
the shapes of their tensors do. Loading never executes code from the file.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized

from emopipe.emonet import registry, state_dict
from emopipe.emonet.errors import CheckpointError
from emopipe.emonet.files import atomic_write, sha256_of
from emopipe.emonet.labels import CLASSES_BY_COUNT
from emopipe.emonet.model import PUBLISHED_INPUT_SIZE, SIZE_MULTIPLE, WIDTH_MULTIPLE, EmoNet
from emopipe.emonet.registry import LEARNT_FROM_NOTHING

_METADATA_KEY = "emonet"
_OLD_KEYS = {"license": "licence", "provenance": "made"}  # as earlier versions wrote them


@dataclass(frozen=True)
class CropSpec:
    """The position of a network's square crop, relative to the face's 68 landmarks.

    Attributes:
        scale: side of the square, in units of the mean of the landmarks' width and height.
        shift: (x, y) from the centre of the landmarks' bounding box to the centre of the square,
            in the same units; y points down.
    """

    scale: float
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"a crop's scale is positive, not {self.scale}")
        if len(self.shift) != 2 or not all(map(math.isfinite, self.shift)):
            raise ValueError(f"a crop's shift is two numbers, x and y, not {self.shift}")


PUBLISHED_CROP = CropSpec(scale=2 * 200 / 220)
"""Crop of the published evaluation: side = 200/220 · (width + height) of the landmarks' box."""


@dataclass(frozen=True)
class Checkpoint:
    """Description of a set of weights.

    Attributes:
        name: its name in results.
        classes: expression names in the order of the logits.
        width: channels of the hourglasses.
        input_size: side of the square crop, pixels.
        crop: position of the crop on the face.
        valence_arousal: what valence and arousal were learnt from.
        license: terms of the weights.
        source: where the weights come from.
        mirror: whether predictions are meant to be averaged with the mirror image's.
        sha256: of the file, hexadecimal; empty for weights without a file.
        provenance: how the weights were trained, as JSON has it: start checkpoint, data, settings
            and scores; empty if unknown.
    """

    name: str
    classes: tuple[str, ...]
    width: int
    input_size: int
    crop: CropSpec
    valence_arousal: str
    license: str
    source: str
    mirror: bool = False
    sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"class names are distinct and at least one, not {self.classes}")
        if self.width <= 0 or self.width % WIDTH_MULTIPLE:
            raise ValueError(
                f"a network's width is a positive multiple of {WIDTH_MULTIPLE}, not {self.width}"
            )
        if self.input_size <= 0 or self.input_size % SIZE_MULTIPLE:
            raise ValueError(
                f"an input size is a positive multiple of {SIZE_MULTIPLE}, not {self.input_size}"
            )

    @property
    def valence_arousal_note(self) -> str:
        """What to know before relying on valence and arousal; see `registry`'s function."""
        return registry.valence_arousal_note(self.valence_arousal)


def open_model(
    model: str, classes: tuple[str, ...] | None = None, argument: str = "model"
) -> tuple[EmoNet, Checkpoint]:
    """Load a model of the registry, or a file.

    Args:
        model: name or path.
        classes: names for its classes, in the order of its logits, instead of its own.
        argument: what the caller calls `model`, for errors.

    Returns:
        The network, float32, on the CPU, in evaluation mode; and its description.

    Raises:
        CheckpointError: there is no such file, it is not an EmoNet, it is not the registry's file,
            or the classes are not distinct or not as many as it has.
        WeightsError: the registry's model is not on this machine; the text says how to get it.
    """
    model = os.path.expanduser(model)  # noqa: PTH111 -- Path's raises for an unknown user
    entry = registry.REGISTRY.get(model)
    if entry and entry.kind == "model":
        network, checkpoint = _load_registered(entry)
    elif os.path.isfile(model):  # noqa: PTH113 -- Path's raises for too long names and unreadable folders
        network, checkpoint = load(Path(model))
    else:
        known = ", ".join(name for name, e in registry.REGISTRY.items() if e.kind == "model")
        raise CheckpointError(
            f"`{argument}` {model}: there is no such file, and no model of that name; "
            f"give the path of a .safetensors or .pth file, or one of {known}"
        )
    if classes is None:
        return network, checkpoint
    if len(classes) != len(checkpoint.classes):
        raise CheckpointError(
            f"`classes` names {len(classes)} classes, but {model} has {len(checkpoint.classes)} "
            f"({', '.join(checkpoint.classes)}): name that many, in this order"
        )
    if len(set(classes)) < len(classes):
        raise CheckpointError(f"`classes` are distinct names, not {', '.join(classes)}")
    return network, replace(checkpoint, classes=classes)


def _load_registered(entry: registry.WeightFile) -> tuple[EmoNet, Checkpoint]:
    path = registry.locate(entry.name)
    network, checkpoint = load(path, entry.name)
    if checkpoint.sha256 != entry.sha256:
        raise CheckpointError(
            f"{path} is not the published {entry.name} (its SHA-256 is {checkpoint.sha256}): "
            f"`emopipe models fetch {entry.name}` gets it again"
        )
    if path.suffix == ".safetensors":
        return network, checkpoint
    return network, replace(
        checkpoint,
        classes=entry.classes,
        mirror=entry.mirror,
        valence_arousal=entry.valence_arousal,
        license=entry.license,
        source=entry.source,
    )


def load(path: Path, name: str | None = None) -> tuple[EmoNet, Checkpoint]:
    """Read weights and their description.

    Args:
        path: a `.safetensors` file written by `save`, or a `.pth` state dict with the published
            names (with or without the prefix `module.`).
        name: name of the checkpoint; the file's stem by default.

    Returns:
        The network, float32, on the CPU, in evaluation mode; and its description.

    Raises:
        CheckpointError: the file cannot be read, holds more than tensors, is another network, or
            holds values that are not finite.
    """
    name = name or path.stem
    if path.suffix == ".safetensors":
        state, metadata = state_dict.read_safetensors(path)
        checkpoint = _parse(metadata, name, path)
        state_dict.check_shapes(state, path)
    else:
        state = state_dict.read_pickled(path)
        state_dict.check_shapes(state, path)
        checkpoint = _infer(*state_dict.dimensions(state), name)
    if (len(checkpoint.classes), checkpoint.width) != state_dict.dimensions(state):
        raise CheckpointError(
            f"{path} describes {len(checkpoint.classes)} classes and width {checkpoint.width}, "
            f"but its tensors have {state_dict.dimensions(state)}: the file is inconsistent; "
            f"save it again with emopipe.emonet.checkpoint.save"
        )
    broken = [layer for layer, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path} holds values that are not finite, in {broken[0]}: its training failed; "
            f"use another checkpoint"
        )
    model = EmoNet(len(checkpoint.classes), checkpoint.width)
    model.load_state_dict(state, strict=True)
    return model.eval(), replace(checkpoint, sha256=sha256_of(path))


def save(model: EmoNet, checkpoint: Checkpoint, path: Path) -> None:
    """Write weights in float16 (running statistics in float32) with their description.

    The file appears under its name only when it is complete.

    Args:
        model: the network.
        checkpoint: its description; `name` and `sha256` are not written.
        path: the `.safetensors` file.

    Raises:
        OSError: the file cannot be written.
    """
    description = {k: v for k, v in asdict(checkpoint).items() if k not in ("name", "sha256")}
    tensors = state_dict.halved(model.state_dict())
    with atomic_write(path) as temporary:
        # safetensors' own writing makes files that only their owner can read.
        temporary.write_bytes(serialized(tensors, {_METADATA_KEY: json.dumps(description)}))


_DERIVATIVE = "; made from it: do not redistribute"


def inherited_license(start: str) -> str:
    """License of weights that are derived from weights with the license `start`."""
    restricted = any(term in start.upper() for term in ("-NC", "-ND", "NON-COMMERCIAL"))
    return start + (_DERIVATIVE if restricted and _DERIVATIVE not in start else "")


def random_weights(
    seed: int, classes: tuple[str, ...], width: int, input_size: int
) -> tuple[EmoNet, Checkpoint]:
    """Make a network with random weights; its name and license say so.

    Args:
        seed: of the weights.
        classes: expression names in the order of the logits.
        width: channels of the hourglasses, a multiple of `WIDTH_MULTIPLE`.
        input_size: side of the square crop, pixels, a multiple of `SIZE_MULTIPLE`.

    Returns:
        The network, float32, on the CPU, in evaluation mode; and its description.

    Raises:
        ValueError: classes, width or input size cannot be those of an EmoNet.
    """
    checkpoint = Checkpoint(
        name=f"random-{seed}",
        classes=classes,
        width=width,
        input_size=input_size,
        crop=PUBLISHED_CROP,
        valence_arousal=f"{LEARNT_FROM_NOTHING}: random weights, every output is meaningless",
        license="none: random weights",
        source=f"torch's initialisation with seed {seed}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EmoNet(len(classes), width).eval()
    return model, checkpoint


def _parse(metadata: dict[str, str], name: str, path: Path) -> Checkpoint:
    if _METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} does not say what network it is (no '{_METADATA_KEY}' in its metadata): "
            f"write it with emopipe.emonet.checkpoint.save, or give the weights as a .pth file"
        )
    try:
        description: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
        for key, old in _OLD_KEYS.items():
            if old in description:
                description.setdefault(key, description.pop(old))
        crop = description["crop"]
        mirror = description.get("mirror", False)  # earlier versions did not write it
        if not isinstance(mirror, bool):
            raise TypeError(f"mirror is true or false, not {mirror!r}")
        return Checkpoint(
            name=name,
            classes=tuple(map(str, description["classes"])),
            width=int(description["width"]),
            input_size=int(description["input_size"]),
            crop=CropSpec(float(crop["scale"]), tuple(crop["shift"])),
            valence_arousal=str(description["valence_arousal"]),
            license=str(description["license"]),
            source=str(description["source"]),
            mirror=mirror,
            provenance=dict(description.get("provenance", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the description inside {path} is incomplete or wrong ({error!r}); "
            f"write the file again with emopipe.emonet.checkpoint.save"
        ) from error


def _infer(count: int, width: int, name: str) -> Checkpoint:
    """Describe a `.pth` file by its number of classes and its width."""
    unnamed = tuple(f"class_{i}" for i in range(count))
    return Checkpoint(
        name=name,
        classes=CLASSES_BY_COUNT.get(count, unnamed),
        width=width,
        input_size=PUBLISHED_INPUT_SIZE,
        crop=PUBLISHED_CROP,
        valence_arousal="not stated by the file",
        license="not stated by the file",
        source="not stated by the file",
    )

"""Learn to see how much of a face is hidden: makes `pretrained/visibility.safetensors`.

    python -m emopipe.pipeline.faces.learn_visibility landmarks68.parquet pretrained

The file is a Parquet table of face images, see `emonet.data.landmarks68.read_samples`. The people
that the bundled model was not trained on are not learnt from: what is printed is of them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.landmarks68 import read, read_samples, split
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import MIRRORED_LANDMARKS
from emopipe.emonet.predictor import Predictor, load_model
from emopipe.pipeline.faces.visibility import FILE, GRID, aligned, hidden_share, normalized

REPEATS = 10
"""Damaged views an image."""

KINDS = {"seen": 0.35, "covered": 0.4, "upside down": 0.19, "beside": 0.06}
"""How often a view shows what."""

HIDDEN_UNITS = 48
PARTS = 4
"""The face is judged in 4×4 parts."""

EPOCHS = 16
_BATCH = 256
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.1
_DROPOUT = (0.1, 0.2)  # of the cells, of the first hidden layer

_SHAPE_EXTENT = 26  # cells
_SHAPE_CENTRE = (16, 16.5)
_CENTRE_JITTER, _SIDE_JITTER = 0.04, 0.04  # of the landmarks' extent: how far boxes are off
_TURN = 12.0  # degrees, standard deviation of the heads' additional roll


@dataclass(frozen=True)
class Views:
    """Aligned faces and what of them is hidden.

    Attributes:
        faces: (n, 1024) float32, see `pipeline.faces.visibility.normalized`.
        hidden: (n, 16) float32, share of each part that is hidden.
        kinds: (n,) of `KINDS`.
    """

    faces: NDArray[np.float32]
    hidden: NDArray[np.float32]
    kinds: NDArray[np.str_]


@dataclass(frozen=True)
class _View:
    """A grey image, (height, width) float32, what hides it, 0 to 1, and the face's landmarks."""

    image: NDArray[np.float32]
    cover: NDArray[np.float32]
    landmarks: NDArray[np.float64]


def mean_shape(landmarks: NDArray[np.float64]) -> NDArray[np.float32]:
    """The mean of faces and their mirror images, (68, 2) in cells of the grid."""
    low, high = landmarks.min(axis=1, keepdims=True), landmarks.max(axis=1, keepdims=True)
    centred = (landmarks - (low + high) / 2) / (high - low).mean(axis=2, keepdims=True)
    mean = centred.mean(axis=0)
    mean = (mean + mean[list(MIRRORED_LANDMARKS)] * [-1, 1]) / 2
    shape = mean / np.ptp(mean, axis=0).mean() * _SHAPE_EXTENT + _SHAPE_CENTRE
    return np.asarray(shape, np.float32)


def hull_of(shape: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cells within a face's landmarks: (32, 32), equal and summing to 1."""
    mask = np.zeros((GRID, GRID), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.floor(shape).astype(np.int32)), 1)
    return np.asarray(mask / mask.sum(), np.float32)


def parts_of(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over the parts: (32, 32) to (16,)."""
    side = GRID // PARTS
    sums = grid.reshape(PARTS, side, PARTS, side).sum(axis=(1, 3))
    return np.asarray(sums, np.float32).reshape(-1)


def views(
    images: Sequence[NDArray[np.float32]],
    landmarks: NDArray[np.float64],
    shape: NDArray[np.float32],
    predictor: Predictor,
    seed: int = 0,
) -> Views:
    """Damage images, `REPEATS` times each, and find the landmarks as an analysis does.

    Args:
        images: (height, width) float32, grey levels.
        landmarks: (n, 68, 2) the true ones, in pixels of the images.
        shape: from `mean_shape`.
        predictor: the network that finds the landmarks.
        seed: of the random choices.
    """
    random = np.random.default_rng(seed)
    hull = hull_of(shape)
    shares = np.maximum(parts_of(hull), np.float32(1e-6))
    size = predictor.checkpoint.input_size
    box = np.array([[0, 0, size, size]], np.float32)
    faces: list[NDArray[np.float32]] = []
    hidden: list[NDArray[np.float32]] = []
    kinds: list[str] = []
    for image, points in zip(images, landmarks, strict=True):
        some = random.choice(list(KINDS), REPEATS, p=list(KINDS.values())).tolist()
        made = [
            _cropped(_damaged(kind, image, points, images, random), predictor.checkpoint, random)
            for kind in some
        ]
        crops = np.array([_photographed(crop, random) for crop, _ in made])
        found = predictor(np.repeat(crops[..., None], 3, axis=3)).landmarks
        boxes = np.tile(box, (REPEATS, 1))
        shown = aligned(list(crops.astype(np.float32)), boxes, found, shape)
        covers = aligned([cover for _, cover in made], boxes, found, shape)
        faces.extend(normalized(shown, hull))
        hidden.extend(np.asarray(parts_of(cover * hull) / shares) for cover in covers)
        kinds.extend(some)
    return Views(np.array(faces), np.array(hidden, np.float32), np.array(kinds))


def learn(seen: Views, parts: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Train the network on views, with the parts weighted by their share (16,) of the face."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    layers = [nn.Linear(GRID**2, HIDDEN_UNITS), nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS)]
    layers.append(nn.Linear(HIDDEN_UNITS, PARTS**2))
    first, second, last = layers
    cells, units = (nn.Dropout(rate) for rate in _DROPOUT)
    network = nn.Sequential(cells, first, nn.ReLU(), units, second, nn.ReLU(), last)
    parameters = network.parameters()
    optimizer = torch.optim.AdamW(parameters, weight_decay=_WEIGHT_DECAY)
    faces, hidden = torch.from_numpy(seen.faces), torch.from_numpy(seen.hidden)
    weights = torch.from_numpy(parts)
    steps = len(faces) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=EPOCHS * steps
    )
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(faces))[: steps * _BATCH].reshape(steps, _BATCH):
            seen_faces, truth = faces[batch], hidden[batch]
            if torch.rand(()) < 0.5:  # the shape is symmetric, so mirror images are aligned too
                seen_faces = seen_faces.reshape(-1, GRID, GRID).flip(2).reshape(-1, GRID**2)
                truth = truth.reshape(-1, PARTS, PARTS).flip(2).reshape(-1, PARTS**2)
            losses = F.binary_cross_entropy_with_logits(
                network(seen_faces), truth, reduction="none"
            )
            optimizer.zero_grad()
            (losses * weights).sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    tensors = {}
    for number, layer in enumerate(layers, start=1):
        tensors[f"weight{number}"] = layer.weight.detach().numpy().T
        tensors[f"bias{number}"] = layer.bias.detach().numpy()
    return tensors


def report(seen: Views, estimates: NDArray[np.float32], parts: NDArray[np.float32]) -> str:
    """Say how well hidden shares are estimated.

    Args:
        seen: n views.
        estimates: (n,) of their hidden shares.
        parts: (16,) each part's share of the face.
    """
    truth = seen.hidden @ parts
    kinds = {kind: seen.kinds == kind for kind in KINDS}
    kinds["covered"] &= truth > 0.5
    lines = [f"mean error {np.abs(estimates - truth).mean():.3f}"]
    for kind, which in kinds.items():
        if not which.any():
            continue
        percentiles = np.percentile(estimates[which], [1, 5, 50, 95, 99])
        lines.append(
            f"{kind + (' by more than half' if kind == 'covered' else ''):25} "
            f"percentiles 1, 5, 50, 95, 99: {', '.join(f'{p:.2f}' for p in percentiles)}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m emopipe.pipeline.faces.learn_visibility",
        description="Learn to see how much of a face is hidden.",
    )
    parser.add_argument("samples", type=Path, help="Parquet file: name, jpg, landmarks")
    parser.add_argument("folder", type=Path, help=f"gets {FILE}")
    options = parser.parse_args(arguments)
    predictor = load_model(mirror=False)
    try:
        learnt_from, measured_on = split(
            read(options.samples, predictor.checkpoint.input_size), seed=0
        )  # as the bundled model
        samples = list(read_samples(options.samples))
    except EmopipeError as error:
        raise SystemExit(f"learn_visibility: {error}") from error
    images = [cv2.cvtColor(one.image, cv2.COLOR_RGB2GRAY).astype(np.float32) for one in samples]
    landmarks = np.array([one.landmarks for one in samples])
    shape = mean_shape(landmarks[learnt_from])
    parts = parts_of(hull_of(shape))

    def seen(rows: NDArray[np.int64]) -> Views:
        return views([images[i] for i in rows], landmarks[rows], shape, predictor)

    tensors: dict[str, NDArray[np.floating[Any]]] = {
        name: np.ascontiguousarray(tensor, np.float16)
        for name, tensor in learn(seen(learnt_from), parts).items()
    }
    tensors |= {"shape": shape, "hull": hull_of(shape), "parts": parts}
    people = len({samples[i].person for i in learnt_from})
    metadata = {"source": options.samples.name, "people": str(people), "use": "research"}
    save_file(tensors, options.folder / FILE, metadata)
    others = seen(measured_on)
    learnt = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    estimates = np.array([hidden_share(face, learnt) for face in others.faces], np.float32)
    print(f"learnt from {people} people; of the others {report(others, estimates, parts)}")


def _damaged(
    kind: str,
    image: NDArray[np.float32],
    landmarks: NDArray[np.float64],
    others: Sequence[NDArray[np.float32]],
    random: np.random.Generator,
) -> _View:
    """Show a face in one of the ways of `KINDS`."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    extent = (high - low).mean()
    none, every = np.zeros_like(image), np.ones_like(image)
    if kind == "covered":
        cover = _cover(landmarks, image.shape, random)
        skin = float(np.median(image[tuple(landmarks[29:36].T[::-1].astype(int))]))
        occluder = _occluder(image.shape, skin, others, random)
        return _View(image + cover * (occluder - image), cover, landmarks)
    if kind == "upside down":
        if random.random() < 0.3:
            return _View(image[::-1], every, landmarks * [1, -1] + [0, len(image)])
        turn = cv2.getRotationMatrix2D(((low + high) / 2).tolist(), 180 + random.normal(0, 20), 1)
        image = cv2.warpAffine(image, turn, image.shape[::-1], borderMode=cv2.BORDER_REFLECT)
        return _View(image, every, _moved(landmarks, turn))
    if kind == "beside":
        angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.45, 0.9) * extent
        shift = distance * np.array([np.cos(angle), np.sin(angle)])
        return _View(image, every, landmarks + shift)
    return _View(image, none, landmarks)


def _moved(points: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ affine[:, :2].T + affine[:, 2]


def _cover(
    landmarks: NDArray[np.float64], size: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.float32]:
    """What hides a face, 0 to 1: one side of it, or a patch about an eye, the nose or the mouth."""
    (x1, y1), (x2, y2) = low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    extent = (high - low).mean()
    side = random.integers(6)
    if side < 4:
        margin = 0.3 * extent
        box = np.array([x1 - margin, y1 - margin, x2 + margin, y2 + margin])
        width, height = (high - low) * random.uniform(0.25, 0.8)
        box[side] = (x2 - width, y2 - height, x1 + width, y1 + height)[side]
    else:
        part = (slice(36, 42), slice(42, 48), slice(48, 68), slice(27, 36))[random.integers(4)]
        centre = landmarks[part].mean(axis=0) + random.normal(0, 0.08 * extent, 2)
        half = random.uniform(0.15, 0.4, 2) * extent
        box = np.concatenate([centre - half, centre + half])
    mask = np.zeros(size, np.float32)
    corner, opposite = box[:2].astype(int).tolist(), box[2:].astype(int).tolist()
    if random.random() < 0.6:
        cv2.rectangle(mask, corner, opposite, 1, -1)
    else:
        centre, axes = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * 1.15
        ellipse = (centre.tolist(), axes.tolist(), random.uniform(-20, 20))
        cv2.ellipse(mask, ellipse, 1, -1)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), random.uniform(0.3, 1.5)))


def _occluder(
    size: tuple[int, ...],
    skin: float,
    others: Sequence[NDArray[np.float32]],
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """An image to hide a face with: a surface, skin, fingers, or part of another image."""
    kind = random.integers(8)
    if kind < 3:
        level = random.uniform(*((0, 30), (60, 200), (200, 255))[kind])
        return np.full(size, level, np.float32)
    if kind == 3:
        rough = random.normal(0, random.uniform(2, 25), size).astype(np.float32)
        grain = cv2.GaussianBlur(rough, (0, 0), random.uniform(0.5, 3))
        return _shaded(np.full(size, skin, np.float32) + grain, random)
    if kind < 6:
        return _shaded(skin * _fingers(size, random), random)
    other = others[int(random.integers(len(others)))]
    scale = np.exp(random.uniform(0, 1))
    turn = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), random.uniform(0, 360), scale)
    turn[:, 2] += random.uniform(-0.5, 0.5, 2) * size[0]
    return np.asarray(cv2.warpAffine(other, turn, size[::-1], borderMode=cv2.BORDER_REFLECT))


def _fingers(size: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Cylinders side by side, lit from the front, 0 to 1."""
    turn = random.uniform(-0.5, 0.5) + random.integers(2) * np.pi / 2
    y, x = np.mgrid[: size[0], : size[1]]
    across = np.cos(turn) * x + np.sin(turn) * y
    phase = across / max(size) * random.uniform(5, 16) + random.uniform(0, 1)
    profile = np.sqrt(1 - (2 * (phase % 1) - 1) ** 2)
    darkest = random.uniform(0.4, 0.95)
    return np.asarray(darkest + (1 - darkest) * profile, np.float32)


def _shaded(image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Brighter on one side than on the other, and in other light."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] / np.array(image.shape)[:, None, None]
    across, down = random.uniform(-0.8, 0.8, 2)
    slope = 1 + across * (x - 0.5) + down * (y - 0.5)
    lit = image * slope * random.uniform(0.7, 1.2)
    return np.asarray(lit.clip(0, 255), np.float32)


def _cropped(
    view: _View, checkpoint: Checkpoint, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut out a view and its cover about where a detector's box would have them cut out."""
    low, high = view.landmarks.min(axis=0), view.landmarks.max(axis=0)
    extent, spec = (high - low).mean(), checkpoint.crop
    centre = (low + high) / 2 + np.array(spec.shift) * extent
    centre = centre + random.normal(0, _CENTRE_JITTER * extent, 2)
    scale = checkpoint.input_size / (spec.scale * extent) * np.exp(random.normal(0, _SIDE_JITTER))
    turn = cv2.getRotationMatrix2D(centre.tolist(), random.normal(0, _TURN), scale)
    turn[:, 2] += checkpoint.input_size / 2 - centre
    smooth = cv2.GaussianBlur(view.image, (0, 0), max(0.3 / scale, 0.1))
    crop, cover = (
        cv2.warpAffine(one, turn, (checkpoint.input_size,) * 2, borderMode=cv2.BORDER_REPLICATE)
        for one in (smooth, np.ascontiguousarray(view.cover))
    )
    return np.asarray(crop, np.float32), np.asarray(cover, np.float32)


def _photographed(crop: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """Blur or coarsen a crop, and change its light, noise and compression."""
    lens = random.random()
    if lens < 0.25:
        crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), random.uniform(0.2, 1.5)))
    elif lens < 0.5:
        side = random.integers(28, 64)
        small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        crop = np.asarray(cv2.resize(small, crop.shape, interpolation=cv2.INTER_CUBIC))
    gamma = np.float32(np.exp(random.normal(0, 0.35)))
    crop = np.asarray(255 * (crop.clip(0, 255) / 255) ** gamma, np.float32)
    if random.random() < 0.5:
        crop = _shaded(crop, random)
    if random.random() < 0.3:
        crop = crop * np.float32(random.uniform(0.3, 1.1))
    noise = random.normal(0, random.uniform(0, 5), crop.shape)
    shown = (crop + noise).clip(0, 255).astype(np.uint8)
    if random.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 80))]
        _, encoded = cv2.imencode(".jpg", shown, quality)
        shown = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)
    return shown


if __name__ == "__main__":
    main()

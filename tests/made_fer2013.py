"""FER2013 files with images of seven patterns, which a network learns in a few steps."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.data.fer2013 import SIDE, USAGES, FaceSet
from emopipe.emonet.labels import FER2013_7

CLASSES = len(FER2013_7)


def images_and_labels(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (count, 48, 48) of stripes whose direction is the label, and labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angles = labels[:, None, None] * np.pi / CLASSES
    phases = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    waves = np.sin(2 * np.pi * 4 * (x * np.cos(angles) + y * np.sin(angles)) + phases)
    noisy = 127 + 80 * waves + rng.normal(0, 10, waves.shape)
    return noisy.clip(0, 255).astype(np.uint8), labels


def face_set(count: int, usage: NDArray[np.int8] | None = None, seed: int = 0) -> FaceSet:
    """The images as they are read, of Training by default."""
    images, labels = images_and_labels(count, seed)
    return FaceSet(
        images=images,
        targets=np.eye(CLASSES, dtype=np.float32)[labels],
        usage=np.zeros(count, np.int8) if usage is None else usage,
        rows=np.arange(count),
        classes=FER2013_7,
        source="made.csv",
        sha256="0" * 64,
    )


def csv_text(
    count: int, header: str = "emotion,pixels,Usage", usages: tuple[int, ...] = (0, 0, 0, 0, 1, 2)
) -> str:
    """A CSV file's text; rows take their usage in turn."""
    images, labels = images_and_labels(count)
    lines = [header]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row = {
            "emotion": str(label),
            "pixels": " ".join(map(str, image.ravel().tolist())),
            "usage": USAGES[usages[i % len(usages)]],
        }
        lines.append(",".join(row[name.strip().lower()] for name in header.split(",")))
    return "\n".join(lines) + "\n"


def write_csv(path: Path, count: int, **how: object) -> Path:
    """A CSV file, compressed where its name says so."""
    text = csv_text(count, **how).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_votes(path: Path, count: int, usages: tuple[int, ...] = (0, 0, 0, 0, 1, 2)) -> Path:
    """FER+'s votes for the images of `csv_text`: eight for each label, and two for neutral."""
    _, labels = images_and_labels(count)
    names = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    of_label = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    lines = [",".join(("Usage", "Image name", *names, "unknown", "NF"))]
    for i, label in enumerate(labels):
        votes = dict.fromkeys(names, 0)
        votes["neutral"] += 2
        votes[of_label[label]] += 8
        usage = USAGES[usages[i % len(usages)]]
        lines.append(",".join((usage, f"fer{i}.png", *map(str, votes.values()), "0", "0")))
    path.write_text("\n".join(lines) + "\n")
    return path

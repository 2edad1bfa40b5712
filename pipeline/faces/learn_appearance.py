"""Learn what appearances tell people apart by: makes `pretrained/appearance.safetensors`.

    python -m emopipe.pipeline.faces.learn_appearance landmarks68.parquet pretrained

The file is a Parquet table of face images, see `emonet.data.landmarks68.read_samples`; images of
one person that differ only in the last digit of their names show one scene. Heads are cut
out and pasted into made frames, so that the background does not count.

Distances that it prints are those of people from whom nothing was learnt.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from emopipe.emonet.data.landmarks68 import Sample, read_samples
from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.faces.appearance import DIMENSIONS, FILE, colours

REPEATS = 4
"""Made frames an image."""

SHRINKAGE = 0.1
"""Of the covariance within scenes towards a multiple of the identity."""

_FRAME = 400  # pixels
_SCALES = (0.4, 1.2)
# How far detectors' boxes are off, in units of the landmarks' extent.
_CENTRE_JITTER, _SIDE_JITTER = 0.03, 0.05
_GAIN = 0.08
_NOISE = 3.0  # grey levels


@dataclass(frozen=True)
class Views:
    """Colours of people in scenes.

    Attributes:
        colours: (n, 432) float32, see `pipeline.faces.appearance.colours`.
        people, scenes: (n,) names.
    """

    colours: NDArray[np.float32]
    people: NDArray[np.str_]
    scenes: NDArray[np.str_]


def views(samples: Iterable[Sample], scenes: Iterable[str], seed: int = 0) -> Views:
    """Look at images in made frames, `REPEATS` times each."""
    random = np.random.default_rng(seed)
    seen = [
        (colours(*_made_frame(sample, random)), sample.person, scene)
        for sample, scene in zip(samples, scenes, strict=True)
        for _ in range(REPEATS)
    ]
    cells, people, names = zip(*seen, strict=True)
    return Views(np.stack(cells), np.array(people), np.array(names))


def learn(seen: Views) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Linear discriminant analysis with scenes as classes.

    Returns:
        The mean (432,) and the projection (432, 16), float32: within a scene each dimension has
        unit variance.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    analysis = LinearDiscriminantAnalysis(
        solver="eigen", shrinkage=SHRINKAGE, n_components=DIMENSIONS
    )
    analysis.fit(seen.colours, seen.scenes)
    projection = analysis.scalings_[:, :DIMENSIONS]
    within = np.concatenate(
        [
            (group := seen.colours[seen.scenes == scene] @ projection) - group.mean(axis=0)
            for scene in np.unique(seen.scenes)
        ]
    )
    projection = projection / within.std(axis=0)
    return seen.colours.mean(axis=0), projection.astype(np.float32)


def distances(
    seen: Views, mean: NDArray[np.float32], projection: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances of appearances: of one person in one scene, and of two people.

    Each made frame is compared with those of other images only.
    """
    points = (seen.colours - mean) @ projection
    squares = (points**2).sum(axis=1)
    table = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    image = np.arange(len(points)) // REPEATS
    one = (seen.scenes[:, None] == seen.scenes) & (image[:, None] < image)
    two = seen.people[:, None] != seen.people
    return table[one], table[two]


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m emopipe.pipeline.faces.learn_appearance",
        description="Learn what appearances tell people apart by.",
    )
    parser.add_argument("samples", type=Path, help="Parquet file: name, jpg, landmarks")
    parser.add_argument("folder", type=Path, help=f"gets {FILE}")
    options = parser.parse_args(arguments)
    try:
        seen = views(read_samples(options.samples), _scenes(options.samples))
    except EmopipeError as error:
        raise SystemExit(f"learn_appearance: {error}") from error
    people = np.unique(seen.people)
    held_back = np.isin(seen.people, people[::2])
    print(f"{len(people)} people; learnt from half of them, the others' distances:")
    mean, projection = learn(_only(seen, ~held_back))
    one, two = distances(_only(seen, held_back), mean, projection)
    for percent in (50, 90, 95, 98, 99):
        limit = np.percentile(one, percent)
        print(f"  {percent} % of one person's below {limit:.1f}, {(two < limit).mean():.2%} of two")
    mean, projection = learn(seen)
    metadata = {"source": options.samples.name, "people": str(len(people)), "use": "research"}
    save_file({"mean": mean, "projection": projection}, options.folder / FILE, metadata)


def _only(seen: Views, which: NDArray[np.bool_]) -> Views:
    return Views(seen.colours[which], seen.people[which], seen.scenes[which])


def _scenes(path: Path) -> Iterator[str]:
    for name in pq.read_table(path, columns=["name"]).column("name").to_pylist():
        yield Path(name).stem[:-1]


def _made_frame(
    sample: Sample, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A frame with the sample somewhere on it, and about where its landmarks' square is."""
    scale = random.uniform(*_SCALES)
    face = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    side = len(face)
    coarse = random.integers(0, 256, (6, 6, 3), np.uint8)
    frame = cv2.resize(coarse, (_FRAME, _FRAME), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    x, y = random.integers(0, _FRAME - side, 2)
    mask = _mask(side, with_shoulders=bool(random.integers(2)))
    place = (slice(y, y + side), slice(x, x + side))
    frame[place] = mask * face + (1 - mask) * frame[place]
    gain = random.uniform(1 - _GAIN, 1 + _GAIN)
    frame = (frame * gain + random.normal(0, _NOISE, frame.shape)).clip(0, 255)
    points = sample.landmarks * scale + [x, y]
    low, high = points.min(axis=0), points.max(axis=0)
    extent = (high - low).mean()
    centre = (low + high) / 2 + random.normal(0, _CENTRE_JITTER, 2) * extent
    half = extent / 2 * np.exp(random.normal(0, _SIDE_JITTER))
    return frame.astype(np.uint8), np.concatenate([centre - half, centre + half])


def _mask(side: int, with_shoulders: bool) -> NDArray[np.float32]:
    """What of an image is pasted, (side, side, 1) from 0 to 1: the head, or shoulders too."""
    mask = np.zeros((side, side), np.float32)
    ellipses = [(0.47, 0.30, 0.38), (1.0, 0.5, 0.3)][: 1 + with_shoulders]
    for y, half_width, half_height in ellipses:
        axes = (int(side * half_width), int(side * half_height))
        cv2.ellipse(mask, (side // 2, int(side * y)), axes, 0, 0, 360, 1, -1)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), side * 0.025)[..., None])


if __name__ == "__main__":
    main()

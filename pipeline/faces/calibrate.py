"""Measure where a detector's boxes lie on faces with known landmarks.

    python -m emopipe.pipeline.faces.calibrate landmarks68.parquet --detector centerface

The values that it prints are the constants in `pipeline.faces.detectors`. The file is a Parquet
table of face images, see `emonet.data.landmarks68.read_samples`.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.data.landmarks68 import Sample, read_samples
from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector
from emopipe.pipeline.faces.detectors import DETECTORS, load_detector

PADDING = 0.5
"""Border added to each image, in units of its side: the images show less background than frames."""


class CalibrationError(EmopipeError):
    """Images on which no face is found, so that nothing can be measured."""


@dataclass(frozen=True)
class Measurement:
    """Where the landmarks lie relative to a detector's boxes.

    Attributes:
        n_images: number of images, mirror images included.
        ratios: (found, 3) float64, for each face found: x and y of the landmarks' centre relative
            to the box's, and the landmarks' mean extent, in units of the box's mean side.
    """

    n_images: int
    ratios: NDArray[np.float64]

    @property
    def calibration(self) -> BoxToLandmarks:
        """The medians."""
        x, y, scale = np.median(self.ratios, axis=0).tolist()
        return BoxToLandmarks((x, y), scale)


def measure(detector: Detector, samples: Iterable[Sample], padding: float = PADDING) -> Measurement:
    """Run a detector on images and their mirror images.

    With the mirror images the result does not depend on which way people happened to face.

    Args:
        detector: the detector.
        samples: images of one face each.
        padding: width of the border around them, which repeats the edge pixels, in units of their
            side.

    Raises:
        CalibrationError: it found no face at all.
    """
    n_images = 0
    ratios = []
    for sample in samples:
        for one in (sample, _mirrored(sample)):
            n_images += 1
            padded = _padded(one, padding)
            (faces,) = detector.detect([padded.image])
            low, high = padded.landmarks.min(axis=0), padded.landmarks.max(axis=0)
            if not len(faces):
                continue
            x1, y1, x2, y2 = faces.boxes[0].tolist()
            centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
            if (centre < low).any() or (centre > high).any():
                continue
            shift = (low + high) / 2 - centre
            ratios.append([*shift, (high - low).mean()] / faces.sides[0])
    if not ratios:
        raise CalibrationError(f"{detector.name} found no face on {n_images} images")
    return Measurement(n_images, np.array(ratios))


def report(measurement: Measurement, calibration: BoxToLandmarks) -> str:
    """Describe a measurement in text.

    Args:
        measurement: the measurement.
        calibration: the calibration whose error on the measured faces is to be reported.
    """
    ratios = measurement.ratios
    lines = [
        f"{len(ratios)} faces found on {measurement.n_images} images "
        f"({len(ratios) / measurement.n_images:.1%}), in units of the box's mean side:"
    ]
    for name, values in zip(("shift x", "shift y", "scale"), ratios.T, strict=True):
        low, median, high = np.percentile(values, [25, 50, 75])
        lines.append(f"  {name}  median {median:+.3f}  quartiles {low:+.3f} to {high:+.3f}")
    off = np.hypot(*(ratios[:, :2] - calibration.shift).T) / ratios[:, 2]
    wrong = np.abs(np.log(calibration.scale / ratios[:, 2]))
    x, y = calibration.shift
    lines.append(
        f"with shift ({x:+.3f}, {y:+.3f}) and scale {calibration.scale:.3f} the landmarks' box is "
        "off, in units of their mean extent (median, 95th percentile):"
    )
    for name, values in (("centre", off), ("extent", wrong)):
        median, high = np.percentile(values, [50, 95])
        lines.append(f"  {name}  {median:.1%}, {high:.1%}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m emopipe.pipeline.faces.calibrate",
        description="Measure where a detector's boxes lie on faces with known landmarks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("samples", type=Path, help="Parquet file: jpg, landmarks (68 x y pairs)")
    parser.add_argument(
        "--detector", choices=DETECTORS, default=DETECTORS[0], help="what to measure"
    )
    parser.add_argument("--detector-weights", type=Path, help="its weights: a file or a folder")
    parser.add_argument("--rows", type=int, help="how many images (default: all)")
    parser.add_argument(
        "--padding", type=float, default=PADDING, help="border, in units of the image's side"
    )
    options = parser.parse_args(arguments)
    try:
        detector = load_detector(options.detector, weights=options.detector_weights)
        measurement = measure(
            detector, read_samples(options.samples, options.rows), options.padding
        )
    except EmopipeError as error:
        raise SystemExit(f"calibrate: {error}") from error
    print(f"{detector.name}: {report(measurement, measurement.calibration)}")


def _mirrored(sample: Sample) -> Sample:
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        landmarks=np.abs([sample.image.shape[1], 0] - sample.landmarks),
    )


def _padded(sample: Sample, padding: float) -> Sample:
    height, width = sample.image.shape[:2]
    x, y = round(width * padding), round(height * padding)
    image = cv2.copyMakeBorder(sample.image, y, y, x, x, cv2.BORDER_REPLICATE)
    return replace(sample, image=image, landmarks=sample.landmarks + np.array([x, y]))


if __name__ == "__main__":
    main()

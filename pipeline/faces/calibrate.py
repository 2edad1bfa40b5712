"""Measure where a detector's boxes lie on faces with known landmarks.

    python -m emopipe.pipeline.faces.calibrate landmarks68.parquet --detector centerface

The figures it prints are the constants of `pipeline.faces.detectors`. The file is a Parquet table
of face pictures, see `emonet.data.landmarks68.read_samples`.
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
"""Border put around each picture, in units of its side: such crops are tighter than frames are."""


class CalibrationError(EmopipeError):
    """Nothing can be measured on these pictures."""


@dataclass(frozen=True)
class Measurement:
    """What a detector's boxes have to do with the landmarks.

    Attributes:
        looked_at: pictures, mirror images included.
        ratios: (found, 3) float64: for each face found, the landmarks' centre relative to the
            box's (x, y) and the landmarks' mean extent, in units of the box's mean side.
    """

    looked_at: int
    ratios: NDArray[np.float64]

    @property
    def calibration(self) -> BoxToLandmarks:
        """The medians."""
        x, y, scale = np.median(self.ratios, axis=0).tolist()
        return BoxToLandmarks((x, y), scale)


def measure(detector: Detector, samples: Iterable[Sample], padding: float = PADDING) -> Measurement:
    """Let a detector find the faces of pictures and of their mirror images.

    With the mirror images it does not matter which way the people happened to look.

    Args:
        detector: the detector.
        samples: pictures of one face each.
        padding: border put around them, in units of their side: the edge pixels, repeated.

    Raises:
        CalibrationError: it found no face at all.
    """
    looked_at = 0
    ratios = []
    for sample in samples:
        for one in (sample, _mirrored(sample)):
            looked_at += 1
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
        raise CalibrationError(f"{detector.name} found no face on {looked_at} pictures")
    return Measurement(looked_at, np.array(ratios))


def report(measurement: Measurement, calibration: BoxToLandmarks) -> str:
    """Put a measurement into words.

    Args:
        measurement: what was measured.
        calibration: the one to judge by it.
    """
    ratios = measurement.ratios
    lines = [
        f"{len(ratios)} faces found on {measurement.looked_at} pictures "
        f"({len(ratios) / measurement.looked_at:.1%}), in units of the box's mean side:"
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
    parser.add_argument("--rows", type=int, help="how many pictures (default: all)")
    parser.add_argument(
        "--padding", type=float, default=PADDING, help="border, in units of the picture's side"
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

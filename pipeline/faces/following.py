"""Between detections a face's place comes from its landmarks one frame before: `detect_every`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.faces.align import CropMode, crop_boxes, cut, to_frame
from emopipe.pipeline.faces.base import Detector, Faces, overlaps
from emopipe.pipeline.faces.selection import Selection, select, selected
from emopipe.pipeline.media.cuts import CUT_LEVELS, difference, thumbnail

if TYPE_CHECKING:
    from emopipe.emonet.predictor import Predictions, Predictor

MAX_STEP_S = 0.12
"""Faces are followed to a frame at most this much later than the one before: sampled at 10 frames/s
or more, and not across missing frames."""

GUIDING_POINTS = slice(17, 68)
"""All but the outline (300-W order), which is the least certain."""

LEAST_SCORE = 0.6
"""Below this landmark score a face is not followed: its landmarks do not say where it is."""

LEAST_SCORE_RATIO = 0.9
"""Nor is it below this share of its landmark score at the detection."""

MOST_OVERLAP = 0.3
"""Followed boxes that overlap by more (intersection over union) may have slid onto one face."""


@dataclass(frozen=True)
class FollowedFaces:
    """The faces of one frame, and what the network says of them.

    Attributes:
        faces: n faces. A followed one has the score of the detection from which it is followed.
        crop_boxes: (n, 4) float32, where the crops lie, in pixels of the frame.
        crops: (n, size, size, 3) uint8 RGB.
        predictions: for the crops.
    """

    faces: Faces
    crop_boxes: NDArray[np.float32]
    crops: NDArray[np.uint8]
    predictions: Predictions


@dataclass(frozen=True)
class _Frame:
    """A frame to search: (height, width, 3) uint8 RGB, its time in s, its thumbnail."""

    image: NDArray[np.uint8]
    time: float
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class _Chain:
    """Faces from their detection to the last frame on which they were seen.

    Attributes:
        detected: the faces of the frame on which the chain began.
        landmarks: (n, 68, 2) on it, in pixels of the frame.
        last_landmarks: (n, 68, 2) on the last frame.
        last_time: the last frame's, s.
        last_thumbnail: the last frame's, see `pipeline.media.cuts`.
    """

    detected: FollowedFaces
    landmarks: NDArray[np.float32]
    last_landmarks: NDArray[np.float32]
    last_time: float
    last_thumbnail: NDArray[np.uint8]


class Follower:
    """Finds faces on consecutive frames with few detections.

    A chain of frames begins with a detection. The chains of a call go through detector and network
    side by side, so that batches stay large; what is found on a frame depends on its chain alone.

    Args:
        detector: finds faces.
        predictor: gives their landmarks.
        selection: which faces are kept: of those detected, and again of those followed.
        mode: how crops lie, see `crop_boxes`.
    """

    def __init__(
        self, detector: Detector, predictor: Predictor, selection: Selection, mode: CropMode
    ) -> None:
        self._detector = detector
        self._predictor = predictor
        self._selection = selection
        self._mode = mode
        self._chain: _Chain | None = None
        self._period: int | None = None  # the last frame's

    def find(
        self,
        images: Sequence[NDArray[np.uint8]],
        times: Sequence[float],
        periods: NDArray[np.int64],
    ) -> list[FollowedFaces]:
        """Find the faces of frames that follow those of the call before.

        Args:
            images: f (height, width, 3) uint8 RGB frames, of one size.
            times: f, in s, ascending.
            periods: (f,) ascending; on the first frame of each, faces are detected.
        """
        due = np.diff(periods, prepend=-1 if self._period is None else self._period) != 0
        self._period = int(periods[-1])
        found: dict[int, FollowedFaces] = {}
        frames_of = np.split(np.arange(len(images)), np.flatnonzero(due))
        chains = [self._chain, *[None] * (len(frames_of) - 1)]
        for step in range(max(map(len, frames_of))):
            active = [c for c, frames in enumerate(frames_of) if step < len(frames)]
            frames = [int(frames_of[c][step]) for c in active]
            results = self._step(
                [_Frame(images[i], times[i], thumbnail(images[i])) for i in frames],
                [chains[c] for c in active],
            )
            for c, i, (seen, chain) in zip(active, frames, results, strict=True):
                found[i], chains[c] = self._kept(seen), chain
        self._chain = chains[-1]
        return [found[i] for i in range(len(images))]

    def _kept(self, seen: FollowedFaces) -> FollowedFaces:
        """The faces that the selection keeps where they have moved to."""
        kept = selected(seen.faces, self._selection)
        return FollowedFaces(
            seen.faces[kept], seen.crop_boxes[kept], seen.crops[kept], seen.predictions[kept]
        )

    def _step(
        self, frames: list[_Frame], chains: list[_Chain | None]
    ) -> list[tuple[FollowedFaces, _Chain]]:
        """Take each chain one frame further; where it breaks, another begins."""
        results: dict[int, tuple[FollowedFaces, _Chain]] = {}
        places = {
            i: place
            for i, (frame, chain) in enumerate(zip(frames, chains, strict=True))
            if chain and (place := _followed(chain, frame)) is not None
        }
        for i, seen in self._predicted(frames, places).items():
            chain = chains[i]
            assert chain
            if not _is_lost(chain, seen):
                results[i] = seen, _continued(chain, frames[i], self._landmarks(seen))
        rest = [i for i in range(len(frames)) if i not in results]
        detected = self._detector.detect([frames[i].image for i in rest])
        selected = [select(faces, self._selection) for faces in detected]
        places = dict(zip(rest, selected, strict=True))
        for i, seen in self._predicted(frames, places).items():
            landmarks = self._landmarks(seen)
            chain = _Chain(seen, landmarks, landmarks, frames[i].time, frames[i].thumbnail)
            results[i] = seen, chain
        return [results[i] for i in range(len(frames))]

    def _predicted(
        self, frames: list[_Frame], places: dict[int, Faces]
    ) -> dict[int, FollowedFaces]:
        """Crop the faces of some of the frames, and run the network on all of them."""
        checkpoint = self._predictor.checkpoint
        size = checkpoint.input_size
        boxes = {
            i: crop_boxes(faces, self._detector.calibration, checkpoint.crop, self._mode)
            for i, faces in places.items()
        }
        crops = {i: cut(frames[i].image, boxes[i], size) for i in places}
        none = np.zeros((0, size, size, 3), np.uint8)
        predictions = self._predictor(np.concatenate([none, *crops.values()]))
        parts = np.cumsum([0, *map(len, crops.values())])
        return {
            i: FollowedFaces(places[i], boxes[i], crops[i], predictions[first:last])
            for i, (first, last) in zip(places, pairwise(parts.tolist()), strict=True)
        }

    def _landmarks(self, seen: FollowedFaces) -> NDArray[np.float32]:
        size = self._predictor.checkpoint.input_size
        return to_frame(seen.predictions.landmarks, seen.crop_boxes, size)


def moved(
    boxes: NDArray[np.float32], before: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Move boxes as their points move: by the shift of the points' mean, and by their spread.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 in pixels.
        before: (n, k, 2) points of each box's face, x y in pixels.
        after: (n, k, 2) the same points later.

    Returns:
        (n, 4) float32.
    """
    centres, later = before.mean(axis=1), after.mean(axis=1)
    spreads = [
        np.sqrt(((points - centre[:, None]) ** 2).sum(axis=(1, 2)))
        for points, centre in ((before, centres), (after, later))
    ]
    scales = (spreads[1] / np.maximum(spreads[0], 1e-6))[:, None, None]
    corners = (boxes.reshape(-1, 2, 2) - centres[:, None]) * scales + later[:, None]
    moved_boxes: NDArray[np.float32] = corners.reshape(-1, 4).astype(np.float32)
    return moved_boxes


def _followed(chain: _Chain, frame: _Frame) -> Faces | None:
    """Where the chain's faces are on the next frame; None where only a detection can tell."""
    if frame.time - chain.last_time > MAX_STEP_S:
        return None
    if difference(frame.thumbnail, chain.last_thumbnail) > CUT_LEVELS:
        return None
    faces = chain.detected.faces
    boxes = moved(
        faces.boxes, chain.landmarks[:, GUIDING_POINTS], chain.last_landmarks[:, GUIDING_POINTS]
    )
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] - boxes[:, :2] >= 1).all()):
        return None
    if (np.triu(overlaps(boxes, boxes), 1) > MOST_OVERLAP).any():
        return None
    return Faces(boxes, faces.scores)


def _is_lost(chain: _Chain, seen: FollowedFaces) -> bool:
    least = np.maximum(LEAST_SCORE, LEAST_SCORE_RATIO * chain.detected.predictions.landmark_score)
    return bool((seen.predictions.landmark_score < least).any())


def _continued(chain: _Chain, frame: _Frame, landmarks: NDArray[np.float32]) -> _Chain:
    return replace(
        chain,
        last_landmarks=landmarks,
        last_time=frame.time,
        last_thumbnail=frame.thumbnail,
    )

"""Faces seen without a break: boxes of consecutive frames that are one face's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from supervision import Detections
from trackers import BIoU, SORTTracker

from emopipe.pipeline.faces.appearance import Looks
from emopipe.pipeline.faces.base import overlaps

LOST_S = 1.0
"""A tracklet ends when its face has not been seen for so long, and on two frames at least."""

SURE, UNLIKE = 8.0, 20.0
"""Distances of appearances from which they count against a link by place, and count most."""

PLACE_SHARE = 0.35
"""If more of the frame than this shows something else, there may have been a cut."""

_YOUNG = 5  # frames: until then a face may turn out to be one that was lost
_SEEN_BEFORE = 0.7  # of the similarity for a face that was not on the frame before
_LEAST_WEIGHT = 0.25
_LEAST_SIMILARITY = 0.1
_BUFFER = 0.3  # of a box's size on each side: so far may a face move between frames
_HEAD_AND_SHOULDERS = np.array([-0.2, -0.2, 0.2, 0.4])  # beyond a box, in its sizes
_MEETING = 0.1  # intersection over union of two heads and shoulders from which colours mix
_FOREVER = 10**9  # frames: which tracklets end is decided here


@dataclass(eq=False)
class Tracklet:
    """A face seen without a break.

    Attributes:
        first, last: times of its first and last frame, s.
        start, box: where it was then, (4,) x1 y1 x2 y2 in pixels of the frame.
        frames: on how many frames it has been seen.
        looks: how it has looked.
        clear: on how many frames no other face was beside it.
        ended: whether it will not go on.
        person: whose face it is; None while that is open.
    """

    first: float
    last: float
    start: NDArray[np.float32]
    box: NDArray[np.float32]
    frames: int = 0
    looks: Looks = field(default_factory=Looks)
    clear: int = 0
    ended: bool = False
    person: Person | None = None

    def see(
        self, time: float, box: NDArray[np.float32], appearance: NDArray[np.float32], clear: bool
    ) -> None:
        """Take in that the face was seen; its colours only if they are its own."""
        self.last, self.box = time, box
        self.frames += 1
        if clear and not self.clear:
            self.looks = Looks()
        if clear or not self.clear:
            self.looks.add(appearance)
        self.clear += clear


@dataclass(eq=False)
class Person:
    """Somebody seen in a video.

    Attributes:
        looks: how they have looked.
        last: when they were last seen, s.
        box: where, (4,) x1 y1 x2 y2 in pixels of the frame.
        shot: in which shot, from 0.
        tracklet: their latest.
        decided: when it was decided that they are nobody known, s.
        confirmed: whether they are more than a flicker of the detector: seen on two frames, or on
            the only one of a shot.
        gone: whether they will not be seen again.
        track: their number; None as long as nobody has asked for it.
    """

    looks: Looks
    last: float
    box: NDArray[np.float32]
    shot: int
    tracklet: Tracklet
    decided: float
    confirmed: bool = False
    gone: bool = False
    track: int | None = None


class TrackletFinder:
    """Links the boxes of consecutive frames.

    SORT (Bewley et al., "Simple online and realtime tracking", ICIP 2016) in the implementation of
    the library `trackers`; where faces meet, the appearance tells which is which.
    """

    def __init__(self) -> None:
        self._similarity = _PlaceAndLooks()
        self._sort = SORTTracker(
            lost_track_buffer=_FOREVER,
            minimum_consecutive_frames=1,
            track_activation_threshold=0.0,
            minimum_iou_threshold=_LEAST_SIMILARITY,
            iou=self._similarity,
        )
        self._tracklets: dict[int, Tracklet] = {}
        self._next = 0

    def update(
        self,
        time: float,
        boxes: NDArray[np.float32],
        appearances: NDArray[np.float32],
        changed: float,
    ) -> list[Tracklet]:
        """Give the tracklet of each face of the next frame.

        Args:
            time: the frame's, s.
            boxes: (n, 4) x1 y1 x2 y2 in pixels of the frame.
            appearances: (n, 16), see `pipeline.faces.appearance`.
            changed: the share of the frame that shows something else than the one before.
        """
        self._end_lost(time)
        if not len(boxes) and not self._sort.tracks:
            return []
        tracks = [self._tracklets[track.tracker_id] for track in self._sort.tracks]
        self._similarity.looks = [tracklet.looks for tracklet in tracks]
        self._similarity.weights = np.array(
            [_SEEN_BEFORE if track.time_since_update else 1.0 for track in self._sort.tracks]
        )
        self._similarity.appearances = appearances
        self._similarity.place_counts = changed <= PLACE_SHARE
        found = self._sort.update(Detections(xyxy=boxes))
        new = np.flatnonzero(found.tracker_id < 0).tolist()
        # The tracker numbers a face from its second frame on.
        for face, track in zip(new, self._sort.tracks[-len(new) :] if new else (), strict=True):
            track.tracker_id = found.tracker_id[face] = self._next
            self._tracklets[self._next] = Tracklet(time, time, boxes[face], boxes[face])
            self._next += 1
        seen = [self._tracklets[number] for number in found.tracker_id.tolist()]
        self._end_resembling(appearances[[t.frames < _YOUNG for t in seen]])
        for tracklet, box, looks, clear in zip(
            seen, boxes, appearances, _stand_clear(boxes), strict=True
        ):
            tracklet.see(time, box, looks, bool(clear))
        return seen

    def end(self, tracklet: Tracklet) -> None:
        """End a tracklet that is not on the last frame: its face goes on as another one."""
        self._keep({n: t for n, t in self._tracklets.items() if t is not tracklet})

    def end_all(self) -> None:
        """End all tracklets: after a cut, place says nothing."""
        self._keep({})

    def _end_lost(self, time: float) -> None:
        lost = {
            track.tracker_id
            for track in self._sort.tracks
            if track.time_since_update > 1
            and time - self._tracklets[track.tracker_id].last > LOST_S
        }
        if lost:
            self._keep({n: t for n, t in self._tracklets.items() if n not in lost})

    def _end_resembling(self, new: NDArray[np.float32]) -> None:
        """End what is lost and looks like a face that has just appeared.

        Else it might go on where the face comes by once more, with a hole in which it was another.
        """
        lost = {
            track.tracker_id
            for track in self._sort.tracks
            if track.time_since_update
            and self._tracklets[track.tracker_id].looks.distances(new).min(initial=np.inf) < SURE
        }
        if lost:
            self._keep({n: t for n, t in self._tracklets.items() if n not in lost})

    def _keep(self, tracklets: dict[int, Tracklet]) -> None:
        for number, tracklet in self._tracklets.items():
            tracklet.ended = number not in tracklets
        self._tracklets = tracklets
        self._sort.tracks = [t for t in self._sort.tracks if t.tracker_id in tracklets]


class _PlaceAndLooks(BIoU):  # type: ignore[misc]  # the library has no types
    """How well boxes fit predicted ones: their overlap, less where appearances differ.

    Attributes:
        looks: of the tracker's tracks, in their order.
        weights: (tracks,), less for those that were not on the frame before.
        appearances: (n, 16) of the boxes.
        place_counts: whether faces that differ wholly may be one by place alone.
    """

    def __init__(self) -> None:
        super().__init__(buffer_ratio=_BUFFER)
        self.looks: list[Looks] = []
        self.weights = np.zeros(0)
        self.appearances = np.zeros((0, 0), np.float32)
        self.place_counts = True

    def _compute(
        self, predicted: NDArray[np.float64], boxes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        distances = np.stack([looks.distances(self.appearances) for looks in self.looks])
        doubt = ((distances - SURE) / (UNLIKE - SURE)).clip(0, 1)
        fit: NDArray[np.float64] = super()._compute(predicted, boxes)
        least = _LEAST_WEIGHT if self.place_counts else 0
        return fit * (1 - (1 - least) * doubt) * self.weights[:, None]


def _stand_clear(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each face's head and shoulders (n,) lie apart from the others'."""
    if len(boxes) < 2:
        return np.ones(len(boxes), bool)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    regions = boxes + sides * _HEAD_AND_SHOULDERS
    met = overlaps(regions, regions) > _MEETING
    np.fill_diagonal(met, False)
    return np.asarray(~met.any(axis=1))

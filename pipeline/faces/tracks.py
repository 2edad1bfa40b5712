"""Which faces are one person's: a number that a face keeps through a video.

Within a shot place decides, see `pipeline.faces.tracklets`. After a crossing, an absence or a cut a
face is that of the person seen before whom it looks like; all faces that come together are matched
together, and nobody has two faces on a frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from emopipe.pipeline.faces.tracklets import Person, Tracklet, TrackletFinder
from emopipe.pipeline.media.cuts import CUT_SHARE

ALIKE = 14.0
"""Within this distance of appearances two faces may be one person's. Of people from whom nothing
was learnt so near are 97 % of one's images in one scene, and 5 % of those of two people."""

ALIKE_NEAR = 20.0
"""The same where place agrees: within one shot, at most `NEAR_S` later, within a face's size."""

NEAR_S = 1.5

DECISION_S = 10.0
"""Whose face it is, is decided when it has been seen for so long, or is seen no more."""

_LEAST_FRAMES = 3  # of a face that is to be compared
_MOST_GROWTH = 1.6  # of a face near the place where one was lost


class Tracker:
    """Tells whose faces are on the frames of a video, which are given in order.

    Args:
        max_gap: s, for how long a person who is not seen is remembered.
    """

    def __init__(self, max_gap: float) -> None:
        self._max_gap = max_gap
        self._finder = TrackletFinder()
        self._open: list[Tracklet] = []
        self._people: list[Person] = []
        self._time = 0.0
        self._shot = 0
        self._shot_frames = 0

    def update(
        self,
        time: float,
        boxes: NDArray[np.float32],
        appearances: NDArray[np.float32],
        changed: float,
    ) -> list[Tracklet]:
        """Take in the next frame.

        Args:
            time: the frame's, s.
            boxes: (n, 4) x1 y1 x2 y2 of its faces, in pixels of the frame.
            appearances: (n, 16), see `pipeline.faces.appearance`.
            changed: the share of the frame that shows something else than the one before.

        Returns:
            The faces' tracklets; `is_decided` says when it is known whose they are.
        """
        if changed > CUT_SHARE:
            self._end_shot()
        self._time = time
        self._shot_frames += 1
        seen = self._finder.update(time, boxes, appearances, changed)
        for tracklet in seen:
            if tracklet.frames == 1:
                self._open.append(tracklet)
            elif tracklet.person:
                self._see(tracklet.person, tracklet)
        self._decide()
        self._forget()
        return seen

    def finish(self) -> None:
        """The video is over: all is decided."""
        self._end_shot()
        for person in self._people:
            person.gone = True

    def _end_shot(self) -> None:
        self._finder.end_all()
        self._decide()
        if self._shot_frames == 1:
            for person in self._people:
                person.confirmed |= person.shot == self._shot
        self._shot += 1
        self._shot_frames = 0

    def _decide(self) -> None:
        """Decide what is due; before each, those that it may continue."""
        due = [tracklet for tracklet in self._open if _is_due(tracklet)]
        if not due:
            return
        latest = max(tracklet.first for tracklet in due)
        due = [t for t in self._open if t in due or t.last < latest]
        while due:
            earliest = min(tracklet.last for tracklet in due)
            together = [tracklet for tracklet in due if tracklet.first <= earliest]
            self._decide_together(together)
            due = [tracklet for tracklet in due if tracklet not in together]

    def _decide_together(self, due: list[Tracklet]) -> None:
        # Who is there at the same time takes part, lest another takes the person who they are.
        end = min(tracklet.last for tracklet in due)
        beside = [t for t in self._open if t.first <= end and t.frames >= _LEAST_FRAMES]
        matches = self._matches([*due, *(t for t in beside if t not in due)])
        for tracklet in due:
            person = matches.get(tracklet) or self._new_person(tracklet)
            if person.tracklet is not tracklet:
                self._finder.end(person.tracklet)
                person.looks.absorb(tracklet.looks)
                person.confirmed = True
            tracklet.person, tracklet.looks = person, person.looks
            self._see(person, tracklet)
            self._open.remove(tracklet)

    def _new_person(self, tracklet: Tracklet) -> Person:
        person = Person(
            looks=tracklet.looks,
            last=tracklet.last,
            box=tracklet.box,
            shot=self._shot,
            tracklet=tracklet,
            decided=self._time,
        )
        self._people.append(person)
        return person

    def _matches(self, tracklets: list[Tracklet]) -> dict[Tracklet, Person]:
        """The people whom tracklets continue, as far as there are such."""
        if not self._people:
            return {}
        costs = np.array([[self._cost(t, person) for person in self._people] for t in tracklets])
        # To be nobody known costs 1.
        rows, columns = linear_sum_assignment(
            np.concatenate([costs.clip(max=2), np.ones((len(tracklets),) * 2)], axis=1)
        )
        return {
            tracklets[row]: self._people[column]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            if column < len(self._people) and costs[row, column] < 1
        }

    def _cost(self, tracklet: Tracklet, person: Person) -> float:
        """How unlike a person's a tracklet is, from 0; from 1 on it is not theirs."""
        gap = tracklet.first - person.last
        if not 0 < gap <= self._max_gap:
            return np.inf
        near = person.shot == self._shot and gap <= NEAR_S and _is_near(tracklet.start, person.box)
        return person.looks.apart(tracklet.looks) / (ALIKE_NEAR if near else ALIKE)

    def _see(self, person: Person, tracklet: Tracklet) -> None:
        person.last, person.box, person.shot = tracklet.last, tracklet.box, self._shot
        person.tracklet = tracklet
        person.confirmed |= tracklet.frames > 1

    def _forget(self) -> None:
        for person in self._people:
            if person.confirmed:
                unseen = self._time - person.last > self._max_gap
                person.gone = unseen and person.tracklet.ended
            else:  # only what began before it was decided may confirm that it is a face
                began = [tracklet.first for tracklet in self._open]
                person.gone = person.tracklet.ended and min(began, default=np.inf) > person.decided
        self._people = [person for person in self._people if not person.gone]


def is_decided(tracklet: Tracklet) -> bool:
    """Whether it is known whose face a tracklet is, or that it is none that lasts."""
    person = tracklet.person
    return person is not None and (person.confirmed or person.gone)


def _is_due(tracklet: Tracklet) -> bool:
    return tracklet.ended or tracklet.last - tracklet.first >= DECISION_S


def _is_near(start: NDArray[np.float32], box: NDArray[np.float32]) -> bool:
    """Whether a face of the one box may have come from the other."""
    sides = (start[2:] - start[:2]).mean(), (box[2:] - box[:2]).mean()
    way = np.abs((start[:2] + start[2:] - box[:2] - box[2:]) / 2).max()
    return bool(way <= max(sides) and max(sides) <= _MOST_GROWTH * min(sides))

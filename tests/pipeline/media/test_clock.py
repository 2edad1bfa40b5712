"""A video's clock is the container's: only frames that cannot have its time get another."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopipe.pipeline.media.clock import MAX_REORDER, find_restarts, read_clock

RATE = 25.0
MS = 1e-3

gaps = st.lists(st.integers(2, 4000), min_size=1, max_size=60)


def at(gaps_ms: list[int], start_ms: int = 0) -> np.ndarray:
    return (start_ms + np.cumsum([0, *gaps_ms])) / 1000


@given(gaps, st.integers(-10_000, 95_000_000))
def test_a_sound_clock_is_kept_to_the_bit(gaps_ms: list[int], start_ms: int) -> None:
    stamps = at(gaps_ms, start_ms)
    clock = read_clock(stamps, RATE)
    np.testing.assert_array_equal(clock.times, stamps)
    assert (clock.notes, clock.made_up) == ((), False)


@given(gaps, st.data())
def test_only_the_frames_that_tie_are_moved_and_by_less_than_1_ms(
    gaps_ms: list[int], data: st.DataObject
) -> None:
    stamps = at(gaps_ms)
    times_to_tie = st.lists(
        st.integers(0, len(stamps) - 1), min_size=1, max_size=len(stamps) // 2 or 1
    )
    repeated = np.sort(np.append(stamps, stamps[data.draw(times_to_tie)]))
    clock = read_clock(repeated, RATE)
    assert (np.diff(clock.times) > 0).all()
    first = np.diff(repeated, prepend=-1) > 0
    np.testing.assert_array_equal(clock.times[first], repeated[first])
    assert np.abs(clock.times - repeated).max() < MS
    tied = int((~first).sum())
    assert clock.notes == (
        f"frames with the timestamp of the frame before, moved by less than 1 ms: {tied}",
    )


@given(gaps, st.data())
def test_missing_timestamps_are_filled_in_between_neighbours(
    gaps_ms: list[int], data: st.DataObject
) -> None:
    stamps = at(gaps_ms)
    lost = data.draw(st.sets(st.integers(0, len(stamps) - 1), min_size=1, max_size=len(stamps) - 1))
    holes = stamps.copy()
    holes[list(lost)] = np.nan
    clock = read_clock(holes, RATE)
    kept = np.isfinite(holes)
    np.testing.assert_array_equal(clock.times[kept], stamps[kept])
    assert (np.diff(clock.times) > 0).all()
    assert "without a timestamp" in clock.notes[0]


@given(
    parts=st.lists(st.integers(MAX_REORDER + 1, 60), min_size=2, max_size=5),
    starts=st.data(),
)
def test_joined_clips_go_on_from_the_jump(parts: list[int], starts: st.DataObject) -> None:
    """Clips of one length whose clocks begin anew, each anywhere before the last one's end."""
    clips = [np.arange(length) * 40 for length in parts]
    stamps = [clips[0]]
    for clip in clips[1:]:
        latest = int(stamps[-1][-1])
        jump = starts.draw(st.integers(MAX_REORDER * 40 + 40, 100_000))
        stamps.append(clip + latest - jump)
    clock = read_clock(np.concatenate(stamps) / 1000, RATE)
    np.testing.assert_allclose(clock.times, np.arange(sum(parts)) / RATE, atol=1e-6)
    assert re.fullmatch(rf"joined or restarted clocks.*: {len(parts) - 1}", clock.notes[0])


@pytest.mark.parametrize("length", [2, 5, 12, 24, 200])
def test_short_clips_that_begin_at_the_same_time_go_on_as_well(length: int) -> None:
    clip = 46_220 + np.arange(length) / RATE
    clock = read_clock(np.concatenate([clip] * 3), RATE)
    np.testing.assert_allclose(clock.times - 46_220, np.arange(3 * length) / RATE, atol=1e-6)


def test_pauses_stay_and_leaps_to_another_clock_do_not() -> None:
    stamps = np.arange(40) / RATE
    paused = np.where(np.arange(40) < 20, stamps, stamps + 600)
    np.testing.assert_array_equal(read_clock(paused, RATE, may_leap=True).times, paused)
    leapt = np.where(np.arange(40) < 20, stamps, stamps + 46_220)
    np.testing.assert_array_equal(read_clock(leapt, RATE).times, leapt)
    clock = read_clock(leapt, RATE, may_leap=True)
    np.testing.assert_allclose(clock.times, stamps, atol=1e-9)
    assert re.fullmatch(r"joined or restarted clocks.*: 1", clock.notes[0])


@pytest.mark.parametrize("wrong", [1e6, -1e3])
def test_a_single_wild_timestamp_is_replaced(wrong: float) -> None:
    stamps = np.arange(40) / RATE
    bad = stamps.copy()
    bad[7] = wrong
    clock = read_clock(bad, RATE)
    np.testing.assert_allclose(clock.times, stamps)
    assert re.fullmatch(r"frames with a timestamp far from.*: 1", clock.notes[0])


@given(
    groups=st.lists(st.integers(1, MAX_REORDER), min_size=1, max_size=6),
)
def test_timestamps_in_decoding_order_are_put_in_order(groups: list[int]) -> None:
    """As AVI gives them to frames in presentation order: a frame after the ones it serves."""
    stamps = [0]
    for between in groups:
        base = stamps[-1] if len(stamps) == 1 else max(stamps)
        stamps += [*range(base + 2, base + 2 + between), base + 1]
    clock = read_clock(np.array(stamps) / RATE, RATE)
    np.testing.assert_allclose(clock.times, np.arange(len(stamps)) / RATE)
    assert clock.notes == ()
    assert find_restarts(np.array(stamps, float)) == []


@pytest.mark.parametrize(
    "stamps",
    [
        [np.nan] * 50,
        [0.0] * 50,
        [0.0] * 30 + [0.04] * 20,
        list(np.arange(50) * 1e8 + 2e9),
        list(np.arange(50) * 1e-6),
        list(np.arange(50) * 1e5),
    ],
    ids=["none", "equal", "two", "late", "dense", "sparse"],
)
def test_only_without_a_usable_clock_are_times_made_up(stamps: list[float]) -> None:
    clock = read_clock(np.array(stamps), RATE)
    np.testing.assert_array_equal(clock.times, np.arange(50) / RATE)
    assert clock.made_up
    assert clock.notes == ("its frames have no usable timestamps: times are made up, 25 frames/s",)


def test_a_photo_needs_no_clock() -> None:
    clock = read_clock(np.array([np.nan]), RATE)
    assert (clock.times.tolist(), clock.notes) == ([0.0], ())


@given(st.lists(st.one_of(st.integers(-(10**6), 10**6), st.none()), min_size=1, max_size=80))
def test_times_increase_strictly_whatever_the_timestamps(stamps: list[int | None]) -> None:
    found = np.array([np.nan if stamp is None else stamp / 1000 for stamp in stamps])
    clock = read_clock(found, RATE)
    assert len(clock.times) == len(stamps)
    assert np.isfinite(clock.times).all()
    assert (np.diff(clock.times) > 0).all()

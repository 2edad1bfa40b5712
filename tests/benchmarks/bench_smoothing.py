"""`bench_smoothing.py CLIPS`: how often the emotion of a track changes, raw and smoothed.

Prints changes a minute of each clip with each smoothing, over the time that tracks are seen.
"""

import sys
from pathlib import Path

import pandas as pd

import emopipe

SMOOTHINGS = ("emonet", 0.2, 0.5, 1.0)


def main(clips: list[Path]) -> None:
    """Analyze the clips once with each smoothing, and print their changes a minute."""
    print("clip", "raw", *SMOOTHINGS, sep="\t")
    for clip in clips:
        tables = [emopipe.analyze(clip, smooth=one, landmarks="none").rows for one in SMOOTHINGS]
        counts = [changes_per_minute(tables[0], "emotion")]
        counts += [changes_per_minute(rows, "emotion_smooth") for rows in tables]
        print(clip.name, *(f"{count:.1f}" for count in counts), sep="\t")


def changes_per_minute(rows: pd.DataFrame, column: str) -> float:
    """How often a column changes from a sampled frame to the next, of one track.

    Args:
        rows: of one video.
        column: its name.

    Returns:
        Changes a minute of the time between such frames; NaN without tracks.
    """
    on_track = rows.assign(rank=rows["frame"].rank(method="dense")).dropna(subset="track")
    by_track = on_track.groupby("track")
    goes_on = by_track["rank"].diff() == 1
    changes = on_track[column].astype(str) != by_track[column].shift().astype(str)
    minutes = by_track["time"].diff()[goes_on].sum() / 60
    return float(changes[goes_on].sum() / minutes) if minutes else float("nan")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])

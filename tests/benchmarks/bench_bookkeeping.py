"""`make bench-bookkeeping`: 100,000 spans of a stub decoder through the real books and store.

A thousand videos, and one of 18 hours. Each is measured in a process of its own: its memory must
stay below 500 MiB, and twice the spans may take twice the time and little more.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.jobs.analysis.messages import SegmentTask, SpanRows
from emopipe.jobs.analysis.scheduler import Scheduler
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media import sampling
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.table.parts import encode_part
from emopipe.pipeline.table.schema import span_rows
from emopipe.pipeline.table.store import open_store

SPAN_FRAMES = 16
SEGMENT_SPANS = 16
MOST_MIB = 500
MOST_RATIO = 2.5
"""Of the times for all and for half of the spans."""


def every_frame(video: Video) -> np.ndarray:
    """The sampling of all frames."""
    return np.arange(video.frames)


def stub_answers(task: SegmentTask, schema: pa.Schema) -> Iterator[SpanRows]:
    """What a worker would answer of a video that shows nobody."""
    for span, frame_indices in task.spans.items():
        first = int(frame_indices[0])
        found, predictions = a_span([0] * len(frame_indices), task.video.name, first, stride=1)
        rows = span_rows(found, predictions, predictions.landmarks, schema)
        yield SpanRows(task.video.name, span, encode_part(rows), faces=0)


def drive(folder: Path, videos: int, frames: int) -> int:
    """Analyze so many videos of so many frames, check that all is there; bytes of all parts."""
    folder.mkdir()
    stubs = {f"{i}.mp4": a_video(folder, f"{i}.mp4", frames) for i in range(videos)}
    files = [InputFile(video.path, name) for name, video in stubs.items()]
    description = {"settings": {}}
    size = 0
    with open_store(folder / "results.parquet", description, EMOTIONS_8, "none") as store:
        scheduler = Scheduler(store, files, every_frame, SEGMENT_SPANS, ProgressCallback())
        done = []
        while task := scheduler.next_task():
            if isinstance(task, InputFile):
                scheduler.handle(stubs[task.name])
                continue
            for answer in stub_answers(task, store.schema):
                size += len(answer.part)
                if finished := scheduler.handle(answer):
                    done.append(finished)
        assert scheduler.done
        assert len(done) == len(store.finish()) == videos
    assert all((record.status, record.frames) == ("ok", frames) for _, record in done)
    return size


def measured(videos: int, frames: int) -> dict[str, float]:
    """Seconds and most memory of it, in this process."""
    sampling.SPAN_FRAMES = SPAN_FRAMES
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch:
        began = time.process_time()
        drive(Path(scratch) / "run", videos, frames)
        seconds = time.process_time() - began
    return {
        "seconds": seconds,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure each case, and half of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spans", type=int, default=100_000)
    parser.add_argument("--only", type=int, nargs=2, metavar=("VIDEOS", "FRAMES"))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(*arguments.only)))
        return
    good = True
    for what, videos in {"many videos": arguments.spans // 100, "one video": 1}.items():
        costs = []
        for spans in (arguments.spans // 2, arguments.spans):
            several = max(1, videos * spans // arguments.spans)
            frames = spans // several * SPAN_FRAMES
            command = [sys.executable, __file__, "--only", str(several), str(frames)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            costs.append(json.loads(told))
            print(
                f"{spans:,} spans, {what}: {costs[-1]['seconds']:.0f} s of CPU, "
                f"{costs[-1]['mib']:.0f} MiB",
                flush=True,
            )
        good &= costs[1]["mib"] < MOST_MIB
        good &= costs[1]["seconds"] < MOST_RATIO * costs[0]["seconds"]
    print("holds" if good else "DOES NOT HOLD")
    sys.exit(not good)


if __name__ == "__main__":
    main()

"""`make bench`: a whole real clip, frame for frame, and its speed beside a plain loop's.

The plain loop is what the published demo does: one frame, its largest face, one crop through the
network in float32. Both use the same detector and the same weights; only the way differs. Then the
network's own speed.
"""

import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.predictor import FACES_PER_BATCH, Predictor
from emopipe.pipeline.faces.align import crop_boxes, cut
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.selection import Selection, select
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.local import run
from emopipe.pipeline.settings import DEFAULT_DETECTOR, DEFAULT_MODEL, Settings
from emopipe.pipeline.table.results import read_results

CLIP = Path(__file__).parents[3] / "shared" / "data" / "videos" / "WolfgangLanger_Pexels.mp4"
FRAMES = 472


def main() -> None:
    """Measure both, and hold the clip's rows."""
    if not CLIP.exists():
        sys.exit(f"needs {CLIP.name} in ../shared/data/videos")
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch:
        out = Path(scratch) / "results.parquet"
        begun = time.perf_counter()
        run(find_inputs([CLIP]), out, Settings())
        ours = time.perf_counter() - begun
        rows = read_results(out).rows
    assert rows.frame.tolist() == list(range(FRAMES)), "a frame is missing or comes twice"
    assert (rows.face == 0).all(), "not every frame shows its one face"
    plain = plain_loop()
    print(f"emopipe    {FRAMES / ours:5.1f} frames/s (start included)")
    print(f"plain loop {FRAMES / plain:5.1f} frames/s")
    print(f"network alone, whole batches in the precision that auto picks: {alone():.0f} faces/s")


def alone() -> float:
    """Faces a second that the network takes: the median of a few dozen batches."""
    predictor = Predictor(*open_model(DEFAULT_MODEL), "cpu", "auto")
    batch = FACES_PER_BATCH["cpu"]
    size = predictor.checkpoint.input_size
    crops = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    seconds = []
    for _ in range(60):
        begun = time.perf_counter()
        predictor(crops)
        seconds.append(time.perf_counter() - begun)
    return batch / float(np.median(seconds))


def plain_loop() -> float:
    """Seconds that the clip takes one frame after the other."""
    begun = time.perf_counter()
    model, checkpoint = open_model(DEFAULT_MODEL)
    predictor = Predictor(model, checkpoint, "cpu", "float32")
    detector = load_detector(DEFAULT_DETECTOR)
    done = 0
    with av.open(str(CLIP)) as container:
        for frame in container.decode(video=0):
            image = np.asarray(frame.to_ndarray(format="rgb24"))
            [found] = detector.detect([image])
            face = select(found, Selection(faces="largest"))
            box = crop_boxes(face, detector.calibration, checkpoint.crop)
            done += len(predictor(cut(image, box, checkpoint.input_size)).valence)
    assert done == FRAMES
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

"""Made-up videos, spans and predictions, for tests of what is done with them."""

from pathlib import Path

import numpy as np

from emopipe.emonet.files import sha256_of
from emopipe.emonet.predictor import Predictions
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.schema import DetectedSpan


def a_video(
    folder: Path, name: str, frames: int, truncated_frames: int = 0, backend: str = "pyav"
) -> Video:
    """Make the index of a video of that many frames; its file cannot be decoded."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name} {frames}")
    return Video(
        path=path,
        name=name,
        backend=backend,
        width=64,
        height=48,
        rotation=0,
        times=np.arange(frames) / 25,
        pts=np.arange(frames),
        keyframe_pts=np.zeros(1, np.int64),
        fps=25.0,
        truncated_frames=truncated_frames,
        size=path.stat().st_size,
        sha256=sha256_of(path),
    )


def a_span(
    faces_per_frame: list[int], video: str = "a/clip.mp4", first: int = 0, stride: int = 2
) -> tuple[DetectedSpan, Predictions]:
    """Make a span with that many faces on each of its frames, from frame `first` on."""
    rng = np.random.default_rng([len(faces_per_frame), first])
    n = sum(faces_per_frame)
    span = DetectedSpan(
        video=video,
        span=0,
        frame_indices=first + np.arange(len(faces_per_frame), dtype=np.int32) * stride,
        times=np.arange(len(faces_per_frame)) / 12.5,
        frame=np.repeat(np.arange(len(faces_per_frame)), faces_per_frame),
        face=np.concatenate([np.arange(k) for k in faces_per_frame] or [[]]).astype(np.int16),
        boxes=rng.random((n, 4), np.float32),
        scores=rng.random(n, np.float32),
        crops=np.zeros((n, 64, 64, 3), np.uint8),
        crop_boxes=rng.random((n, 4), np.float32),
        sharpness=rng.random(n, np.float32),
        appearances=rng.random((n, 16), np.float32),
        thumbnails=rng.integers(0, 256, (len(faces_per_frame), 16, 16, 3), np.uint8),
        frame_size=(64, 48),
    )
    predictions = Predictions(
        probabilities=rng.dirichlet(np.ones(8), n).astype(np.float32),
        valence=rng.uniform(-1, 1, n).astype(np.float32),
        arousal=rng.uniform(-1, 1, n).astype(np.float32),
        landmarks=rng.random((n, 68, 2), np.float32) * 64,
        landmark_score=rng.random(n, np.float32),
    )
    return span, predictions

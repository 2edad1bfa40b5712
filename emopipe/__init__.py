"""Emotion, valence, arousal and 68 landmarks for every face in folders of videos.

    import emopipe

    results = emopipe.analyze("videos/", out="results.parquet", fps=5)
    results = emopipe.read_results("results.parquet")
    model = emopipe.load_model("emonet-lite")
    faces = emopipe.detect("group.jpg")

`help(emopipe.analyze)` and the others' help say more. Everything is loaded when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads this when PyTorch is loaded, so it stands before every import of torch. By
# default waiting threads spin for milliseconds: on 2 cores with other work beside (the decoding
# child suffices) a run took 2 to 10 times as long. Threads that sleep at once make a training step
# 1.4 times as long. So many turns, some microseconds, cost neither: beside two busy processes a run
# takes as long as with none (with 30,000 a tenth more).
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

if TYPE_CHECKING:
    from emopipe.emonet.errors import EmopipeError
    from emopipe.emonet.predictor import load_model
    from emopipe.jobs.api import analyze
    from emopipe.pipeline.faces.base import Faces
    from emopipe.pipeline.faces.detectors import detect
    from emopipe.pipeline.faces.selection import Selection
    from emopipe.pipeline.run import ProgressCallback
    from emopipe.pipeline.settings import Settings
    from emopipe.pipeline.table.in_memory import Results
    from emopipe.pipeline.table.results import read_results

_PLACES = {
    "EmopipeError": "emonet.errors",
    "Faces": "pipeline.faces.base",
    "ProgressCallback": "pipeline.run",
    "Results": "pipeline.table.in_memory",
    "Selection": "pipeline.faces.selection",
    "Settings": "pipeline.settings",
    "analyze": "jobs.api",
    "detect": "pipeline.faces.detectors",
    "load_model": "emonet.predictor",
    "read_results": "pipeline.table.results",
}

__all__ = [
    "EmopipeError",
    "Faces",
    "ProgressCallback",
    "Results",
    "Selection",
    "Settings",
    "analyze",
    "detect",
    "load_model",
    "read_results",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'emopipe' has no attribute {name!r}")
    value = getattr(import_module(f"emopipe.{_PLACES[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return __all__

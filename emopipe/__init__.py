"""Emotion, valence, arousal and 68 landmarks for every face in folders of videos."""

import os
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads this when PyTorch is loaded, so it stands before every import of torch. Left to
# itself it spins for milliseconds while threads wait: on 2 cores with other work beside (the
# decoding child will do) a run took 2 to 10 times as long. Threads that sleep at once make a
# training step 1.4 times as long. So many turns, some microseconds, cost neither: beside two busy
# processes a run takes as long as with none (with 30,000 a tenth more).
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

if TYPE_CHECKING:
    from emopipe.pipeline.local import analyze
    from emopipe.pipeline.table.results import read_results

__all__ = ["analyze", "read_results"]


def __getattr__(name: str) -> Any:
    # Loaded on demand: the decoding child imports this package, and its memory counts.
    if name == "analyze":
        from emopipe.pipeline.local import analyze

        return analyze
    if name == "read_results":
        from emopipe.pipeline.table.results import read_results

        return read_results
    raise AttributeError(f"module 'emopipe' has no attribute {name!r}")

"""One video to one table, in this process. It knows no Ray.

`pipeline.analyze` and `pipeline.read_results` are the door from Python.
"""

from typing import TYPE_CHECKING, Any

import emonet  # noqa: F401 -- settles how PyTorch's threads wait, before anything loads PyTorch

if TYPE_CHECKING:
    from pipeline.local import analyze
    from pipeline.results import read_results

__all__ = ["analyze", "read_results"]


def __getattr__(name: str) -> Any:
    # Loaded on demand: the decoding child imports this package, and its memory counts.
    if name == "analyze":
        from pipeline.local import analyze

        return analyze
    if name == "read_results":
        from pipeline.results import read_results

        return read_results
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

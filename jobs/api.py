"""`emopipe.analyze`: the analysis from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

from emopipe.emonet.fields import ArgumentError, help_lines, public
from emopipe.jobs import engine as engines
from emopipe.jobs.cluster import ClusterOptions
from emopipe.pipeline.faces.detectors import LONG_SIDE
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.media.readers import DEFAULT_BACKEND
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import DEFAULT_DETECTOR, DEFAULT_MODEL, Settings
from emopipe.pipeline.table.results import Results, read_results


@public
def analyze(  # noqa: D417 -- the help of the settings is added below
    inputs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    settings: Settings | None = None,
    stride: int = 1,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: str = DEFAULT_BACKEND,
    detector: str = DEFAULT_DETECTOR,
    detector_weights: str | Path | None = None,
    detect_size: int = LONG_SIDE,
    min_score: float | None = None,
    min_size: float = 0.0,
    max_faces: int | None = None,
    faces: str = "all",
    roi: tuple[float, float, float, float] | None = None,
    model: str = DEFAULT_MODEL,
    classes: Sequence[str] | None = None,
    crop: str = "square",
    landmarks: str = "float32",
    device: str = "auto",
    precision: str = "auto",
    faces_per_batch: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool | ProgressCallback = False,
    engine: str = "auto",
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    face_actors: int | None = None,
    network_actors: int | None = None,
) -> Results:
    """Analyze videos and images, and return the table of all faces.

    With `out` the results are kept there, and the same call resumes one that was stopped.

    Example:
        >>> import emopipe
        >>> results = emopipe.analyze("clip.mp4", fps=5, max_faces=1)
        >>> results.rows[["time", "emotion", "valence"]].round(1).head(2)
           time emotion  valence
        0   0.0   happy      0.8
        1   0.2   happy      0.8

    Args:
        inputs: files, folders, glob patterns, or `.txt` files that list paths; one or several.
        out: a results file (`*.parquet`), or a folder that gets one file a video; None keeps
            nothing.
        settings: settings to start from; keywords that differ from their defaults change them.
        stride, fps, …, threads, address, …, network_actors: see below.
        overwrite: start anew, replacing the results that are there.
        progress: True for a progress bar on standard error, or an object that follows the run.
        engine: "local" for this process, "ray" for Ray, "auto" for whichever ends sooner. The
            table is the same.

    Returns:
        The rows of all inputs in memory; `emopipe.read_results` reads a part of a large table.

    Raises:
        EmopipeError: an argument, an input, a checkpoint or the output cannot be used. Videos that
            fail do not raise: `Results.videos` has their status and error.
    """
    given = locals()
    chosen = _settings(settings, given)
    cluster = ClusterOptions(**{f.name: given[f.name] for f in fields(ClusterOptions)})
    found = find_inputs([inputs] if isinstance(inputs, str | Path) else _paths(inputs))
    with (
        tempfile.TemporaryDirectory(prefix="emopipe-") as scratch,
        _following(progress) as following,
    ):
        target = Path(out or Path(scratch) / "results.parquet")
        engines.run(found, target, chosen, overwrite, following, engine, cluster)
        return read_results(target)


analyze.__doc__ = "\n".join(
    [
        cleandoc(str(analyze.__doc__)),
        "",
        "Settings:",
        *map(help_lines, (Settings, Selection, ClusterOptions)),
    ]
)


def _settings(base: Settings | None, given: dict[str, Any]) -> Settings:
    """The settings that keywords ask for."""
    if not isinstance(base, Settings | None):
        raise ArgumentError(f"`settings` is an emopipe.Settings, not {base!r}")
    base = base or Settings()
    selection = replace(base.selection, **_changed(Selection(), given))
    return replace(base, selection=selection, **_changed(Settings(), given))


def _changed(defaults: Settings | Selection, given: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(defaults) if f.name in given]
    return {name: given[name] for name in names if given[name] != getattr(defaults, name)}


def _paths(inputs: object) -> list[str | Path]:
    given: list[Any] = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    for path in given:
        if not isinstance(path, str | Path):
            raise ArgumentError(f"`inputs` is a path or a list of paths, not {path!r}")
    return given


def _following(progress: object) -> Any:
    """A context manager that gives what follows the run."""
    from rich.console import Console

    from emopipe.jobs.progress import RunProgress

    if progress is True:
        return RunProgress(Console(stderr=True))
    if progress in (False, None):
        return nullcontext(ProgressCallback())
    if isinstance(progress, ProgressCallback):
        return nullcontext(progress)
    raise ArgumentError(f"`progress` is True, False or a ProgressCallback, not {progress!r}")

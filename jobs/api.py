"""`emopipe.analyze`: the analysis from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal

from emopipe.emonet.arguments import ArgumentError, public
from emopipe.emonet.fields import help_lines
from emopipe.emonet.runtime import Runtime
from emopipe.jobs import engine as engines
from emopipe.jobs.cluster import ClusterOptions, Engine
from emopipe.pipeline.faces.align import CropMode
from emopipe.pipeline.faces.detectors import LONG_SIDE
from emopipe.pipeline.faces.selection import FaceChoice, Selection
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.media.readers import DEFAULT_BACKEND
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import (
    DEFAULT_DETECTOR,
    DEFAULT_MAX_GAP_S,
    DEFAULT_MODEL,
    Precision,
    Settings,
)
from emopipe.pipeline.storage import user_path
from emopipe.pipeline.table.in_memory import Results
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import LandmarkType


@public
def analyze(  # noqa: D417 -- the help of the settings is added below
    inputs: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    settings: Settings | None = None,
    stride: int = 1,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: str = DEFAULT_BACKEND,
    deinterlace: bool = True,
    detector: str = DEFAULT_DETECTOR,
    detector_weights: str | Path | None = None,
    detect_every: int = 1,
    detect_size: int = LONG_SIDE,
    min_score: float | None = None,
    min_size: float = 0.0,
    max_faces: int | None = None,
    faces: FaceChoice = "all",
    roi: tuple[float, float, float, float] | None = None,
    max_gap: float = DEFAULT_MAX_GAP_S,
    model: str = DEFAULT_MODEL,
    classes: Sequence[str] | None = None,
    crop: CropMode = "square",
    mirror: bool | None = None,
    landmarks: LandmarkType = "float32",
    smooth: Literal["emonet"] | float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    faces_per_batch: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool | ProgressCallback = False,
    engine: Engine = "auto",
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
        settings: all settings at once, instead of the keywords for them.
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
        target = Path(scratch, "results.parquet") if out is None else user_path(out)
        engines.run(found, target, chosen, overwrite, following, engine, cluster)
        return read_results(target)


_ARGUMENTS = "\n".join(map(help_lines, (Settings, Selection, ClusterOptions)))
_BEFORE, _RETURNS, _AFTER = cleandoc(str(analyze.__doc__)).partition("\nReturns:")
analyze.__doc__ = f"{_BEFORE}{_ARGUMENTS}\n{_RETURNS}{_AFTER}"


def _settings(given: Settings | None, keywords: dict[str, Any]) -> Settings:
    """The settings that a call asks for.

    Raises:
        ArgumentError: they are given twice.
    """
    selection = Selection(**_fields_of(Selection, keywords))
    chosen = Settings(selection=selection, **_fields_of(Settings, keywords))
    if given is None:
        return chosen
    if chosen != Settings():
        raise ArgumentError("`settings` are all settings at once: leave the keywords for them out")
    return given


def _fields_of(settings: type[Settings | Selection], keywords: dict[str, Any]) -> dict[str, Any]:
    return {f.name: keywords[f.name] for f in fields(settings) if f.name in keywords}


def _paths(inputs: Iterable[Any]) -> list[str | Path]:
    paths = list(inputs)
    for path in paths:
        if not isinstance(path, str | Path):
            raise ArgumentError(f"`inputs` is a path or a list of paths, not {path!r} in a list")
    return paths


def _following(progress: bool | ProgressCallback) -> AbstractContextManager[ProgressCallback]:
    """A context manager that gives what follows the run."""
    from rich.console import Console

    from emopipe.jobs.progress import RunProgress

    if progress is True:
        return RunProgress(Console(stderr=True))
    return nullcontext(progress or ProgressCallback())

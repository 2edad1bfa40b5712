"""Fetching against a server that misbehaves."""

import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emopipe.emonet import download, registry
from emopipe.emonet.download import ConsentError, FetchError
from emopipe.emonet.registry import WeightFile

CONTENT = random.Random(6).randbytes(600_000)
HALF = len(CONTENT) // 2


class Server(ThreadingHTTPServer):
    """Serves CONTENT, each request as `script` says next, and well when the script has ended."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.ranges: list[str | None] = []  # the Range header of each request for the file
        self.paths: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/tiny.bin")
            self.end_headers()
            return
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        fault = self.server.script.pop(0) if self.server.script else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        start = int(asked[len("bytes=") : -1]) if asked and fault != "no ranges" else 0
        body = CONTENT[start:]
        if fault == "wrong bytes":
            body = bytes(len(body))
        elif fault == "wrong length":
            body = b"<html>Please log in</html>"
        elif fault == "drops":
            self.close_connection = True
            return
        self.send_response(206 if start else 200)
        if start:
            named = start - 7 if fault == "wrong range" else start
            self.send_header("Content-Range", f"bytes {named}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncates":
            body = body[: len(body) // 2]
        if fault == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.closing.wait(60)
            return
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder))
    monkeypatch.setattr(download, "RETRY_PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """An entry of the registry that the server has."""
    return register(
        monkeypatch,
        WeightFile(
            name="tiny",
            kind="model",
            file="tiny.bin",
            license="CC BY-NC-ND 4.0",
            source="https://example.org/tiny",
            url=f"{server.url}/tiny.bin",
            size=len(CONTENT),
            sha256=sha256(CONTENT).hexdigest(),
        ),
    )


def register(monkeypatch: pytest.MonkeyPatch, file: WeightFile) -> WeightFile:
    monkeypatch.setitem(registry.REGISTRY, file.name, file)
    return file


def leftovers(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"tiny.bin.lock"}


def fetching(file: WeightFile) -> str:
    """A program that fetches the entry in its own process."""
    return (
        "from emopipe.emonet.download import fetch\n"
        "from emopipe.emonet.registry import REGISTRY, WeightFile\n"
        f"REGISTRY[{file.name!r}] = {file!r}\n"
        f"print(fetch({file.name!r}))"
    )


def test_fetch_brings_the_whole_file_and_reports_progress(tiny: WeightFile, cache: Path) -> None:
    steps: list[int] = []
    path = download.fetch("tiny", progress=lambda file, done: steps.append(done))
    assert path == cache / "tiny.bin" == registry.locate("tiny")
    assert path.read_bytes() == CONTENT
    assert steps == sorted(steps) and steps[-1] == len(CONTENT)
    assert leftovers(cache) == {"tiny.bin"}


def test_fetch_keeps_what_is_here_and_right(tiny: WeightFile, server: Server) -> None:
    download.fetch("tiny")
    download.fetch("tiny")
    assert len(server.ranges) == 1


@pytest.mark.timeout(20)  # a server that stalls does so for longer
@pytest.mark.parametrize("fault", ["truncates", "stalls", "drops", "503", "429"])
def test_fetch_survives_a_passing_fault(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(download, "STALL_TIMEOUT", 1.0)
    server.script = [fault, fault]
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert len(server.ranges) == 3


@pytest.mark.parametrize("fault", ["truncates", "stalls"])
def test_fetch_resumes_where_the_connection_broke(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(download, "STALL_TIMEOUT", 1.0)
    server.script = [fault]
    download.fetch("tiny")
    assert server.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("fault", ["wrong range", "416", "no ranges"])
def test_fetch_starts_anew_where_a_server_cannot_resume(
    tiny: WeightFile, server: Server, fault: str
) -> None:
    server.script = ["truncates", fault]
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={HALF}-"
    assert server.ranges[2:] == ([] if fault == "no ranges" else [None])


def test_fetch_gives_up_after_some_attempts_and_a_later_one_resumes(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["truncates"] * download.ATTEMPTS
    with pytest.raises(FetchError, match=r"broke off 5 times .*`source`"):
        download.fetch("tiny")
    assert leftovers(cache) == {"tiny.bin.part"}
    have = (cache / "tiny.bin.part").stat().st_size
    download.fetch("tiny")
    assert server.ranges[-1] == f"bytes={have}-"
    assert (cache / "tiny.bin").read_bytes() == CONTENT


def test_redirects_are_followed_also_when_resuming(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, replace(tiny, url=f"{server.url}/moved"))
    server.script = ["truncates"]
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert server.paths == ["/moved", "/tiny.bin"] * 2
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_wrong_bytes_never_get_the_name_and_the_error_has_both_hashes(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["wrong bytes"]
    found = sha256(bytes(len(CONTENT))).hexdigest()
    with pytest.raises(FetchError, match=f"{found} instead of {tiny.sha256}"):
        download.fetch("tiny")
    assert leftovers(cache) == set()


def test_a_page_in_place_of_the_file_is_recognised_by_its_length(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["wrong length"]
    with pytest.raises(FetchError, match=r"26 bytes instead of 600000.*proxy or a login page"):
        download.fetch("tiny")
    assert leftovers(cache) == set()


@pytest.mark.parametrize("stale", [bytes(HALF), bytes(len(CONTENT)), bytes(len(CONTENT) + 1)])
def test_a_part_of_something_else_is_replaced(
    tiny: WeightFile, server: Server, cache: Path, stale: bytes
) -> None:
    cache.mkdir()
    (cache / "tiny.bin.part").write_bytes(stale)
    assert download.fetch("tiny").read_bytes() == CONTENT


def test_a_whole_part_needs_no_request(tiny: WeightFile, server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin.part").write_bytes(CONTENT)
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert server.ranges == []


def test_a_damaged_file_is_fetched_again(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(bytes(len(CONTENT)))
    assert registry.verify("tiny").state == "damaged"
    download.fetch("tiny")
    assert registry.verify("tiny").state == "fetched"


def test_a_killed_fetch_leaves_no_file_and_the_next_one_resumes(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["stalls"]
    process = subprocess.Popen([sys.executable, "-c", fetching(tiny)])
    part = cache / "tiny.bin.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == HALF) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cache / "tiny.bin").exists()
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_of_two_processes_one_downloads_and_both_have_it(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["truncates"]
    processes = [
        subprocess.Popen([sys.executable, "-c", fetching(tiny)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert answers == [str(cache / "tiny.bin")] * 2
    assert (cache / "tiny.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_offline_the_error_names_url_place_and_the_model_that_works(
    tiny: WeightFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/tiny.bin"
        register(monkeypatch, replace(tiny, url=url))
        with pytest.raises(FetchError) as caught:
            download.fetch("tiny")
    for part in (url, str(cache / "tiny.bin"), "`source`", "emonet-lite"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1/tiny.bin", "http://127.0.0.1:port/tiny.bin"])
def test_an_invalid_address_of_a_mirror_is_one_sentence(tiny: WeightFile, url: str) -> None:
    with pytest.raises(FetchError, match="cannot be fetched from http"):
        download.fetch("tiny", url)


def test_a_missing_page_is_not_asked_for_twice(tiny: WeightFile, server: Server) -> None:
    server.script = ["404"]
    with pytest.raises(FetchError, match="HTTP status 404"):
        download.fetch("tiny")
    assert len(server.ranges) == 1


def test_proxies_of_the_environment_are_honoured(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://registry.invalid/tiny.bin"
    register(monkeypatch, replace(tiny, url=url))
    monkeypatch.setenv("http_proxy", server.url)
    assert download.fetch("tiny").read_bytes() == CONTENT
    assert server.paths == [url]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_fetch_takes_a_local_file(
    tiny: WeightFile, server: Server, tmp_path: Path, place: str
) -> None:
    at_hand = tmp_path / "tiny.bin"
    at_hand.write_bytes(CONTENT)
    path = download.fetch("tiny", str(at_hand if place == "file" else tmp_path))
    assert path.read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize("ending", ["/mirror/tiny.bin", "/mirror/"])
def test_fetch_takes_a_mirror(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    register(monkeypatch, replace(tiny, url="http://registry.invalid/tiny.bin"))
    assert download.fetch("tiny", server.url + ending).read_bytes() == CONTENT
    assert server.paths == ["/mirror/tiny.bin"]


def test_a_local_file_with_other_content_is_refused(
    tiny: WeightFile, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"other")
    with pytest.raises(FetchError, match=r"other.bin holds is not tiny: it has 5 bytes"):
        download.fetch("tiny", str(other))
    with pytest.raises(FetchError, match=r"nowhere.bin cannot be read \(No such file"):
        download.fetch("tiny", str(tmp_path / "nowhere.bin"))
    assert leftovers(cache) == set()


def test_an_entry_s_parts_are_fetched_with_it(shared: Path, cache: Path) -> None:
    folder = shared / "weights"
    with pytest.raises(FetchError, match=r"2 files \(blazeface.pth, anchors.npy\).*folder"):
        download.fetch("blazeface", str(folder / "blazeface.pth"))
    download.fetch("blazeface", str(folder))
    assert registry.locate("blazeface") == cache / "blazeface.pth"
    assert registry.locate("blazeface-anchors") == cache / "anchors.npy"
    assert registry.verify("blazeface").state == "fetched"
    (cache / "anchors.npy").unlink()
    assert registry.verify("blazeface").state == "missing"


def test_a_non_commercial_license_needs_consent_once(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, replace(tiny, non_commercial=True))
    with pytest.raises(ConsentError, match=r"CC BY-NC-ND 4.0, for non-commercial"):
        download.fetch("tiny")
    assert server.ranges == []
    download.fetch("tiny", accept_license=True).unlink()
    assert download.fetch("tiny").read_bytes() == CONTENT
    register(monkeypatch, replace(tiny, non_commercial=True, license="another"))
    with pytest.raises(ConsentError):
        download.fetch("tiny")


def test_consent_given_to_an_earlier_version_counts(
    tiny: WeightFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, replace(tiny, non_commercial=True))
    cache.mkdir()
    (cache / "accepted-licences.txt").write_text(f"{tiny.license}\n")
    assert download.fetch("tiny").read_bytes() == CONTENT


def test_a_full_disk_is_one_sentence(tiny: WeightFile, cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands in for a full disk: writes beyond it fail in the same call.
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(FetchError, match=r"tiny.bin cannot be written .*EMOPIPE_CACHE"):
            download.fetch("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (cache / "tiny.bin").exists()


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(
    tiny: WeightFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "taken" / "cache"))
    with pytest.raises(FetchError, match=r"cannot be written \(Not a directory\).*EMOPIPE_CACHE"):
        download.fetch("tiny")

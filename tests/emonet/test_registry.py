"""Fetching against a server that misbehaves, and what the registry promises."""

import json
import os
import random
import re
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
from safetensors import safe_open

from emopipe.emonet import registry as weights
from emopipe.emonet.registry import (
    ConsentError,
    FetchError,
    MissingWeightsError,
    WeightFile,
    WeightsError,
)

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
    monkeypatch.setattr(weights, "RETRY_PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """An entry of the registry that the server offers."""
    return register(
        monkeypatch,
        WeightFile(
            name="tiny",
            kind="model",
            file="tiny.bin",
            licence="CC BY-NC-ND 4.0",
            source="https://example.org/tiny",
            url=f"{server.url}/tiny.bin",
            size=len(CONTENT),
            sha256=sha256(CONTENT).hexdigest(),
        ),
    )


def register(monkeypatch: pytest.MonkeyPatch, file: WeightFile) -> WeightFile:
    monkeypatch.setitem(weights.REGISTRY, file.name, file)
    return file


def leftovers(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"tiny.bin.lock"}


def fetching(file: WeightFile) -> str:
    """A program that fetches the entry in a process of its own."""
    return (
        "from emopipe.emonet.registry import *\n"
        "from emopipe.emonet.registry import REGISTRY\n"
        f"REGISTRY[{file.name!r}] = {file!r}\n"
        f"print(fetch({file.name!r}))"
    )


def test_fetch_brings_the_whole_file_and_reports_progress(tiny: WeightFile, cache: Path) -> None:
    steps: list[int] = []
    path = weights.fetch("tiny", progress=lambda file, done: steps.append(done))
    assert path == cache / "tiny.bin" == weights.locate("tiny")
    assert path.read_bytes() == CONTENT
    assert steps == sorted(steps) and steps[-1] == len(CONTENT)
    assert leftovers(cache) == {"tiny.bin"}


def test_fetch_keeps_what_is_here_and_right(tiny: WeightFile, server: Server) -> None:
    weights.fetch("tiny")
    weights.fetch("tiny")
    assert len(server.ranges) == 1


@pytest.mark.timeout(20)  # a server that stalls does so for longer
@pytest.mark.parametrize("fault", ["truncates", "stalls", "drops", "503", "429"])
def test_fetch_survives_a_passing_fault(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(weights, "STALL_TIMEOUT", 1.0)
    server.script = [fault, fault]
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert len(server.ranges) == 3


@pytest.mark.parametrize("fault", ["truncates", "stalls"])
def test_fetch_resumes_where_the_connection_broke(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(weights, "STALL_TIMEOUT", 1.0)
    server.script = [fault]
    weights.fetch("tiny")
    assert server.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("fault", ["wrong range", "416", "no ranges"])
def test_fetch_starts_anew_where_a_server_cannot_resume(
    tiny: WeightFile, server: Server, fault: str
) -> None:
    server.script = ["truncates", fault]
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={HALF}-"
    assert server.ranges[2:] == ([] if fault == "no ranges" else [None])


def test_fetch_gives_up_after_some_attempts_and_a_later_one_goes_on(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["truncates"] * weights.ATTEMPTS
    with pytest.raises(FetchError, match=r"broke off 5 times .*--from"):
        weights.fetch("tiny")
    assert leftovers(cache) == {"tiny.bin.part"}
    have = (cache / "tiny.bin.part").stat().st_size
    weights.fetch("tiny")
    assert server.ranges[-1] == f"bytes={have}-"
    assert (cache / "tiny.bin").read_bytes() == CONTENT


def test_redirects_are_followed_also_when_resuming(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, replace(tiny, url=f"{server.url}/moved"))
    server.script = ["truncates"]
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert server.paths == ["/moved", "/tiny.bin"] * 2
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_wrong_bytes_never_get_the_name_and_the_error_has_both_hashes(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["wrong bytes"]
    found = sha256(bytes(len(CONTENT))).hexdigest()
    with pytest.raises(FetchError, match=f"{found} instead of {tiny.sha256}"):
        weights.fetch("tiny")
    assert leftovers(cache) == set()


def test_a_page_in_the_file_s_place_is_told_by_its_length(
    tiny: WeightFile, server: Server, cache: Path
) -> None:
    server.script = ["wrong length"]
    with pytest.raises(FetchError, match=r"26 bytes instead of 600000.*proxy or a login page"):
        weights.fetch("tiny")
    assert leftovers(cache) == set()


@pytest.mark.parametrize("stale", [bytes(HALF), bytes(len(CONTENT)), bytes(len(CONTENT) + 1)])
def test_a_part_of_something_else_is_replaced(
    tiny: WeightFile, server: Server, cache: Path, stale: bytes
) -> None:
    cache.mkdir()
    (cache / "tiny.bin.part").write_bytes(stale)
    assert weights.fetch("tiny").read_bytes() == CONTENT


def test_a_whole_part_needs_no_request(tiny: WeightFile, server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin.part").write_bytes(CONTENT)
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert server.ranges == []


def test_a_damaged_file_is_fetched_again(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(bytes(len(CONTENT)))
    assert weights.verify("tiny").state == "damaged"
    weights.fetch("tiny")
    assert weights.verify("tiny").state == "fetched"


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
    assert weights.fetch("tiny").read_bytes() == CONTENT
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
            weights.fetch("tiny")
    for part in (url, str(cache / "tiny.bin"), "--from", "emonet-lite"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1/tiny.bin", "http://127.0.0.1:port/tiny.bin"])
def test_a_mirror_that_is_no_address_is_one_sentence(tiny: WeightFile, url: str) -> None:
    with pytest.raises(FetchError, match="cannot be fetched from http"):
        weights.fetch("tiny", url)


def test_a_missing_page_is_not_asked_for_twice(tiny: WeightFile, server: Server) -> None:
    server.script = ["404"]
    with pytest.raises(FetchError, match="HTTP status 404"):
        weights.fetch("tiny")
    assert len(server.ranges) == 1


def test_proxies_of_the_environment_are_honoured(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://weights.invalid/tiny.bin"
    register(monkeypatch, replace(tiny, url=url))
    monkeypatch.setenv("http_proxy", server.url)
    assert weights.fetch("tiny").read_bytes() == CONTENT
    assert server.paths == [url]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_fetch_takes_a_file_at_hand(
    tiny: WeightFile, server: Server, tmp_path: Path, place: str
) -> None:
    at_hand = tmp_path / "tiny.bin"
    at_hand.write_bytes(CONTENT)
    path = weights.fetch("tiny", str(at_hand if place == "file" else tmp_path))
    assert path.read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize("ending", ["/mirror/tiny.bin", "/mirror/"])
def test_fetch_takes_a_mirror(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    register(monkeypatch, replace(tiny, url="http://weights.invalid/tiny.bin"))
    assert weights.fetch("tiny", server.url + ending).read_bytes() == CONTENT
    assert server.paths == ["/mirror/tiny.bin"]


def test_a_file_at_hand_that_is_another_is_refused(
    tiny: WeightFile, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"other")
    with pytest.raises(FetchError, match=r"other.bin holds is not tiny: it has 5 bytes"):
        weights.fetch("tiny", str(other))
    with pytest.raises(FetchError, match=r"nowhere.bin cannot be read \(No such file"):
        weights.fetch("tiny", str(tmp_path / "nowhere.bin"))
    assert leftovers(cache) == set()


def test_an_entry_s_parts_are_fetched_with_it(shared: Path, cache: Path) -> None:
    folder = shared / "weights"
    with pytest.raises(FetchError, match=r"2 files \(blazeface.pth, anchors.npy\).*folder"):
        weights.fetch("blazeface", str(folder / "blazeface.pth"))
    weights.fetch("blazeface", str(folder))
    assert weights.locate("blazeface") == cache / "blazeface.pth"
    assert weights.locate("blazeface-anchors") == cache / "anchors.npy"
    assert weights.verify("blazeface").state == "fetched"
    (cache / "anchors.npy").unlink()
    assert weights.verify("blazeface").state == "missing"


def test_a_non_commercial_licence_needs_consent_once(
    tiny: WeightFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, replace(tiny, non_commercial=True))
    with pytest.raises(ConsentError, match=r"CC BY-NC-ND 4.0, for non-commercial"):
        weights.fetch("tiny")
    assert server.ranges == []
    weights.fetch("tiny", accept_license=True).unlink()
    assert weights.fetch("tiny").read_bytes() == CONTENT
    register(monkeypatch, replace(tiny, non_commercial=True, licence="another"))
    with pytest.raises(ConsentError):
        weights.fetch("tiny")


def test_a_full_disk_is_one_sentence(tiny: WeightFile, cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands in for a full disk: writes beyond it fail in the same call.
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(FetchError, match=r"tiny.bin cannot be written .*EMOPIPE_CACHE"):
            weights.fetch("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (cache / "tiny.bin").exists()


def test_a_cache_folder_that_cannot_be_is_one_sentence(
    tiny: WeightFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "taken" / "cache"))
    with pytest.raises(FetchError, match=r"cannot be written \(Not a directory\).*EMOPIPE_CACHE"):
        weights.fetch("tiny")


def test_locate_says_how_to_get_what_is_missing(cache: Path) -> None:
    with pytest.raises(MissingWeightsError) as caught:
        weights.locate("emonet-8")
    expected = ("emopipe models fetch emonet-8", "https://", str(cache / "emonet_8.pth"))
    for part in (*expected, "emonet-lite"):
        assert part in str(caught.value)
    with pytest.raises(MissingWeightsError, match=r"models fetch blazeface`.*centerface"):
        weights.locate("blazeface-anchors")


def test_locate_refuses_a_file_of_another_size(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(MissingWeightsError, match="has 599,999 bytes instead of 600,000"):
        weights.locate("tiny")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'emonet-9'.*emonet-lite, emonet-8, emonet-5"):
        weights.locate("emonet-9")


def test_verify_looks_at_the_content_only_when_asked(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(CONTENT[:-1] + b"?")
    assert weights.verify("tiny", content=False).state == "fetched"
    status = weights.verify("tiny")
    assert status.state == "damaged"
    assert tiny.sha256 in status.reason


def test_a_cache_folder_that_is_shut_is_told_in_a_sentence(
    tiny: WeightFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)  # rights do not stop root, who may run this
    status = weights.verify("tiny")
    assert status.state == "damaged"
    assert status.reason == f"{tiny.path} cannot be read (Permission denied)"
    with pytest.raises(MissingWeightsError, match="cannot be read"):
        weights.locate("tiny")


@pytest.mark.parametrize(
    ("name", "state"),
    [("emonet-lite", "bundled"), ("centerface", "installed"), ("emonet-8", "missing")],
)
def test_states_of_a_fresh_machine(name: str, state: str) -> None:
    status = weights.verify(name)
    assert (status.state, status.path) == (state, weights.lookup(name).path)


@pytest.mark.parametrize("name", ["yunet", "blazeface"])
def test_the_registry_knows_the_detectors_files(shared: Path, name: str) -> None:
    weights.fetch(name, str(shared / "weights"))
    assert weights.verify(name).state == "fetched"


def test_the_registry_agrees_with_the_bundled_file_s_own_description() -> None:
    file = weights.lookup("emonet-lite")
    with safe_open(file.path, framework="np") as tensors:
        description = json.loads(tensors.metadata()["emonet"])
    assert file.classes == tuple(description["classes"])
    assert file.licence == description["licence"]
    assert file.valence_arousal == description["valence_arousal"]


@pytest.mark.parametrize("name", ["emonet-lite", "emonet-8", "emonet-5"])
def test_a_model_s_card_is_about_its_file(name: str) -> None:
    file, card = weights.lookup(name), weights.card(name)
    assert card.startswith(f"# {name}\n")
    assert file.sha256 in card
    assert re.search(file.licence.split(" (")[0], card, re.IGNORECASE)


def test_the_card_of_emonet_5_says_what_is_disputed() -> None:
    assert "--classes neutral,happy,sad,surprise,anger" in weights.card("emonet-5")


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EMOPIPE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_folder() == tmp_path / "xdg" / "emopipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / ".cache" / "emopipe"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert weights.cache_folder() == tmp_path / "Library" / "Caches" / "emopipe"


def test_what_is_fetched_cannot_be_registered_without_its_hash(tiny: WeightFile) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        replace(tiny, sha256="619a316812")
    with pytest.raises(ValueError, match="either a URL or a package"):
        replace(tiny, package="emopipe.pretrained")


def test_the_registry_loads_without_pytorch() -> None:
    program = "import sys, emopipe.emonet.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0

"""What the registry promises of each file, and what it finds on this machine."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import safe_open

from emopipe.emonet import download, registry
from emopipe.emonet.registry import MissingWeightsError, WeightFile, WeightsError

CONTENT = bytes(range(256)) * 2343 + bytes(192)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """An entry of the registry whose content is CONTENT."""
    file = WeightFile(
        name="tiny",
        kind="model",
        file="tiny.bin",
        license="CC BY-NC-ND 4.0",
        source="https://example.org/tiny",
        url="http://127.0.0.1:9/tiny.bin",
        size=len(CONTENT),
        sha256=sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(registry.REGISTRY, file.name, file)
    return file


def test_locate_says_how_to_get_what_is_missing(cache: Path) -> None:
    with pytest.raises(MissingWeightsError) as caught:
        registry.locate("emonet-8")
    expected = ("emopipe models fetch emonet-8", "https://", str(cache / "emonet_8.pth"))
    for part in (*expected, "emonet-lite"):
        assert part in str(caught.value)
    with pytest.raises(MissingWeightsError, match=r"models fetch blazeface`.*centerface"):
        registry.locate("blazeface-anchors")


def test_locate_refuses_a_file_of_another_size(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(MissingWeightsError, match="has 599,999 bytes instead of 600,000"):
        registry.locate("tiny")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'emonet-9'.*emonet-lite, emonet-8, emonet-5"):
        registry.locate("emonet-9")


def test_verify_looks_at_the_content_only_when_asked(tiny: WeightFile, cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(CONTENT[:-1] + b"?")
    assert registry.verify("tiny", content=False).state == "fetched"
    status = registry.verify("tiny")
    assert status.state == "damaged"
    assert tiny.sha256 in status.reason


def test_an_unreadable_cache_folder_is_reported(
    tiny: WeightFile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)  # rights do not stop root, who may run this
    status = registry.verify("tiny")
    assert status.state == "damaged"
    assert status.reason == f"{tiny.path} cannot be read (Permission denied)"
    with pytest.raises(MissingWeightsError, match="cannot be read"):
        registry.locate("tiny")


@pytest.mark.parametrize(
    ("name", "state"),
    [("emonet-lite", "bundled"), ("centerface", "installed"), ("emonet-8", "missing")],
)
def test_states_of_a_fresh_machine(name: str, state: str) -> None:
    status = registry.verify(name)
    assert (status.state, status.path) == (state, registry.lookup(name).path)


@pytest.mark.parametrize("name", ["yunet", "blazeface"])
def test_the_registry_knows_the_detectors_files(shared: Path, name: str) -> None:
    download.fetch(name, str(shared / "weights"))
    assert registry.verify(name).state == "fetched"


def test_the_registry_agrees_with_the_bundled_file_s_own_description() -> None:
    file = registry.lookup("emonet-lite")
    with safe_open(file.path, framework="np") as tensors:
        description = json.loads(tensors.metadata()["emonet"])
    assert file.classes == tuple(description["classes"])
    assert file.license == description["license"]
    assert file.valence_arousal == description["valence_arousal"]
    assert file.mirror == description["mirror"]


@pytest.mark.parametrize("name", ["emonet-lite", "emonet-8", "emonet-5"])
def test_a_model_s_card_is_about_its_file(name: str) -> None:
    file, card = registry.lookup(name), registry.card(name)
    assert card.startswith(f"# {name}\n")
    assert file.sha256 in card
    assert re.search(file.license.split(" (")[0], card, re.IGNORECASE)


def test_the_card_of_emonet_5_says_what_is_disputed() -> None:
    assert "--classes neutral,happy,sad,surprise,anger" in registry.card("emonet-5")


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EMOPIPE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert registry.cache_folder() == tmp_path / "xdg" / "emopipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "emopipe"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert registry.cache_folder() == tmp_path / "Library" / "Caches" / "emopipe"


def test_what_is_fetched_cannot_be_registered_without_its_hash(tiny: WeightFile) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        replace(tiny, sha256="619a316812")
    with pytest.raises(ValueError, match="either a URL or a package"):
        replace(tiny, package="emopipe.pretrained")


def test_the_registry_loads_without_pytorch() -> None:
    program = "import sys, emopipe.emonet.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0

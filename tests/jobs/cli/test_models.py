"""`emopipe models`: output, questions and exit statuses."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from emopipe.emonet import registry
from emopipe.emonet.files import sha256_of
from emopipe.emonet.model import EmoNet
from emopipe.jobs.cli.models import models

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small file that the registry takes for YuNet, and for EmoNet."""
    folder = tmp_path / "folder of weights"
    folder.mkdir()
    for name in ("yunet", "emonet-5"):
        file = replace(
            registry.lookup(name),
            size=len(CONTENT),
            sha256=sha256(CONTENT).hexdigest(),
            url="http://127.0.0.1:9/closed",
        )
        monkeypatch.setitem(registry.REGISTRY, name, file)
        (folder / file.file).write_bytes(CONTENT)
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(models, [str(argument) for argument in arguments])


def test_list_shows_every_entry_with_its_state(cache: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert set(registry.ENTRIES) < set(lines)
    assert "bundled" in lines["emonet-lite"]
    assert "installed" in lines["centerface"]
    assert lines["emonet-lite:"].endswith("valence and arousal derived from the emotion")
    assert "emonet-8:" not in lines
    assert "missing" in lines["emonet-8"] and "CC BY-NC-ND 4.0" in lines["emonet-8"]


def test_list_as_json_has_every_state(weights_folder: Path, cache: Path) -> None:
    run("fetch", "yunet", "--from", weights_folder)
    cache.joinpath("emonet_5.pth").write_bytes(b"half")
    states = {row["name"]: row["state"] for row in json.loads(run("list", "--json").stdout)}
    assert states["yunet"] == "fetched"
    assert states["emonet-5"] == "damaged"
    assert states["emonet-8"] == "missing"


def test_info_prints_facts_and_card() -> None:
    result = run("info", "emonet-5")
    assert result.exit_code == 0
    assert registry.lookup("emonet-5").sha256 in result.stdout
    assert "The fifth class is disputed" in result.stdout
    assert "valence and arousal derived from the emotion" in run("info", "emonet-lite").stdout


@pytest.mark.parametrize("name", ["emonet-lite", "emonet-8", "emonet-5"])
def test_info_renders_the_card(name: str) -> None:
    shown = run("info", name).stdout
    assert name in shown
    for markdown in ("# ", "**", "|---", "`"):
        assert markdown not in shown
    assert "\x1b" not in shown  # no colours in a file or pipe


def test_info_as_json_carries_the_card() -> None:
    facts = json.loads(run("info", "emonet-lite", "--json").stdout)
    assert facts["classes"][1] == "happy"
    assert facts["mirror"] is True
    assert facts["card"].startswith("# emonet-lite")


def test_fetch_then_path_prints_where_it_lies(weights_folder: Path, cache: Path) -> None:
    file = cache / registry.lookup("yunet").file
    assert run("fetch", "yunet", "--from", weights_folder).stdout == f"yunet: {file}\n"
    assert run("path", "yunet").stdout == f"{file}\n"


def test_fetch_of_what_is_bundled_is_no_error() -> None:
    result = run("fetch", "emonet-lite")
    assert result.exit_code == 0
    assert result.stdout == f"emonet-lite: {registry.locate('emonet-lite')}\n"


def test_one_failed_fetch_leaves_the_others_and_shows_in_the_status(
    weights_folder: Path,
) -> None:
    (weights_folder / "s3fd-619a316812.pth").write_bytes(b"another")
    result = run("fetch", "sfd", "yunet", "--from", weights_folder)
    assert result.exit_code == 1
    assert "is not sfd: it has 7 bytes" in result.stderr
    assert result.stdout.startswith("yunet: ")


def test_fetch_offline_names_the_way_out(weights_folder: Path, cache: Path) -> None:
    result = run("fetch", "yunet")
    assert result.exit_code == 1
    for part in ("http://127.0.0.1:9/closed", str(cache), "--from", "centerface"):
        assert part in result.stderr


def test_a_script_must_accept_a_non_commercial_license_once(weights_folder: Path) -> None:
    refused = run("fetch", "emonet-5", "--from", weights_folder)
    assert refused.exit_code == 2
    assert "--accept-license" in refused.stderr
    assert run("fetch", "emonet-5", "--from", weights_folder, "--accept-license").exit_code == 0
    assert run("fetch", "emonet-5", "--from", weights_folder).exit_code == 0


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"n\n", 1)])
def test_a_person_is_asked_for_consent(
    weights_folder: Path, cache: Path, answer: bytes, status: int
) -> None:
    program = (
        "from emopipe.emonet.registry import *\n"
        "from emopipe.emonet.registry import REGISTRY\n"
        "from emopipe.jobs.cli.models import models\n"
        f"REGISTRY['emonet-5'] = {registry.lookup('emonet-5')!r}\n"
        "models()"
    )
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    result = subprocess.run(
        [sys.executable, "-c", program, "fetch", "emonet-5", "--from", weights_folder],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert "Do you accept its license, CC BY-NC-ND 4.0?" in result.stdout + result.stderr
    assert result.returncode == status
    assert (cache / "emonet_5.pth").exists() == (status == 0)


def test_verify_without_names_accepts_weights_that_were_never_fetched() -> None:
    result = run("verify")
    assert result.exit_code == 0
    assert "emonet-8: missing" in result.stdout
    assert "emonet-lite: bundled (built-in image: outputs recorded in" in result.stdout


def test_verify_by_name_fails_on_missing_and_damaged(weights_folder: Path, cache: Path) -> None:
    assert run("verify", "yunet").exit_code == 1
    run("fetch", "yunet", "--from", weights_folder)
    assert run("verify", "yunet").exit_code == 0
    (cache / registry.lookup("yunet").file).write_bytes(bytes(len(CONTENT)))
    for arguments in (["verify", "yunet"], ["verify"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "yunet: damaged" in result.stdout


def test_verify_reports_a_model_whose_outputs_have_changed(cache: Path) -> None:
    assert run("verify", "emonet-lite").exit_code == 0
    (record,) = cache.glob("*/*.json")
    answer = json.loads(record.read_text())
    record.write_text(json.dumps(answer | {"valence": answer["valence"] + 0.01}))
    (outcome,) = json.loads(run("verify", "emonet-lite", "--json").stdout)
    assert outcome["state"] == "bundled"
    assert not outcome["passed"]
    assert "differ by at most 0.01" in outcome["notes"][0]


def test_verify_reports_a_file_with_the_right_hash_that_is_not_a_model(
    weights_folder: Path,
) -> None:
    run("fetch", "emonet-5", "--from", weights_folder, "--accept-license")
    result = run("verify", "emonet-5")
    assert result.exit_code == 1
    assert "emonet_5.pth is not a file of weights" in result.stdout


def register_constant_emonet_8(
    cache: Path, monkeypatch: pytest.MonkeyPatch, valence: float
) -> None:
    """Put a small network into emonet-8's place that gives the same outputs for every image."""
    network = EmoNet(n_expression=8, width=32).eval()
    last = network.get_submodule("emo_fc_2.3")
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, valence, 0.143]))
    cache.mkdir()
    path = cache / "emonet_8.pth"
    torch.save(network.state_dict(), path)
    file = replace(registry.lookup("emonet-8"), size=path.stat().st_size, sha256=sha256_of(path))
    monkeypatch.setitem(registry.REGISTRY, "emonet-8", file)


@pytest.mark.parametrize(("valence", "status"), [(0.064, 0), (0.5, 1)])
def test_verify_compares_emonet_8_with_its_authors_output_for_the_example_image(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, valence: float, status: int
) -> None:
    register_constant_emonet_8(cache, monkeypatch, valence)
    Image.new("RGB", (300, 200)).save(tmp_path / "example.png")
    result = run("verify", "emonet-8", "--picture", tmp_path / "example.png")
    assert f"example image: happy, valence {valence:.3f}, arousal 0.143" in result.stdout
    assert result.exit_code == status


def test_an_example_image_that_cannot_be_read_is_named_by_its_option(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_constant_emonet_8(cache, monkeypatch, 0.064)
    image = tmp_path / "example.png"
    image.write_text("not an image")
    (outcome,) = json.loads(run("verify", "emonet-8", "--picture", image, "--json").stdout)
    assert not outcome["passed"]
    assert outcome["notes"][0].startswith(f"--picture {image} cannot be read as an image")


def test_the_published_output_is_that_of_emonet_8_only(tmp_path: Path) -> None:
    image = tmp_path / "example.png"
    Image.new("RGB", (8, 8)).save(image)
    result = run("verify", "emonet-lite", "--picture", image)
    assert result.exit_code == 2
    assert "--picture checks emonet-8, the only model with a published output" in result.stderr


def test_the_one_line_help_of_each_command_fits_80_columns() -> None:
    lines = run("--help").stdout.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert len(commands) == len(models.commands)
    assert not any(line.endswith("...") for line in commands)


def test_path_of_what_is_missing_says_how_to_get_it() -> None:
    result = run("path", "emonet-8")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "emopipe models fetch emonet-8" in result.stderr


@pytest.mark.parametrize("command", ["info", "fetch", "verify", "path"])
def test_an_unknown_name_is_a_usage_error(command: str) -> None:
    result = run(command, "emonet-9")
    assert result.exit_code == 2
    assert "emonet-8" in result.stderr

"""Checkpoints load strictly and safely, and errors name the file."""

import json
import os
import pickle
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emopipe.emonet import checkpoint, registry
from emopipe.emonet.checkpoint import CheckpointError
from emopipe.emonet.files import sha256_of
from emopipe.emonet.labels import EMOTIONS_5, EMOTIONS_8
from emopipe.emonet.model import EmoNet


@pytest.fixture
def small():
    return checkpoint.random_weights(seed=1, classes=EMOTIONS_8, width=32, input_size=64)


def test_what_is_saved_is_loaded(small, tmp_path):
    model, described = small[0], replace(small[1], mirror=True)
    path = tmp_path / "small.safetensors"
    checkpoint.save(model, described, path)
    again, description = checkpoint.load(path)

    assert description == replace(described, name="small", sha256=sha256_of(path))
    for name, tensor in model.state_dict().items():
        assert torch.allclose(again.state_dict()[name].float(), tensor.float(), atol=1e-3), name
    assert not again.training
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_whoever_the_umask_lets_read_files_can_read_what_is_saved(small, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        checkpoint.save(*small, tmp_path / "small.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "small.safetensors").stat().st_mode) == mode


def test_metadata_of_earlier_versions_is_read(small, tmp_path):
    model, described = small
    path = tmp_path / "small.safetensors"
    checkpoint.save(model, replace(described, mirror=True, provenance={"data": 1}), path)
    description = json.loads(safe_open(path, "pt").metadata()["emonet"])
    assert description.pop("mirror")
    old = {"license": "licence", "provenance": "made"}
    assert set(old) < set(description)
    renamed = {old.get(key, key): value for key, value in description.items()}
    save_file(load_file(path), path, metadata={"emonet": json.dumps(renamed)})
    _, found = checkpoint.load(path)
    assert (found.license, found.provenance) == (described.license, {"data": 1})
    assert found.mirror is False


def test_the_reference_file_of_an_earlier_version_is_read(shared):
    _, found = checkpoint.load(shared / "weights" / "reference-lite.safetensors")
    assert found.license == "research use (FER2013)"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_classes_and_width_follow_from_a_pth_state_dict(small, tmp_path, prefix):
    model, _ = checkpoint.random_weights(seed=2, classes=EMOTIONS_5, width=64, input_size=64)
    path = tmp_path / "mine.pth"
    torch.save({prefix + name: t for name, t in model.state_dict().items()}, path)
    _, description = checkpoint.load(path)
    assert description.classes == EMOTIONS_5
    assert description.width == 64
    assert description.input_size == 256
    assert description.crop == checkpoint.PUBLISHED_CROP
    assert description.mirror is False


class Malicious:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_loading_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    with pytest.raises(CheckpointError, match="not a file of weights alone"):
        checkpoint.load(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"], ids=["empty", "text"])
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken"):
        checkpoint.load(path)


def test_another_network_is_refused_with_the_differences(small, tmp_path):
    state = small[0].state_dict()
    state["al0.weight"] = torch.zeros(3, 3)
    del state["bl0.bias"]
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"bl0\.bias is missing; al0\.weight is \(3, 3\)"):
        checkpoint.load(path)


def test_a_network_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "linear.pth"
    torch.save(torch.nn.Linear(3, 4).state_dict(), path)
    with pytest.raises(CheckpointError, match="another network than EmoNet"):
        checkpoint.load(path)


def test_a_description_that_contradicts_the_tensors_is_refused(small, tmp_path):
    model, described = small
    path = tmp_path / "contradictory.safetensors"
    checkpoint.save(model, replace(described, classes=EMOTIONS_5), path)
    with pytest.raises(CheckpointError, match="5 classes"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "description",
    [
        "{not json",
        "[1]",
        '{"crop": null}',
        '{"crop": {"scale": Infinity, "shift": [0, 0]}}',
        '{"crop": {"scale": 1.4, "shift": [0, 0, 0]}}',
        '{"crop": {"scale": 1.4, "shift": ["left", "up"]}}',
        '{"mirror": "no"}',
    ],
)
def test_an_invalid_description_is_refused(small, tmp_path, description):
    model, described = small
    path = tmp_path / "odd.safetensors"
    checkpoint.save(model, described, path)
    whole = json.loads(safe_open(path, "pt").metadata()["emonet"])
    with suppress(ValueError, TypeError):
        description = json.dumps(whole | json.loads(description))
    save_file(load_file(path), path, metadata={"emonet": description})
    with pytest.raises(CheckpointError, match=r"description inside .*odd.* is incomplete or wrong"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra.weight": torch.zeros(3)}, "extra.weight is unknown"),
        ({"conv1.weight": torch.tensor(1.0)}, r"conv1\.weight is \(\), not"),
        ({0: torch.zeros(3)}, "not a state dict"),
        ({"bl0.bias": torch.full((32,), torch.nan)}, "not finite, in bl0.bias"),
    ],
    ids=["more", "scalar", "number as name", "NaN"],
)
def test_an_invalid_state_dict_is_refused(small, tmp_path, change, message):
    path = tmp_path / "odd.pth"
    torch.save(small[0].state_dict() | change, path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_width_that_emonet_cannot_have_is_refused(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(EmoNet(8, width=40).state_dict(), path)
    with pytest.raises(CheckpointError, match="another network than EmoNet"):
        checkpoint.load(path)


def test_random_weights_say_so(small):
    assert "random" in small[1].name
    assert "random" in small[1].license


def test_models_are_opened_by_name_or_path(small, tmp_path):
    _, bundled = checkpoint.open_model("emonet-lite")
    assert bundled.classes == EMOTIONS_8
    path = tmp_path / "mine.safetensors"
    checkpoint.save(*small, path)
    assert checkpoint.open_model(str(path))[1].name == "mine"


def test_a_missing_model_is_named():
    for model in ("nowhere.pth", "n" * 300):
        with pytest.raises(CheckpointError, match=f"`model` {model}: there is no such file"):
            checkpoint.open_model(model)


def test_a_file_that_is_not_the_published_one_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path))
    path = tmp_path / "emonet_8.pth"
    torch.save(small[0].state_dict(), path)
    published = registry.lookup("emonet-8")
    same_size = replace(published, size=path.stat().st_size)
    monkeypatch.setitem(registry.REGISTRY, "emonet-8", same_size)
    with pytest.raises(CheckpointError, match=r"emonet_8\.pth is not the published emonet-8"):
        checkpoint.open_model("emonet-8")


def test_classes_can_be_renamed(tmp_path):
    names = tuple("abcdefgh")
    assert checkpoint.open_model("emonet-lite", names)[1].classes == names
    with pytest.raises(CheckpointError, match="`classes` names 2 classes, but emonet-lite has 8"):
        checkpoint.open_model("emonet-lite", ("a", "b"))
    with pytest.raises(CheckpointError, match="`classes` are distinct names, not a, a, a"):
        checkpoint.open_model("emonet-lite", ("a",) * 8)

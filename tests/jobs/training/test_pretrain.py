"""`emopipe pretrain` as a user sees it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from command import run_command
from made_faces import face_picture
from made_fer2013 import write_csv, write_votes
from made_landmarks import write_landmarks

from emopipe.emonet import checkpoint
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.training.config import NetworkSize, Pretraining, TrainingConfig
from emopipe.jobs.training.compute import ComputeConfig
from emopipe.jobs.training.pretrain import PretrainJob, read_data
from emopipe.pipeline.table.results import read_results

SMALL = ["--epochs", "2", "--cooldown-epochs", "1", "--batch-size", "16", "--precision", "float32"]


def pretrain(folder: Path, run: str, *options: str, on_ray: bool = False) -> Result:
    data, votes = folder / "fer2013.csv", folder / "fer2013new.csv"
    marked, out = folder / "marked.parquet", folder / run
    local = [] if on_ray else ["--local"]
    where = ("--ferplus", votes, "--landmarks", marked, "--out", out, "--cpus", "1", *local)
    return run_command("pretrain", data, *where, "--width", "16", *SMALL, *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013 with votes and faces with landmarks in small, and a run in `run`."""
    folder = tmp_path_factory.mktemp("pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
        write_csv(folder / "fer2013.csv", 150)
        write_votes(folder / "fer2013new.csv", 150)
        write_landmarks(folder / "marked.parquet", 10, 2)
        result = pretrain(folder, "run")
    assert result.exit_code == 0, result.output
    (folder / "output.txt").write_text(result.output)
    return folder


def test_a_run_leaves_weights_that_say_where_they_come_from(folder):
    run = folder / "run"
    _, described = checkpoint.load(run / "best.safetensors")
    assert described.classes == EMOTIONS_8
    assert described.valence_arousal == "derived from expression votes, not annotated"
    assert described.provenance["network"] == {"width": 16, "input_size": 64}
    assert len(described.provenance["landmarks"]["sha256"]) == 64
    scores = json.loads((run / "scores.json").read_text())
    low, high = scores["before_clamping"]
    assert low < high
    assert scores["temperature"] > 0
    assert set(scores["offsets"]) == set(EMOTIONS_8)
    assert "PublicTest, valence, mirror" in scores["dimensions"]
    assert described.provenance["scores"]["landmark_error"] == scores["landmark_error"] > 0

    table = pd.read_csv(run / "metrics.csv")
    assert table["epoch"].tolist() == [1, 2]
    assert table["loss"].iloc[1] < table["loss"].iloc[0]
    output = (folder / "output.txt").read_text()
    assert "landmarks of 2 images of held-out people: mean error" in output
    assert "valence and arousal against those derived from the votes" in output


def test_the_weights_are_the_best_ones_calibrated(folder):
    state = torch.load(folder / "run" / "state.pt", weights_only=True)["best"]
    scores = json.loads((folder / "run" / "scores.json").read_text())
    network, _ = checkpoint.load(folder / "run" / "best.safetensors")
    offsets = torch.tensor(list(scores["offsets"].values()))
    expected = (state["emo_fc_2.3.bias"][:8] + offsets) / scores["temperature"]
    last = network.emo_fc_2[3]
    torch.testing.assert_close(last.bias[:8], expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(
        last.weight[8:], state["emo_fc_2.3.weight"][8:], atol=1e-3, rtol=1e-3
    )


def test_ray_train_gives_what_this_process_gives(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    result = pretrain(folder, "on-ray", on_ray=True)
    assert result.exit_code == 0, result.output
    here, there = (pd.read_csv(folder / run / "metrics.csv") for run in ("run", "on-ray"))
    same = [name for name in here if name not in ("images_per_second", "data_share")]
    pd.testing.assert_frame_equal(here[same], there[same])


def test_analyze_takes_the_weights_at_once(folder, tmp_path):
    face_picture().save(tmp_path / "face.png")
    model, out = folder / "run" / "best.safetensors", tmp_path / "results.parquet"
    result = run_command(
        *("analyze", tmp_path / "face.png", "--model", model, "--out", out, "--local", "--quiet")
    )
    assert result.exit_code == 0, result.output
    assert len(read_results(out).rows) == 1


def test_a_finished_run_is_resumed_to_the_same_weights(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    before = (folder / "run" / "best.safetensors").read_bytes()
    assert pretrain(folder, "run").exit_code == 2
    assert pretrain(folder, "run", "--resume").exit_code == 0
    assert (folder / "run" / "best.safetensors").read_bytes() == before


def test_a_run_can_begin_with_the_weights_of_another(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    start = folder / "run" / "best.safetensors"
    first, described = checkpoint.load(start)
    arguments = ("--from", str(start), "--learning-rate", "1e-9", "--ema", "0")
    where = ("--ferplus", folder / "fer2013new.csv", "--landmarks", folder / "marked.parquet")
    how = (
        "--local",
        "--out",
        folder / "further",
        *SMALL[2:],
        "--epochs",
        "1",
        "--cooldown-epochs",
        "1",
    )
    result = run_command("pretrain", folder / "fer2013.csv", *where, *how, *arguments)
    assert result.exit_code == 0, result.output
    further, found = checkpoint.load(folder / "further" / "best.safetensors")
    assert found.width == 16
    assert found.provenance["start"]["sha256"] == described.sha256
    assert described.sha256 in found.source
    torch.testing.assert_close(
        further.get_parameter("conv1.weight"), first.get_parameter("conv1.weight")
    )

    assert described.license == found.license
    assert "may have learnt" not in result.output
    again = pretrain(folder, "further", "--epochs", "1", "--resume", *arguments[2:])
    assert "was begun with another start" in " ".join(again.output.split())
    overwritten = pretrain(folder, "run", "--from", str(start), "--overwrite")
    refusal = " ".join(overwritten.output.split())
    assert "lies in the run's folder, which --overwrite replaces" in refusal
    wrong = pretrain(folder, "no", "--from", str(start), "--width", "32")
    assert "--width 32 is not 16, that of --from" in wrong.output
    seven = folder / "seven.safetensors"
    other, random = checkpoint.random_weights(0, EMOTIONS_8[:7], 16, 64)
    checkpoint.save(other, random, seven)
    assert "start from a model with the classes" in " ".join(
        pretrain(folder, "no", "--from", str(seven)).output.split()
    )


def test_a_start_model_that_may_know_the_held_out_images_is_named(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    other, described = checkpoint.random_weights(0, EMOTIONS_8, 16, 64)
    terms = "CC BY-NC-ND 4.0"
    checkpoint.save(other, replace(described, license=terms), folder / "other.safetensors")
    start = ("--from", str(folder / "other.safetensors"))
    result = pretrain(folder, "from-other", "--epochs", "1", *start)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "note: other may have learnt from the images that this run selects" in output
    _, found = checkpoint.load(folder / "from-other" / "best.safetensors")
    assert found.license.startswith(f"{terms}; made from it: do not redistribute; research use")
    assert checkpoint.inherited_license(found.license) == found.license


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_held_out_does_not_depend_on_the_seed(folder, monkeypatch, seed):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    job = PretrainJob(
        data=folder / "fer2013.csv",
        ferplus=folder / "fer2013new.csv",
        landmarks=folder / "marked.parquet",
        skip_bad=False,
        start_model=None,
        size=NetworkSize(width=16),
        pretraining=Pretraining(),
        training=TrainingConfig(),
        compute=ComputeConfig(),
    )
    one, other = (
        read_data(replace(job, training=replace(job.training, seed=s)), 64) for s in (0, seed)
    )
    np.testing.assert_array_equal(one.split.validation, other.split.validation)
    np.testing.assert_array_equal(one.landmark_split[1], other.landmark_split[1])


def test_invalid_options_are_refused_with_a_sentence(folder):
    assert "--width is a multiple of 16, not 20" in pretrain(folder, "no", "--width", "20").output
    narrow = pretrain(folder, "no", "--input-size", "65")
    assert "--input-size is a multiple of 64, not 65" in narrow.output
    assert "--input-size is 64 or more, not 0" in pretrain(folder, "no", "--input-size", "0").output
    assert "--seed is 0 or more" in pretrain(folder, "no", "--seed", "-1").output
    taken = pretrain(folder, "fer2013.csv")
    assert "fer2013.csv cannot be the run's folder (Not a directory)" in taken.output
    assert "--balance is from 0 to 1, not 2" in pretrain(folder, "no", "--balance", "2").output
    other = pretrain(folder, "no", "--landmarks", str(folder / "fer2013.csv"))
    assert "cannot be read as a Parquet table with columns name, jpg, landmarks" in " ".join(
        other.output.split()
    )
    assert not (folder / "no").exists()

"""`emopipe finetune` and `emopipe evaluate` as a user sees them."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from command import run_command
from made_faces import face_picture
from made_fer2013 import write_csv

from emopipe.emonet import checkpoint
from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import fer2013
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.jobs.training import run as runs
from emopipe.jobs.training.compute import ComputeConfig
from emopipe.jobs.training.launch import _cpus_per_worker
from emopipe.pipeline.table.results import read_results

SMALL = ["--epochs", "3", "--batch-size", "16", "--cpus", "1", "--precision", "float32"]
REPEATS = ["epoch", "loss", "accuracy", "macro_f1", "weighted_f1", "learning_rate", "best"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013 in small, a small start model, and the run of a fine-tuning in `run`."""
    folder = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
        write_csv(folder / "fer2013.csv", 140)
        model, described = random_weights(1, EMOTIONS_8, width=16, input_size=64)
        terms = {"license": "CC BY-NC-ND 4.0", "valence_arousal": "rated by people"}
        start = replace(described, mirror=True, **terms)
        checkpoint.save(model, start, folder / "start.safetensors")
        result = finetune(folder, "run", "--local")
    assert result.exit_code == 0, result.output
    (folder / "output.txt").write_text(result.output)
    return folder


def finetune(folder: Path, run: str, *options: str) -> Result:
    start, out = folder / "start.safetensors", folder / run
    return run_command(
        *("finetune", folder / "fer2013.csv", "--from", start, "--out", out, *SMALL, *options)
    )


def metrics(folder: Path, run: str) -> pd.DataFrame:
    """What must be equal, without times."""
    return pd.read_csv(folder / run / "metrics.csv")[REPEATS]


def test_a_run_leaves_weights_metrics_scores_and_plots(folder):
    run = folder / "run"
    network, described = checkpoint.load(run / "best.safetensors")
    assert described.classes == FER2013_7
    assert described.license == "CC BY-NC-ND 4.0; made from it: do not redistribute"
    assert described.valence_arousal.startswith("rated by people (preserved by distillation")
    assert described.provenance["start"]["name"] == "start"
    assert len(described.provenance["start"]["sha256"]) == 64
    assert len(described.provenance["data"]["sha256"]) == 64
    assert described.provenance["training"]["epochs"] == 3
    assert described.provenance["training"]["cooldown_epochs"] == 0
    assert described.crop == fer2013.CROP
    assert described.mirror is True
    assert described.provenance["scores"]["judged"][0]["test"] == "PrivateTest"
    assert network.emo_fc_2[3].out_features == 9

    table = pd.read_csv(run / "metrics.csv")
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    assert (table["images_per_second"] > 0).all()
    drawn = ("confusion", "precision_recall", "mistakes")
    for name in ("curves", *(f"{kind}_PrivateTest" for kind in drawn)):
        assert (run / "plots" / f"{name}.png").stat().st_size > 10_000

    output = (folder / "output.txt").read_text()
    assert "to select by; tested on PrivateTest (23)" in output
    assert "the new model's crops will be FER2013's" in output
    assert all(f"\n{name} " in output for name in FER2013_7)


def test_all_files_of_a_run_have_the_mode_that_new_files_have(folder):
    (folder / "new").touch()
    modes = {file.stat().st_mode for file in (folder / "run").rglob("*") if file.is_file()}
    assert modes == {(folder / "new").stat().st_mode}


def test_analyze_takes_the_weights_at_once(folder, tmp_path):
    face_picture().save(tmp_path / "face.png")
    model, out = folder / "run" / "best.safetensors", tmp_path / "results.parquet"
    result = run_command(
        *("analyze", tmp_path / "face.png", "--model", model, "--out", out, "--local", "--quiet")
    )
    assert result.exit_code == 0, result.output
    rows = read_results(out).rows
    assert {f"p_{name}" for name in FER2013_7} <= set(rows.columns)
    assert len(rows) == 1


def test_the_same_seed_gives_the_same_and_a_stopped_run_ends_as_one_that_was_not(
    folder, monkeypatch
):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))

    def stop(progress, epoch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.TrainingProgress, "on_epoch_end", stop)
        assert finetune(folder, "stopped", "--local").exit_code != 0
    assert not (folder / "stopped" / "best.safetensors").exists()
    again = finetune(folder, "stopped", "--local")
    assert again.exit_code == 2
    assert "--resume continues it, --overwrite replaces it" in again.output
    other = finetune(folder, "stopped", "--local", "--resume", "--seed", "4")
    assert other.exit_code == 2
    assert "begun with another training" in other.output

    resumed = finetune(folder, "stopped", "--local", "--resume")
    assert resumed.exit_code == 0, resumed.output
    pd.testing.assert_frame_equal(metrics(folder, "stopped"), metrics(folder, "run"))
    one, other = (
        checkpoint.load(folder / run / "best.safetensors")[0].state_dict()
        for run in ("stopped", "run")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_ray_train_gives_what_this_process_gives(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    result = finetune(folder, "on-ray")
    assert result.exit_code == 0, result.output
    pd.testing.assert_frame_equal(metrics(folder, "on-ray"), metrics(folder, "run"))


@pytest.mark.parametrize(
    ("compute", "nodes", "cpus"),
    [
        (ComputeConfig(), [2.0], 2),
        (ComputeConfig(workers=2), [2.0], 1),
        (ComputeConfig(), [16.0] * 4, 16),
        (ComputeConfig(cpus=64), [16.0] * 4, 16),
        (ComputeConfig(workers=3), [16.0, 16.0], 8),
        (ComputeConfig(workers=4), [2.0], 0.5),
    ],
)
def test_a_worker_asks_for_no_more_cpus_than_a_node_has(compute, nodes, cpus):
    assert _cpus_per_worker(compute, nodes) == cpus


def test_options_that_do_not_go_together_are_named(folder):
    assert "are for Ray" in finetune(folder, "never", "--local", "--workers", "2").output
    assert (
        "--clip is more than 0, not 0" in finetune(folder, "never", "--local", "--clip", "0").output
    )
    assert "there is no run in" in finetune(folder, "never", "--local", "--resume").output
    assert "leave out --from and --train" in finetune(folder, "never", "--from-scratch").output
    assert not (folder / "never").exists()


def test_evaluate_scores_fer2013_and_names_classes_that_one_side_lacks(folder, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(folder / "cache"))
    model = folder / "run" / "best.safetensors"
    arguments = ("evaluate", "--data", folder / "fer2013.csv", "--precision", "float32")
    scores = json.loads(run_command(*arguments, "--model", model, "--json").stdout)
    run = json.loads((folder / "run" / "scores.json").read_text())
    private = [one for one in scores["judged"] if one["test"] == "PrivateTest"]
    assert private == run["judged"]

    assert scores["notes"] == ["best was selected by PublicTest: its scores there say little"]

    output = run_command(*arguments, "--model", folder / "start.safetensors").output
    assert "the data have no contempt" in output
    training = folder / "training.csv"
    write_csv(training, 140, usages=(0,))
    tuned = run_command(
        *("finetune", training, "--from", folder / "start.safetensors", "--local"),
        *("--out", folder / "training", *SMALL, "--epochs", "1"),
    )
    assert "start may have learnt from the test and validation images" in tuned.output
    trained = folder / "training" / "best.safetensors"
    output = run_command("evaluate", "--data", training, "--model", trained).output
    assert "best learnt from Training: its scores there say little" in output
    assert "--root does not apply" in run_command(*arguments, "--root", folder).output


def test_evaluate_scores_labelled_images_and_annotated_videos(tmp_path):
    face_picture().save(tmp_path / "face.png")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "image,expression,valence,arousal\nface.png,happy,0.8,0.3\nface.png,sad,-0.6,-0.2\n"
    )
    scores = json.loads(run_command("evaluate", "--data", labels, "--json").stdout)
    assert scores["pictures"] == 2
    # The face is happy; the model's other classes count too.
    assert scores["classes"] == list(EMOTIONS_8)
    assert np.argwhere(scores["expression, plain"]["confusion"]).tolist() == [[1, 1], [2, 1]]
    assert scores["valence, mirror"]["samples"] == 2
    assert "valence and arousal derived from the emotion" in scores["notes"]

    model, described = random_weights(1, ("calm", "wild"), width=16, input_size=64)
    checkpoint.save(model, described, tmp_path / "other.safetensors")
    other = ("--model", tmp_path / "other.safetensors")
    result = run_command("evaluate", "--data", labels, *other)
    assert result.exit_code == 2
    assert "no class is the same" in result.output
    labels.write_text("image,valence,arousal\nface.png,0.8,0.3\n")
    scores = json.loads(run_command("evaluate", "--data", labels, "--json", *other).stdout)
    assert scores["valence, plain"]["samples"] == 1
    assert scores["notes"] == ["valence and arousal mean nothing"]

    out = tmp_path / "results.parquet"
    assert run_command("analyze", tmp_path / "face.png", "--out", out, "--local").exit_code == 0
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("video,time,valence,arousal\nface.png,0,0.5,0.5\n")
    result = run_command("evaluate", "--data", ratings)
    assert result.exit_code == 2
    assert "give the results as --results" in result.output
    scores = json.loads(
        run_command("evaluate", "--data", ratings, "--results", out, "--json").stdout
    )
    needless = run_command(
        "evaluate", "--data", ratings, "--results", out, "--model", "emonet-lite"
    )
    assert needless.exit_code == 2
    assert "--model does not apply to scoring" in needless.output
    rows = read_results(out).rows
    error = np.abs(rows["valence"][0] - 0.5)
    assert scores["all videos: valence"]["rmse"] == pytest.approx(error, abs=1e-6)
    assert scores["all videos: valence"]["pcc"] is None
    assert scores["notes"] == ["valence and arousal derived from the emotion"]


def test_data_without_a_test_of_their_own_are_told_in_plain_english(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    data = write_csv(tmp_path / "fer2013.csv", 70, usages=(0,))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(data, "fer2013.csv")
    model, described = random_weights(1, EMOTIONS_8, width=16, input_size=64)
    checkpoint.save(model, described, tmp_path / "start.safetensors")
    options = ["--from", tmp_path / "start.safetensors", "--out", tmp_path / "run", "--local"]
    result = run_command(
        *("finetune", tmp_path / "archive.zip", *options, *SMALL[2:], "--epochs", "1")
    )
    assert result.exit_code == 0, result.output
    assert "to select by; tested on a held-out part of Training (7)" in result.output
    assert "a held-out part of Training:\n" in result.output
    assert "start may have learnt from the test and validation images, which" in result.output


def test_all_that_evaluate_cannot_use_is_a_sentence(tmp_path):
    (tmp_path / "noise.zip").write_bytes(b"PK\3\4" + bytes(99))
    (tmp_path / "list.csv").write_text("a;b\n1;2\n")
    for data, complaint in {
        "noise.zip": "cannot be read as CSV",
        "list.csv": "has columns a, b: it needs the image's path",
    }.items():
        result = run_command("evaluate", "--data", tmp_path / data)
        assert result.exit_code == 2
        assert f"{data} {complaint}" in result.output

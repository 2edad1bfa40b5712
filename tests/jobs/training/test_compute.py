"""Where a training runs is checked before it starts."""

import subprocess
import sys

import pytest
import torch

from emopipe.emonet.errors import TrainingError
from emopipe.jobs.training.compute import ComputeConfig


@pytest.mark.parametrize("others", [{"workers": 2}, {"address": "auto"}])
def test_a_local_training_has_no_workers_and_no_cluster(others):
    with pytest.raises(TrainingError, match="`local` trains in this process"):
        ComputeConfig(local=True, **others)


def test_invalid_values_are_named():
    with pytest.raises(TrainingError, match="`workers` is 1 or more, not 0"):
        ComputeConfig(workers=0)
    with pytest.raises(TrainingError, match="`cpus` is a whole number"):
        ComputeConfig(cpus="all")


@pytest.mark.parametrize("found", [True, False])
def test_gpus_are_used_where_there_are_any_unless_set_otherwise(monkeypatch, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert ComputeConfig().resolved().gpu is found
    assert ComputeConfig(gpu=False).resolved().gpu is False
    assert ComputeConfig(gpu=True).resolved().gpu is True  # the cluster may have one
    if not found:
        with pytest.raises(TrainingError, match="`gpu`: PyTorch finds no GPU here"):
            ComputeConfig(gpu=True, local=True).resolved()


def test_the_options_help_needs_no_pytorch():
    program = "import sys, emopipe.jobs.cli.finetune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

"""What can be chosen is checked where it is made, without loading what it is for."""

import subprocess
import sys

import pytest

from emonet import predictor
from pipeline.settings import PRECISIONS, Settings, SettingsError


def test_precisions_are_those_of_the_predictor():
    assert PRECISIONS == ("auto", *predictor.PRECISIONS)
    with pytest.raises(SettingsError, match="--precision is one of auto, float32"):
        Settings(precision="float8")


def test_settings_doctor_and_models_load_without_pytorch():
    modules = "import sys, pipeline.settings, jobs.doctor, jobs.models"
    program = f"{modules}; assert not {{'torch', 'ray'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

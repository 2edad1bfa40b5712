"""What can be chosen is checked where it is made."""

import pytest

from emopipe.emonet import predictor
from emopipe.pipeline.settings import PRECISIONS, Settings, SettingsError


def test_precisions_are_those_of_the_predictor():
    assert ("auto", *predictor.PRECISIONS) == PRECISIONS
    with pytest.raises(SettingsError, match="--precision is one of auto, float32"):
        Settings(precision="float8")
    with pytest.raises(SettingsError, match="--backend is one of pyav, decord"):
        Settings(backend="opencv")

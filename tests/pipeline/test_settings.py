"""Settings are checked where they are made, and describe what results depend on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emopipe.emonet import predictor
from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.fields import rules_of
from emopipe.emonet.runtime import Compute
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.settings import (
    PRECISIONS,
    Settings,
    SettingsError,
    compute_of,
    describe,
    resolved,
)


def test_precisions_are_those_of_the_predictor():
    assert ("auto", *predictor.PRECISIONS) == PRECISIONS


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("fps", "5", "`fps` is a number (more than 0 and at most 1000), not '5'"),
        ("fps", 0, "`fps` is more than 0 and at most 1000, not 0"),
        ("fps", float("nan"), "`fps` is more than 0 and at most 1000, not nan"),
        ("threads", True, "`threads` is a whole number (1 or more), not True"),
        ("stride", 0, "`stride` is 1 or more, not 0"),
        ("stride", 1.5, "`stride` is a whole number (1 or more), not 1.5"),
        ("start", -1, "`start` is 0 or more, not -1"),
        ("detect_size", 0, "`detect_size` is 160 or more, not 0"),
        ("faces_per_batch", 0, "`faces_per_batch` is 1 or more, not 0"),
        ("classes", "a,b", "`classes` is a list of texts, not 'a,b'"),
        ("detector", "yunett", "centerface, yunet, blazeface, sfd, not 'yunett': did you mean"),
        ("backend", "opencv", "`backend` is one of pyav, decord, not 'opencv'"),
        ("crop", "round", "`crop` is one of square, box, not 'round'"),
        ("precision", "float8", "`precision` is one of auto, float32, bfloat16, float16, not"),
        ("smooth", 0, "`smooth` is more than 0 and at most 60, not 0"),
        ("smooth", -0.5, "`smooth` is more than 0 and at most 60, not -0.5"),
        ("smooth", float("nan"), "`smooth` is more than 0 and at most 60, not nan"),
        ("smooth", "emonett", "`smooth` is emonet or a number (more than 0 and at most 60), not"),
        ("smooth", "0.5", "`smooth` is emonet or a number (more than 0 and at most 60), not '0.5'"),
        ("smooth", True, "`smooth` is emonet or a number (more than 0 and at most 60), not True"),
        ("landmarks", "float64", "`landmarks` is one of float32, float16, none, not 'float64'"),
    ],
)
def test_an_invalid_value_is_a_sentence(field: str, value: Any, sentence: str):
    with pytest.raises(SettingsError) as raised:
        Settings(**{field: value})
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fps": 2, "stride": 2}, "`fps` and `stride` exclude each other"),
        ({"start": 2, "end": 2}, "`end` is later than `start`"),
        ({"classes": ("a", "a")}, "`classes` are distinct names"),
        ({"classes": ("a", "")}, "`classes` are distinct names"),
    ],
)
def test_settings_that_contradict_each_other_are_a_sentence(settings, sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        Settings(**settings)


def test_values_get_the_types_of_their_fields():
    settings = Settings(fps=5, detector_weights="w", classes=["a", "b"])
    assert (settings.fps, settings.detector_weights) == (5.0, Path("w"))
    assert isinstance(settings.fps, float)
    assert settings.classes == ("a", "b")


def test_every_field_is_declared_with_help_and_group():
    assert rules_of(Settings).keys() == Settings.__dataclass_fields__.keys() - {"selection"}
    assert rules_of(Selection).keys() == Selection.__dataclass_fields__.keys()
    for rule in (rules_of(Settings) | rules_of(Selection)).values():
        assert rule.help.endswith(".") and rule.group


@pytest.mark.parametrize("meant", [True, False])
def test_unless_asked_predictions_are_averaged_as_the_checkpoint_is_meant_to_be_used(meant: bool):
    checkpoint = replace(open_model("emonet-lite")[1], mirror=meant)
    assert resolved(Settings(), checkpoint).mirror is meant
    assert resolved(Settings(mirror=not meant), checkpoint).mirror is not meant


def test_the_detector_computes_where_the_network_does():
    settings = Settings(device="cuda:1", precision="float16", runtime="openvino", threads=3)
    assert compute_of(settings) == Compute("torch", "float16", 3, "cuda:1")
    on_cpu = Settings(device="cpu", precision="float32", runtime="torch", threads=3)
    assert compute_of(on_cpu) == Compute("torch", "float32", 3)


def test_the_description_of_the_default_settings():
    """Its part "settings" decides whether a run may be resumed: it changes with results only."""
    _, checkpoint = open_model("emonet-lite")
    asked = Settings(device="cpu", precision="float32", runtime="torch")
    settings = resolved(asked, checkpoint)
    description = describe(settings, checkpoint)
    decisive = description["settings"]
    assert decisive.pop("checkpoint") == checkpoint.sha256
    assert decisive.pop("classes") == list(checkpoint.classes)
    assert list(decisive.pop("detector_weights")) == ["centerface.onnx"]
    assert json.dumps(decisive, sort_keys=True) == (
        '{"backend": "pyav", "crop": "square", "deinterlace": true, "detect_every": 1, '
        '"detect_size": 640, "detector": "centerface", "end": null, "faces": "all", "fps": null, '
        '"landmarks": "float32", "max_faces": null, "max_gap": 30.0, '
        '"min_score": null, "min_size": 0.0, "mirror": true, "precision": "float32", "roi": null, '
        '"runtime": "torch", "smooth": null, "start": null, "stride": 1}'
    )
    assert describe(replace(settings, mirror=False), checkpoint)["settings"]["mirror"] is False
    for smooth in ("emonet", 0.5):
        made = describe(replace(settings, smooth=smooth), checkpoint)["settings"]
        assert made["smooth"] == smooth
    assert description["device"] == "cpu"
    assert description["checkpoint"]["license"] == checkpoint.license

"""Options made from the fields of settings dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from command import run_command

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import check_settings, rules_of, setting
from emopipe.emonet.training.config import (
    FINETUNE_DEFAULTS,
    PRETRAIN_DEFAULTS,
    FineTuning,
    NetworkSize,
    Pretraining,
    TrainingConfig,
)
from emopipe.jobs.cli.base import Command
from emopipe.jobs.cli.options import build, options_of
from emopipe.jobs.training.compute import ComputeConfig


@dataclass(frozen=True)
class Oven:
    """Settings with a field of each kind."""

    heat: float = setting(180.0, "How hot.", group="speed", above=0, most=300)
    trays: int | None = setting(None, "How many trays.", group="speed", least=1, unset="all")
    recipe: Path | None = setting(None, "Where it is written.", group="input")
    mode: str = setting("fan", "How it heats.", group="speed", choices=("fan", "grill"))
    loud: bool = setting(False, "Ring at the end.", group="output")
    light: bool | None = setting(None, "Light inside.", group="output", unset="by the door")
    classes: tuple[str, ...] | None = setting(None, "Names.", group="model", unset="none")
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_settings(self, EmopipeError)


@click.command(cls=Command)
@options_of(Oven(heat=200.0))
def bake(**options: Any) -> None:
    """Print what is built."""
    oven = build(Oven, options, parts=["door"])
    assert not options
    click.echo(repr(oven))


def baked(*arguments: str) -> str:
    return CliRunner().invoke(bake, arguments).output.strip()


def test_options_that_are_not_given_take_the_fields_values() -> None:
    assert baked() == repr(Oven(heat=200.0, parts=["door"]))


def test_options_become_values_of_the_fields_types() -> None:
    given = "--heat 90 --trays 2 --recipe cake.md --mode grill --loud --no-light --classes a,b"
    oven = Oven(90.0, 2, Path("cake.md"), "grill", True, False, ("a", "b"), ["door"])
    assert baked(*given.split()) == repr(oven)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--heat 0", "Error: --heat is more than 0 and at most 300, not 0"),
        ("--trays 0", "Error: --trays is 1 or more, not 0"),
        ("--mode gril", "Error: --mode is one of fan, grill, not 'gril': did you mean grill?"),
    ],
)
def test_the_dataclass_checks_and_the_error_names_the_option(arguments: str, sentence: str) -> None:
    assert baked(*arguments.split()) == sentence


def test_help_shows_ranges_choices_and_defaults() -> None:
    text = " ".join(baked("--help").split())
    for part in (
        "--heat FLOAT How hot. [more than 0 and at most 300; default: 200]",
        "--trays INTEGER How many trays. [1 or more; default: all]",
        "--recipe PATH Where it is written. ",
        "--mode [fan|grill] How it heats. [default: fan]",
        "--loud Ring at the end. ",
        "--light / --no-light Light inside. [default: by the door]",
        "--classes A,B,C Names. [default: none]",
    ):
        assert part in text
    assert "parts" not in text


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("finetune", (FineTuning(), FINETUNE_DEFAULTS, ComputeConfig())),
        ("pretrain", (Pretraining(), PRETRAIN_DEFAULTS, ComputeConfig(), NetworkSize())),
    ],
)
def test_help_of_trainings_has_every_field_with_its_default(
    command: str, settings: tuple[Any, ...]
) -> None:
    text = " ".join(run_command(command, "--help").output.split())
    flags = {"trained": "--train", "gpu": "--gpus"}
    for one in settings:
        for name, rule in rules_of(type(one)).items():
            flag = flags.get(name, f"--{name.replace('_', '-')}")
            assert f"{flag} " in text
            assert rule.help.replace("`out`", "--out") in text
    training = settings[1]
    assert isinstance(training, TrainingConfig)
    assert f"Passes over the data at most. [1 or more; default: {training.epochs}]" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--train tail", "--train is one of head, emotion, all, not 'tail'"),
        ("--warmup 2", "--warmup is 0 or more and below 1, not 2"),
        ("--epochs 2 --cooldown-epochs 3", "--cooldown-epochs is from 0 to --epochs"),
        ("--local --workers 2", "--local trains in this process"),
        ("--resume --overwrite", "--resume continues a run, --overwrite replaces it"),
        ("--from-scratch --train head", "--from-scratch trains all weights, from random ones"),
    ],
)
def test_errors_of_trainings_name_the_options(
    arguments: str, sentence: str, tmp_path: Path
) -> None:
    result = run_command("finetune", "fer2013.csv", "--out", tmp_path / "run", *arguments.split())
    assert result.exit_code == 2
    assert sentence in result.output

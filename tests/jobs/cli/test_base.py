"""What all commands share: sentences that name options, help in groups."""

import click
import pytest
from click.testing import CliRunner

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.cli.base import Command, Group, option


@pytest.fixture
def tool() -> Group:
    """A group with a command, and with a nested group that has one of the same options."""

    @click.group(cls=Group)
    def main() -> None:
        pass

    @main.command()
    @click.argument("inputs", nargs=-1)
    @option("-f", "--fps", type=float)
    @option("--from", "start_model", group="model", help="Where from.")
    @option("--detector", group="faces", help="Which detector.")
    @option("--message", default="")
    def run(message: str, **_: object) -> None:
        raise EmopipeError(message)

    @main.group()
    def models() -> None:
        pass

    @models.command()
    @click.argument("names", metavar="[NAME]...", nargs=-1)
    @option("--accept-license/--no-license", "accept_license")
    def fetch(**_: object) -> None:
        raise EmopipeError("say `accept_license` for `names`, not `fps`")

    return main


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("`fps` is more than 0, not 0", "--fps is more than 0, not 0"),
        ("`fps` and `start_model` exclude each other", "--fps and --from exclude each other"),
        ("`inputs` is empty", "INPUTS is empty"),
        ("`gamma`, `ray.init()` and fps", "`gamma`, `ray.init()` and fps"),
        ("run emopipe models fetch x", "run emopipe models fetch x"),
    ],
)
def test_an_error_names_what_the_user_types(tool: Group, raised: str, shown: str) -> None:
    result = CliRunner().invoke(tool, ["run", "--message", raised])
    assert (result.exit_code, result.output) == (2, f"Error: {shown}\n")


def test_a_nested_command_names_its_own_options(tool: Group) -> None:
    result = CliRunner().invoke(tool, ["models", "fetch", "yunet"])
    shown = "Error: say --accept-license for NAME, not `fps`\n"
    assert (result.exit_code, result.output) == (2, shown)


def test_help_has_headings_in_the_fixed_order(tool: Group) -> None:
    lines = CliRunner().invoke(tool, ["run", "--help"]).output.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Faces:", "Model:", "Other options:"]
    after = {heading: lines[lines.index(heading) + 1].split() for heading in headings}
    assert after["Faces:"] == ["--detector", "TEXT", "Which", "detector."]
    assert after["Model:"] == ["--from", "TEXT", "Where", "from."]
    assert "Options:" in CliRunner().invoke(tool, ["models", "fetch", "--help"]).output


def test_help_names_other_options_as_the_user_types_them() -> None:
    @click.command(cls=Command)
    @option("--from", "start_model", help="Not with `gamma` or `end`.")
    @option("--end", help="Later than `start_model`.")
    def run(**_: object) -> None:
        pass

    text = CliRunner().invoke(run, ["--help"]).output
    assert "Not with `gamma` or --end." in text
    assert "Later than --from." in text

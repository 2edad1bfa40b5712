"""`python -m emopipe.jobs.cli`: the `emopipe` command."""

from emopipe.jobs.cli import program

program()

"""The `emopipe` command, run inside the test's process."""

from pathlib import Path

import torch
from click.testing import CliRunner, Result

from emopipe.jobs.cli import main


def run_command(*arguments: str | Path) -> Result:
    """Run it with these arguments; PyTorch's number of threads is restored."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)

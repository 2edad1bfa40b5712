"""The `emopipe` command, run inside the test's process."""

from pathlib import Path

import torch
from click.testing import CliRunner, Result

from emopipe.jobs.cli import main


def emopipe(*arguments: str | Path) -> Result:
    """Run it with these arguments; PyTorch's threads are put back as they were."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)

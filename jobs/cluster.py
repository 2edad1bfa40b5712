"""Ray for one run: started on this machine, or a cluster joined by its address."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import ray

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.run import cores

OBJECT_STORE_BYTES = 2**30
"""Shared memory of a Ray started here: some 40 spans of 256 px crops."""

ORPHANED_S = 10
"""So long Ray's processes look for their control process before they end. It is gone where this
process was killed: by default they would stay behind for a minute."""

MONITOR = "ray/autoscaler/_private/monitor.py"


class ClusterError(EmopipeError):
    """A Ray cluster that cannot be joined or lacks what was asked for."""


@dataclass(frozen=True)
class ClusterOptions:
    """Where a run works and how it spreads.

    Attributes:
        address: of a running cluster ("auto", "host:6379", "ray://host:10001"); None starts Ray on
            this machine for the run.
        cpus: CPUs of the Ray that is started; None for all of this machine's.
        gpus: GPUs for the network; None for all there are.
        face_actors: actors that decode, detect and align; None for what the CPUs take.
        network_actors: actors of their own for the network; None for one a GPU, and where there
            is no GPU for none: the face actors run it too.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    face_actors: int | None = None
    network_actors: int | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "face_actors", "network_actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ClusterError(f"--{name.replace('_', '-')} is 1 or more, not {value}")
        if self.gpus is not None and self.gpus < 0:
            raise ClusterError(f"--gpus is 0 or more, not {self.gpus}")


@contextmanager
def ray_session(options: ClusterOptions) -> Iterator[None]:
    """Start or join Ray, quietly, and leave it at the end with nothing left running.

    A Ray that this process uses already is used, and left as it is.

    Raises:
        ClusterError: no cluster answers at that address.
    """
    # Ray 2.64 will take these another way; pyproject.toml keeps it below.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
    # One large video is one input of many segments.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    theirs = ray.is_initialized()
    if not theirs:
        _start_or_join(options)
    try:
        _quieten_ray_data()
        yield
    finally:
        if not theirs:
            _end_monitor()
            ray.shutdown()


def _start_or_join(options: ClusterOptions) -> None:
    started_here = (
        {}
        if options.address
        else {
            "num_cpus": options.cpus or cores(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_system_config": {"gcs_rpc_server_reconnect_timeout_s": ORPHANED_S},
        }
    )
    try:
        ray.init(
            address=options.address or "local",
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **started_here,
        )
    except Exception as error:  # Ray raises bare ones too, as where a busy machine is too slow
        where = f"--address {options.address}" if options.address else "Ray on this machine"
        raise ClusterError(
            f"{where} does not start or answer ({str(error).splitlines()[0]}); "
            f"--local works without Ray"
        ) from error


def _end_monitor() -> None:
    """End the process that would scale a cluster, if Ray started one below this one.

    It does not heed Ray's request to end: `ray.shutdown` waits a second and kills it.
    """
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(part.endswith(MONITOR) for part in child.cmdline()):
                child.kill()


def _quieten_ray_data() -> None:
    """Keep what Ray Data says out of the user's terminal; its files have it."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler):
            logger.removeHandler(handler)

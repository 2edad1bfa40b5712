"""Ray for one run: started on this machine, or a cluster joined by its address."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import psutil

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import check_settings, documented, setting
from emopipe.emonet.runtime import available_cores
from emopipe.jobs.interrupts import handlers_kept

if TYPE_CHECKING:  # the command line shows its help without Ray, which takes a second to load
    from ray.job_config import JobConfig

Engine = Literal["auto", "local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
"""Where an analysis may run: in this process, on Ray, or wherever it is done sooner."""

WITHOUT_RAY = "`engine` local needs no Ray"
"""Ends the sentences of an analysis that Ray failed."""

OBJECT_STORE_BYTES = 2**30
"""Shared memory of a Ray started here: some 160 spans of 256 px crops."""

ORPHANED_S = 10
"""Ray's processes end when they have not reached their control process for this long, because the
driver was killed. Ray's own default leaves them behind for a minute."""

TEMPORARY_BYTES = 2**25
"""What Ray's temporary folder must have free: the logs and sockets of a start are a few MiB."""

LOOPBACK_S = 5.0
"""The loopback interface answers within microseconds, or not at all."""

MONITOR = "ray/autoscaler/_private/monitor.py"


class ClusterError(EmopipeError):
    """A Ray cluster that cannot be joined or lacks what was asked for."""


@documented
@dataclass(frozen=True)
class ClusterOptions:
    """Where a run works on Ray, and with how many workers.

    Raises:
        ClusterError: a value is of the wrong type or out of range.
    """

    address: str | None = setting(
        None,
        "Join a running Ray cluster: auto, or HOST:6379 of its head.",
        group="cluster",
        unset="Ray is started on this machine",
    )
    cpus: int | None = setting(
        None, "CPUs that the started Ray may use.", group="cluster", least=1, unset="all"
    )
    gpus: int | None = setting(
        None, "GPUs for the networks.", group="cluster", least=0, unset="all"
    )
    face_actors: int | None = setting(
        None,
        "Workers that decode and detect; without GPUs they run the network too.",
        group="cluster",
        least=1,
        unset="one per CPU, but 8 per GPU that detects",
    )
    network_actors: int | None = setting(
        None,
        "Workers of their own for the network.",
        group="cluster",
        least=1,
        unset="one per GPU, else none",
    )

    def __post_init__(self) -> None:
        check_settings(self, ClusterError)
        if self.address and self.address.startswith("ray://"):
            raise ClusterError(
                f"`address` {self.address}: Ray Client cannot stream results; run this on a "
                f"machine of the cluster, with `address` auto or HOST:6379 of its head"
            )


@contextmanager
def ray_session(options: ClusterOptions, otherwise: str) -> Iterator[None]:
    """Start or join Ray, quietly, and leave nothing of it running at the end.

    A Ray that this process has already initialized is used, and left running.

    Args:
        options: where.
        otherwise: ends the sentence where Ray does not start: what works without it.

    Raises:
        ClusterError: no cluster answers at that address, or Ray does not start here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        with handlers_kept():
            _start_or_join(options, otherwise)
        yield
    finally:
        _end_monitor()
        ray.shutdown()


def _start_or_join(options: ClusterOptions, otherwise: str) -> None:
    import ray

    if not options.address:
        check_surroundings(otherwise)
    started_here = (
        {}
        if options.address
        else {
            "num_cpus": options.cpus or available_cores(),
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
            job_config=_job_config(),
            **started_here,
        )
    except Exception as error:  # Ray raises bare ones too, as where a busy machine is too slow
        where = f"`address` {options.address}" if options.address else "Ray on this machine"
        raise ClusterError(
            f"{where} does not start or answer ({str(error).splitlines()[0]}); {otherwise}"
        ) from error


def check_surroundings(otherwise: str) -> None:
    """Check what Ray's processes need: without it they wait for each other for half a minute.

    Args:
        otherwise: ends the sentence, see `ray_session`.

    Raises:
        ClusterError: Ray's temporary folder is full, or the loopback interface is down.
    """
    # Ray looks for it in these places.
    named = [os.environ.get(name, "") for name in ("RAY_TMPDIR", "TMPDIR")]
    folder = next((Path(one) for one in named if one), Path("/tmp"))
    way_out = f"set RAY_TMPDIR to another folder; {otherwise}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(mmap.PAGESIZE))
    except OSError as error:
        raise ClusterError(
            f"Ray's temporary folder {folder} cannot be written ({error.strerror}): {way_out}"
        ) from error
    if free < TEMPORARY_BYTES:
        raise ClusterError(
            f"Ray's temporary folder {folder} is full ({free / 2**20:.0f} MiB free, "
            f"{TEMPORARY_BYTES >> 20} needed): {way_out}"
        )
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), LOOPBACK_S),
        ):
            pass
    except OSError as error:
        raise ClusterError(
            f"Ray's processes cannot reach each other at 127.0.0.1 ({error.strerror}); is the "
            f"loopback interface up (ip link set lo up)? {otherwise}"
        ) from error


def _job_config() -> JobConfig:
    """A job whose workers do not import from the driver's working folder.

    Ray puts that folder and the script's on the workers' path, where a user's own `av.py` would
    take the place of the library, unless the job ships a working folder.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPath()


def _end_monitor() -> None:
    """End the process that would scale a cluster, if Ray started one below this one.

    It ignores Ray's request to end: `ray.shutdown` waits a second and kills it.
    """
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(part.endswith(MONITOR) for part in child.cmdline()):
                child.kill()

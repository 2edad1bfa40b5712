"""What computes the networks on a CPU: OpenVINO where it is installed, else PyTorch and OpenCV."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError

if TYPE_CHECKING:
    import openvino

Runtime = Literal["auto", "openvino", "torch"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""Precisions that OpenVINO computes in on CPUs, by its own names."""


@dataclass(frozen=True)
class Compute:
    """How a network is computed: on a CPU (see `cpu_compute`) or a GPU.

    Attributes:
        runtime: "openvino" or "torch"; the detectors that are no PyTorch networks take OpenCV for
            the latter. On a GPU all is PyTorch's.
        precision: one of `OPENVINO_PRECISIONS`, on a GPU also float16; OpenCV computes in float32
            in any case.
        threads: CPU threads; None for all cores.
        device: PyTorch's name of the device.
    """

    runtime: Runtime
    precision: str
    threads: int | None = None
    device: str = "cpu"


Infer = Callable[[Sequence[NDArray[Any]]], list[list[NDArray[np.float32]]]]
"""Takes several values of a network's one input and returns the outputs for each."""


class RuntimeChoiceError(EmopipeError):
    """A runtime that is not installed, or does not load."""


def multiplies_bfloat16() -> bool:
    """Whether the CPU has bfloat16 instructions; emulation is slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = {word for line in cpuinfo.read_text().splitlines() for word in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def available_cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_runtime(runtime: str) -> Runtime:
    """Choose what computes networks on this machine's CPU.

    Args:
        runtime: one of `RUNTIMES`.

    Raises:
        RuntimeChoiceError: OpenVINO is asked for, but does not load.
    """
    if runtime == "torch":
        return "torch"
    try:
        import openvino  # noqa: F401
    except Exception as error:  # native libraries fail to load in many ways
        if runtime == "openvino":
            raise RuntimeChoiceError(
                f"`runtime` openvino: OpenVINO does not load ({error}). Install the package "
                f"openvino, or use `runtime` torch."
            ) from error
        return "torch"
    return "openvino"


def cpu_compute(
    runtime: str = "auto", precision: str = "auto", threads: int | None = None
) -> Compute:
    """Resolve how a network is computed on this machine's CPU.

    Args:
        runtime: one of `RUNTIMES`.
        precision: auto and bfloat16 are bfloat16 where the CPU has instructions for it; else it
            is float32.
        threads: CPU threads; None for all cores.

    Raises:
        RuntimeChoiceError: OpenVINO is asked for, but does not load.
    """
    is_short = precision in ("auto", "bfloat16") and multiplies_bfloat16()
    return Compute(resolve_runtime(runtime), "bfloat16" if is_short else "float32", threads)


@cache
def openvino_core() -> openvino.Core:
    """OpenVINO's core: one, kept for the process's life.

    Each core's CPU plugin gives the thread a stack for signals, and puts the one before back when
    it goes. Of two cores, that may be gone by then: the next Ctrl-C would crash the process.
    """
    import openvino

    core = openvino.Core()
    # Not even Python's own end, which clears modules, is to take it down.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    return core


def compiled(model: openvino.Model, precision: str, threads: int | None, streams: int = 1) -> Infer:
    """Prepare a network for this CPU.

    Tests hold that its outputs are the same bits for any number of threads and streams, and any
    batch.

    Args:
        model: with one input.
        precision: one of `OPENVINO_PRECISIONS`.
        threads: CPU threads; None for all cores.
        streams: inputs that are computed at once, each by an equal share of the threads.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        # Processes beside each other would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    network = openvino_core().compile_model(model, "CPU", settings)
    requests = [network.create_infer_request() for _ in range(streams)]

    def infer(inputs: Sequence[NDArray[Any]]) -> list[list[NDArray[np.float32]]]:
        outputs = []
        try:
            for i, values in enumerate(inputs):
                request = requests[i % streams]
                if i >= streams:
                    outputs.append(_outputs(request))
                request.start_async([values], share_inputs=True)
            waiting = (requests[i % streams] for i in range(len(outputs), len(inputs)))
            return outputs + [_outputs(request) for request in waiting]
        finally:
            # After an error too: a request that works still reads its input, and takes no other.
            for request in requests:
                request.wait()

    return infer


def _outputs(request: openvino.InferRequest) -> list[NDArray[np.float32]]:
    """Wait for a request and copy what it has computed."""
    request.wait()
    return [np.array(output.data) for output in request.output_tensors]

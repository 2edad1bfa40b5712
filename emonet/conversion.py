"""EmoNet for OpenVINO: converted from the PyTorch module, once, and kept in the cache folder."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.model import EmoNet
from emopipe.emonet.registry import cache_folder
from emopipe.emonet.runtime import openvino_core

if TYPE_CHECKING:
    import openvino

VERSION = 1
"""Of what is converted, `_Trunk`: conversions of others are not used."""

_FILE, _WEIGHTS = "trunk.xml", "trunk.bin"


class _Trunk(nn.Module):
    """From bytes to heatmaps and features; the last layers stay in float32 PyTorch."""

    def __init__(self, model: EmoNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        heatmaps, features, _ = self.model.trunk(crops.permute(0, 3, 1, 2).float() / 255)
        return heatmaps, features


def openvino_trunk(model: EmoNet, checkpoint: Checkpoint) -> openvino.Model:
    """Convert `EmoNet.trunk`, or read an earlier conversion: converting takes some seconds.

    Args:
        model: the network, in float32 on the CPU, with the weights that `checkpoint` describes.
        checkpoint: its description.

    Returns:
        A network from (N, size, size, 3) uint8 RGB crops to heatmaps and features.
    """
    import openvino

    release = openvino.get_version().split("-")[0]
    folder = cache_folder() / "openvino" / f"{checkpoint.sha256}-{release}-{VERSION}"
    core = openvino_core()
    if checkpoint.sha256:
        with suppress(RuntimeError):  # OpenVINO's, for files that are damaged or not there
            return core.read_model(folder / _FILE)
    converted = _convert(model, checkpoint.input_size)
    with tempfile.TemporaryDirectory(prefix="emopipe-openvino-") as scratch:
        openvino.save_model(converted, Path(scratch, _FILE), compress_to_fp16=False)
        if checkpoint.sha256:
            with suppress(OSError):  # a cache that cannot be written is no cache
                _keep(Path(scratch), folder)
        # Read again: the last digits are not those of the model in memory.
        content = [Path(scratch, name).read_bytes() for name in (_FILE, _WEIGHTS)]
        return core.read_model(*content)


@torch.inference_mode()
def _convert(model: EmoNet, size: int) -> openvino.Model:
    # Not `openvino.convert_model`, which reports each use to its makers.
    from openvino import PartialShape, Type
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript, from which OpenVINO converts.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            _Trunk(model).eval(), example, check_trace=False
        )
        # Frozen: converting goes through the module's attributes one by one otherwise, three
        # times as slowly.
        frozen = torch.jit.freeze(traced)
    decoder = TorchScriptPythonDecoder(frozen)
    frontend = FrontEndManager().load_by_framework("pytorch")
    converted = frontend.convert(frontend.load(decoder))
    crops = converted.inputs[0].get_node()
    crops.set_element_type(Type.u8)
    crops.set_partial_shape(PartialShape([-1, size, size, 3]))
    converted.validate_nodes_and_infer_types()
    return converted


def _keep(scratch: Path, folder: Path) -> None:
    """Copy a conversion's files; the folder appears as a whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    growing = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        shutil.copytree(scratch, growing, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or of no use
        growing.rename(folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)

"""State dicts: read from files without executing code, and checked to be an EmoNet's."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emopipe.emonet.errors import CheckpointError
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.model import PUBLISHED_WIDTH, WIDTH_MULTIPLE, EmoNet

_LAST_LAYER = "emo_fc_2.3.weight"
_FIRST_LAYER = "conv1.weight"
_SHOWN_DIFFERENCES = 3


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a `.safetensors` file's tensors, floating-point ones as float32, and its metadata.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: _full(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); fetch or copy the file again"
        ) from error
    return state, metadata


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a `.pth` state dict, floating-point tensors as float32, names without `module.`.

    Raises:
        CheckpointError: the file cannot be read, or holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises errors of many types on other files
        raise CheckpointError(
            f"{path} is not a file of weights alone: it is damaged, or loading it would execute "
            f"code, which emopipe never does. Save it as torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(
            f"{path} is not a state dict (names with tensors). "
            f"Save it as torch.save(model.state_dict(), ...)"
        )
    return {name.removeprefix("module."): _full(tensor) for name, tensor in content.items()}


def check_shapes(state: dict[str, Tensor], path: Path) -> None:
    """Check that tensors have the names and shapes of some EmoNet's.

    Raises:
        CheckpointError: they do not; the text names `path` and what differs.
    """
    n_expression, width = dimensions(state)
    if n_expression < 1 or width < 1 or width % WIDTH_MULTIPLE:
        # No EmoNet has these dimensions: the published one's serve for the comparison.
        n_expression, width = len(EMOTIONS_8), PUBLISHED_WIDTH
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in EmoNet(n_expression, width).state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is unknown" for name in found if name not in expected]
    differences += [
        f"{name} is {found[name]}, not {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if differences:
        more = len(differences) - _SHOWN_DIFFERENCES
        shown = "; ".join(differences[:_SHOWN_DIFFERENCES]) + (
            f"; and {more} more" if more > 0 else ""
        )
        raise CheckpointError(
            f"{path} holds another network than EmoNet: {shown}. Use a checkpoint of EmoNet"
        )


def dimensions(state: dict[str, Tensor]) -> tuple[int, int]:
    """Classes and width, by the shapes of the last and the first layer; below 1 if these lack."""
    outputs, channels = (
        len(state[name]) if name in state and state[name].ndim else 0
        for name in (_LAST_LAYER, _FIRST_LAYER)
    )
    return outputs - 2, 4 * channels


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float16, on the CPU; running statistics and whole numbers stay as they are."""
    return {
        name: tensor.detach().to("cpu", _stored_dtype(name, tensor)).contiguous()
        for name, tensor in state.items()
    }


def _stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
    is_weight = tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    return torch.float16 if is_weight else tensor.dtype


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor

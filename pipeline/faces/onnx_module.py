"""The network of an ONNX file as a PyTorch module, which runs on GPUs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

_Convolution = nn.Conv2d | nn.ConvTranspose2d
_CONVOLUTION = {"dilations", "group", "kernel_shape", "pads", "strides"}
_ATTRIBUTES = {
    "Conv": _CONVOLUTION,
    "ConvTranspose": _CONVOLUTION,
    "BatchNormalization": {"epsilon", "momentum"},
    "Relu": set(),
    "Sigmoid": set(),
    "Add": set(),
}
"""The operators that CenterFace has, and the attributes with which it has them."""

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Add": torch.add,
}


def onnx_module(path: Path, outputs: Sequence[str]) -> fx.GraphModule:
    """Build a module from an ONNX network of one input and of the operators that CenterFace has.

    Batch normalization is folded into the convolution before it.

    Args:
        path: the file.
        outputs: names of the values that the module is to return.

    Returns:
        Takes the network's input, (n, channels, height, width) float32, to the list of outputs.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such network.
    """
    content = path.read_bytes()
    try:
        network = onnx.load_model_from_string(content).graph
        module, shape = _module(network, outputs)
        module(torch.zeros(shape))  # layers that do not fit each other show now
    except Exception as error:  # onnx and PyTorch raise many types for what is damaged
        raise ValueError(f"{path} is not an ONNX network like CenterFace: {error}") from error
    return module


def _module(network: onnx.GraphProto, outputs: Sequence[str]) -> tuple[fx.GraphModule, list[int]]:
    """The module, and the shape for which the input is declared."""
    weights = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in network.initializer}
    (given,) = (one for one in network.input if one.name not in weights)
    graph, layers = fx.Graph(), dict[str, _Convolution]()
    values = {given.name: graph.placeholder("x")}
    for node in network.node:
        (output,) = node.output
        kind, options = node.op_type, _attributes(node)
        if kind in _FUNCTIONS:
            inputs = tuple(values[name] for name in node.input)
            values[output] = graph.call_function(_FUNCTIONS[kind], inputs)
            continue
        given_name, *names = node.input
        parameters = [weights[name] for name in names]
        if kind == "BatchNormalization":
            # Taken out: nothing else can use the value without normalization any more.
            values[output] = convolved = values.pop(given_name)
            name = str(convolved.target)
            layers[name] = _normalized(layers[name], parameters, options["epsilon"])
        else:
            name = f"layer{len(layers)}"
            layers[name] = _convolution(kind, parameters, options)
            values[output] = graph.call_module(name, (values[given_name],))
    graph.output([values[name] for name in outputs])
    shape = [dimension.dim_value for dimension in given.type.tensor_type.shape.dim]
    return fx.GraphModule(layers, graph).eval().requires_grad_(False), shape


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name.

    Raises:
        ValueError: its operator or one of them is not supported.
    """
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if _ATTRIBUTES.get(node.op_type) != set(attributes):
        raise ValueError(
            f"the operator {node.op_type} with {', '.join(attributes) or 'no attributes'} is not "
            f"supported"
        )
    return attributes


def _convolution(kind: str, parameters: list[Tensor], options: dict[str, Any]) -> _Convolution:
    """A convolution or transposed one, of ONNX's attributes, with its weight and perhaps bias."""
    weight = parameters[0]
    top, left, bottom, right = options["pads"]
    if (top, left) != (bottom, right):
        raise ValueError(f"the padding {options['pads']} is not supported")
    is_transposed = kind == "ConvTranspose"
    groups = options["group"]
    # Weights are (out, in / groups, …), those of a transposed one (in, out / groups, …).
    first, second = weight.shape[0], weight.shape[1] * groups
    with torch.device("meta"):  # the weights are there already
        layer = (nn.ConvTranspose2d if is_transposed else nn.Conv2d)(
            first if is_transposed else second,
            second if is_transposed else first,
            tuple(options["kernel_shape"]),
            stride=tuple(options["strides"]),
            padding=(top, left),
            dilation=tuple(options["dilations"]),
            groups=groups,
            bias=len(parameters) == 2,
        )
    layer.load_state_dict(dict(zip(("weight", "bias"), parameters, strict=False)), assign=True)
    return layer


def _normalized(layer: _Convolution, parameters: list[Tensor], epsilon: float) -> _Convolution:
    """Fold a batch normalization (weight, bias, mean, variance) into the convolution before it."""
    names = ("weight", "bias", "running_mean", "running_var")
    norm = nn.BatchNorm2d(len(parameters[0]), eps=epsilon)
    norm.load_state_dict(dict(zip(names, parameters, strict=True)), strict=False)
    return fuse_conv_bn_eval(layer.eval(), norm.eval(), isinstance(layer, nn.ConvTranspose2d))

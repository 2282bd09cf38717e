"""A network as a graph, with batch-norm folded into its convolutions: fewer passes over the activations.

Usage::

    graph = folded(network.module)      # None where the network has no graph; else graph(x) is network.module(x)

Reference: the identity ``norm(conv(x)) = conv'(x)`` in eval mode, with weights scaled by ``gamma / sqrt(var + eps)``.
"""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from xai_lib.attribution.core import shadow
from xai_lib.models import Classifier, TensorFlowConv2d


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also keep convolutions whose padding depends on the size of the image."""
        return type(m) is TensorFlowConv2d or super().is_leaf_module(m, module_qualified_name)


def folded(module: nn.Module) -> fx.GraphModule | None:
    """The network as a graph with batch-norm folded into the convolutions, channels_last; None if it has no graph.

    Folding saves a pass over the activations for every batch-norm and moves the outputs by rounding only. The graph
    computes in eval mode and without the checks of `Classifier`.

    Args:
        module: in eval mode, for example `Network.module`. It is not changed; other weights than the folded ones and
            those of convolutions are shared.

    Returns:
        None where the network decides by the values or the size of its input what to compute, and where a hook or a
        replaced `forward` may do something that a graph does not know: run the plain network then.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules()):
        return None
    try:
        root = nn.Sequential(shadow(module))  # has one input, whatever `module` has
        for m in root.modules():
            if isinstance(m, Classifier):  # its check of the shape cannot be traced
                m.feature_maps = partial(_features, m.normalize, m.features)  # type: ignore[method-assign]
        graph = _Tracer().trace(root)
    except Exception:  # a model may fail on a traced value in any way
        return None
    _fold(root, graph)
    return fx.GraphModule(root, graph).eval().to(memory_format=torch.channels_last)


def _features(normalize: nn.Module, features: nn.Module, x: Tensor) -> Tensor:
    return features(normalize(x))


def _fold(root: nn.Module, graph: fx.Graph) -> None:
    """Fold every eval batch-norm into the convolution before it, where nothing else uses either."""
    calls = Counter(n.target for n in graph.nodes if n.op == "call_module")
    modules: dict[str, Any] = dict(root.named_modules())
    calls.update(str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and node.op == before.op == "call_module" and len(before.users) == 1):
            continue
        conv, norm = (modules[str(n.target)] for n in (before, node))
        foldable = type(conv) in (nn.Conv2d, TensorFlowConv2d) and type(norm) is nn.BatchNorm2d
        if foldable and norm.running_mean is not None and calls[before.target] == calls[node.target] == 1:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            node.replace_all_uses_with(before)
            graph.erase_node(node)

"""Outputs of a network for many variants of one image, by recomputing only the rectangle that can differ.

Usage::

    local = LocalNetwork(Network(model))
    local.keep(x)                                  # x (1, C, H, W)
    outputs = local.outputs(patches, corners)      # patches (B, C, h, w) put at B corners (row, col) of x -> (B, K)

Theory: a patch of h x w pixels changes a convolution's output only where a kernel touches it, in a rectangle that grows
by the kernel and shrinks by the stride from layer to layer. Each variant carries that rectangle alone; what lies around
it is copied from the image's own activations, which are computed once. Sums and concatenations carry the smallest
common rectangle. Where it covers most of the map, or an operation looks at the whole map, the maps are completed and
go on as usual. Nothing is approximated: the outputs are those of the whole image but for rounding.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from xai_lib.attribution.core import Network, out_of_memory
from xai_lib.attribution.folding import folded
from xai_lib.attribution.rectangles import LARGEST_SHARE, WINDOWS, Changed, border_of, common, window_of

SMALLEST_SAVING = 0.2  # of the estimated work; whole maps are not slower than a smaller saving
ELEMENT_COST = 16  # reading and writing one element, in multiplications of a convolution
MISMATCH = {"float32": 1e-3, "bf16": 0.1}  # allowed between graph and network, relative to the largest output

# Operations whose output at a place depends on their inputs at that place only.
_NAMES = (
    "relu relu6 silu hardswish hardsigmoid hardtanh mish gelu elu celu selu leaky_relu sigmoid logsigmoid tanh "
    "softplus neg abs exp sqrt square clamp clone contiguous dropout dropout2d feature_dropout "
    "add sub mul div truediv true_divide pow maximum minimum iadd isub imul itruediv"
).split()
_SAME_PLACE_NAMES = {*_NAMES, *(f"{name}_" for name in _NAMES)}
_SAME_PLACE = {getattr(space, name, None) for space in (torch, F, operator) for name in _SAME_PLACE_NAMES} - {None}
_SAME_PLACE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Mish, nn.GELU, nn.ELU, nn.CELU),
    *(nn.SELU, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus),
    *(nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Identity),
)
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")  # Python's operators
_CAT = (torch.cat, torch.concat)


@dataclass
class _Kept:
    """What is known of the image itself."""

    values: dict[fx.Node, Tensor] = field(default_factory=dict)  # activations that rectangles are filled up from
    sizes: dict[fx.Node, np.ndarray] = field(default_factory=dict)  # H, W of all activations
    varying: set[fx.Node] = field(default_factory=set)  # what depends on the image
    outputs: Tensor = field(default_factory=lambda: torch.zeros(1, 0))  # (1, K)


class _Run(fx.Interpreter):
    """Runs the image itself and fills `kept`."""

    def __init__(self, graph: fx.GraphModule, kept: _Kept) -> None:
        super().__init__(graph)
        self.modules = dict(graph.named_modules())
        self.kept = kept

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node; keep its value if a user may read more of it than a changed rectangle."""
        value = self.compute(n, *self.fetch_args_kwargs_from_env(n))
        if n.op == "placeholder" or any(i in self.kept.varying for i in n.all_input_nodes):
            self.kept.varying.add(n)
            if isinstance(value, Tensor) and value.ndim == 4:
                self.kept.sizes[n] = np.array(value.shape[-2:])
                if any(self.reads_around(user) for user in n.users):
                    self.kept.values[n] = value
        return value

    def module_of(self, n: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[str(n.target)] if n.op == "call_module" else None

    def compute(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The node's own operation. One that works in place gets a copy: activations are kept as they were."""
        if (m := self.module_of(n)) is not None:
            in_place = getattr(m, "inplace", False)
        else:
            name = str(n.target) if n.op == "call_method" else getattr(n.target, "__name__", "")
            in_place = n.kwargs.get("inplace") or name in _IN_PLACE or (name[-1:] == "_" and name[-2:] != "__")
        if in_place and args and isinstance(args[0], Tensor) and not self.fresh(n.args[0]):
            args = (args[0].clone(), *args[1:])
        return getattr(self, n.op)(n.target, args, kwargs)

    def fresh(self, n: Any) -> bool:
        """Whether a node's value is a new tensor that one other node reads, which may then overwrite it."""
        new = n.target is operator.add or type(self.module_of(n)) in (nn.Conv2d, nn.BatchNorm2d)
        return new and len(n.users) == 1 and n not in self.kept.values

    def reads_around(self, n: fx.Node) -> bool:
        """Whether a node may read more of its inputs than their changed rectangles."""
        m = self.module_of(n)
        if type(m) is nn.Conv2d:
            return not (m.kernel_size == m.stride == (1, 1) and m.padding == (0, 0))
        return not self.same_place(n) or len(n.all_input_nodes) > 1

    def same_place(self, n: fx.Node) -> bool:
        """Whether a node's output at a place depends on its inputs at that place only."""
        if (m := self.module_of(n)) is not None:
            return type(m) in _SAME_PLACE_MODULES and getattr(m, "running_mean", 0) is not None
        return n.target in (_SAME_PLACE_NAMES if n.op == "call_method" else _SAME_PLACE)


class _LocalRun(_Run):
    """Runs variants of the image, given as `Changed`, and estimates the work done and the work of whole maps."""

    done = whole = 0.0

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, inside the changed rectangles if that can be done."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        varying = [self.env[i] for i in n.all_input_nodes if i in self.kept.varying]
        value = None
        if n in self.kept.sizes and varying and all(isinstance(v, Changed) for v in varying):
            value = self.inside(n, varying, args, kwargs)
        if value is None:
            args, kwargs = map_aggregate((args, kwargs), lambda a: a.whole() if isinstance(a, Changed) else a)
            value = self.compute(n, args, kwargs)
        self.count(n, value)
        return value

    def inside(self, n: fx.Node, varying: list[Changed], args: tuple, kwargs: dict[str, Any]) -> Changed | None:
        """The node's changed rectangles; None where it needs whole maps."""
        base, size = self.kept.values.get(n), self.kept.sizes[n]
        if self.same_place(n) or (n.target in _CAT and [*args[1:], *kwargs.values()] in ([1], [-3])):
            return self.joined(n, varying, args, kwargs)
        m = self.module_of(n)
        if n.target is F.pad or type(m) is nn.ZeroPad2d:
            moved = border_of(m.padding) if isinstance(m, nn.ZeroPad2d) else border_of(*args[1:], **kwargs)
            return None if moved is None else Changed(base, size, varying[0].patch, varying[0].at + moved)
        if n.op == "call_function" and n.target in WINDOWS and len(varying) == 1:
            window = WINDOWS[n.target](varying[0].size, *args[1:], **kwargs)
        else:
            window = window_of(m, varying[0].size)
        return window(varying[0], base, size) if window is not None else None

    def joined(self, n: fx.Node, varying: list[Changed], args: tuple, kwargs: dict[str, Any]) -> Changed | None:
        """An operation on one place of one or several activations, in their common rectangle."""
        size = self.kept.sizes[n]
        constants = [v for i in n.all_input_nodes if isinstance(v := self.env[i], Tensor)]
        if any((v.size != size).any() for v in varying) or any(set(c.shape[-2:]) - {1} for c in constants):
            return None
        at, extent = common(varying)
        if len(varying) > 1 and extent.prod() > LARGEST_SHARE * size.prod():
            return None
        cut = map_aggregate((args, kwargs), lambda a: a.region(at, extent) if isinstance(a, Changed) else a)
        return Changed(self.kept.values.get(n), size, self.compute(n, *cut), at)

    def count(self, n: fx.Node, value: Any) -> None:
        """Add the node's estimated work."""
        if n not in self.kept.sizes:
            return
        m = self.module_of(n)
        work = ELEMENT_COST + (m.weight[0].numel() if isinstance(m, nn.Conv2d) else 0)
        patch = value.patch if isinstance(value, Changed) else value
        self.done += work * patch.numel()
        self.whole += work * patch.numel() * self.kept.sizes[n].prod() / np.prod(patch.shape[-2:])


class LocalNetwork:
    """A network for many variants of one image at a time.

    Args:
        network: counts the passes, a rectangle's like a whole image's, and gets notes on the way that was taken.
        local: True: recompute changed rectangles only; False: whole images; "auto": what takes less work, estimated
            from the shapes of the first variants. All give the same outputs but for rounding.

    Raises:
        ValueError: another value of `local`.
    """

    def __init__(self, network: Network, local: bool | Literal["auto"] = "auto") -> None:
        if local not in (True, False, "auto"):
            raise ValueError(f"local: {local!r} is not True, False or 'auto'")
        self.network, self.local = network, local
        self.graph = folded(network.module)
        self.tolerance = MISMATCH[network.precision]
        if self.graph is None:
            network.note("whole images were run: the network has no graph (control flow, hooks, or a custom forward)")

    @torch.no_grad()
    def keep(self, x: Tensor, outputs: Tensor | None = None) -> None:
        """Make x (1, C, H, W) the image that `outputs` varies, and forget the last one.

        Args:
            x: the image.
            outputs: ``network(x)`` (1, K) where it is known; saves a pass.
        """
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.expected = self.network(x) if outputs is None else outputs
        self.kept: dict[str, _Kept] = {}  # by precision

    @torch.no_grad()
    def image_outputs(self) -> Tensor:
        """Outputs (1, K) of the image itself, computed in the same way as those of its variants."""
        return self._kept().outputs

    @torch.no_grad()
    def outputs(self, patches: Tensor, corners: np.ndarray | Sequence[tuple[int, int]]) -> Tensor:
        """Outputs (B, K) of the image with each of the patches (B, C, h, w) put at its corner (row, col).

        Raises:
            ValueError: patches of another number or shape, or outside the image; an output that is not finite.
        """
        at, size = np.asarray(corners, dtype=int).reshape(-1, 2), np.array(self.x.shape[-2:])
        if patches.ndim != 4 or patches.shape[1] != self.x.shape[1] or len(patches) != len(at):
            expected = f"({len(at)}, {self.x.shape[1]}, h, w) for {len(at)} corners"
            raise ValueError(f"patches: expected shape {expected}, got {tuple(patches.shape)}")
        variants = Changed(self.x, size, patches.to(self.x), at)
        if (at < 0).any() or (at + variants.extent > size).any():
            raise ValueError(f"corners: a patch of {tuple(variants.extent)} lies outside the image of {tuple(size)}")
        kept = self._kept()
        if self.graph is None:
            return self.network(variants.whole())
        if not self.local or variants.extent.prod() > LARGEST_SHARE * size.prod():
            return self._run(self.graph, variants.whole(), len(at))
        run = _LocalRun(self.graph, kept)
        found = self._run(run.run, variants, len(at))
        if self.local == "auto":
            self._decide(1 - run.done / run.whole)
            if not self.local:
                kept.values.clear()  # memory for larger chunks
        return found

    def _kept(self) -> _Kept:
        """The image's own outputs and activations in the network's present precision, computed once."""
        precision = self.network.precision
        if self.graph is not None and precision not in self.kept:
            kept = _Kept()
            kept.outputs = self._image_run(self.graph, kept)
            gap = (kept.outputs - self.expected).abs().max() / self.expected.abs().max().clamp(min=1e-30)
            if gap <= self.tolerance:
                self.kept[precision] = kept
            else:
                self.graph = None
                self.network.note(f"whole images were run: the outputs of the network's graph differ by {gap:.2g}")
        return self.kept[precision] if self.graph is not None else _Kept(outputs=self.expected)

    def _image_run(self, graph: fx.GraphModule, kept: _Kept) -> Tensor:
        """Run the image through the graph, keep its activations if they are of use and memory allows."""
        if self.local:
            try:
                return self._run(_Run(graph, kept).run, self.x, 1)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self.local = False
            self.network.note("whole images were run: memory was short for the image's activations")
        return self._run(graph, self.x, 1)

    def _run(self, run: Callable[[Any], Tensor], value: Any, count: int) -> Tensor:
        """Outputs (count, K), checked and counted as the network would."""
        self.network.forward_passes += count
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.network.precision == "bf16"):
            out = run(value)
        if not torch.isfinite(out).all():
            raise ValueError("model: its output is not finite on a variant of the image")
        return (out.float() if out.dtype in (torch.float16, torch.bfloat16) else out).reshape(count, -1)

    def _decide(self, saving: float) -> None:
        self.local = bool(saving >= SMALLEST_SAVING)
        taken = "only changed rectangles were recomputed" if self.local else "whole images were run"
        self.network.note(f"{taken}: the rectangles save an estimated {max(saving, 0):.0%} of the work")

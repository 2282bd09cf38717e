"""One forward pass of a network, and the backward passes that the gradient methods read their maps from.

Usage::

    done = gradients(network, x, target, image=True, layers=["layer4"])
    done.image                                                 # (N, C, H, W), the gradient by the image
    done.layers["layer4"].value, done.layers["layer4"].gradient

Theory: gradients by the image and by any number of layers come out of one backward pass. The guided and the DeepLIFT
rule need one more each, over the same stored forward pass (see `rules`). Plain gradients alone run without any rule.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xai_lib.attribution.core import Network, Refused, pick
from xai_lib.attribution.rules import DEEPLIFT, GUIDED, PLAIN, Call, Rules, refuse_unseen

Forward = Callable[..., Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """A layer's activation and the gradient of the score by it, both (N, K, h, w)."""

    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Reference:
    """A baseline's forward pass, which DeepLIFT compares with: made once, good for all images of a study."""

    baseline: Tensor  # (1 or N, C, H, W)
    outputs: Tensor  # (1 or N, K)
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Gradients:
    """What the methods read: each part is there if it was asked for."""

    x: Tensor  # (N, C, H, W)
    scores: Tensor  # (N,)
    image: Tensor | None = None  # (N, C, H, W), as are the next two
    guided: Tensor | None = None
    multipliers: Tensor | None = None  # DeepLIFT's: x - baseline is multiplied with them
    reference: Reference | None = None
    layers: dict[str | None, Layer] = field(default_factory=dict)
    rectifiers: frozenset[str] = frozenset()  # names of rectifiers that are no ReLU, if rules were used


def gradients(
    network: Network,
    x: Tensor | Gradients,
    target: Tensor,
    *,
    image: bool = False,
    guided: bool = False,
    reference: Reference | None = None,
    layers: Sequence[str | None] = (),
) -> Gradients:
    """Run the network once forward, and backward once for every rule that is needed.

    Args:
        network: the model.
        x: images (N, C, H, W). A `Gradients` is given back as it is: so methods share one.
        target: outputs to explain (N,).
        image: the plain gradient by the image.
        guided: the gradient by the image after the guided rule.
        reference: the baseline, for DeepLIFT's multipliers.
        layers: names of layers; None is the default layer, see `_Watch`.

    Raises:
        ValueError: no such layer, or one that gives no map.
        Refused: a call has no rule.
    """
    if isinstance(x, Gradients):
        return x
    rules = None
    if guided or reference is not None:
        rules = Rules(guided=guided, references=None if reference is None else reference.calls)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        scores, values = _forward(network, leaf, target, layers, rules)
    if guided:
        refuse_unseen(network.module, scores)
    stages = [(PLAIN, [leaf] * image + list(values.values()))] if image or values else []
    stages += [(GUIDED, [leaf])] if guided else []
    stages += [(DEEPLIFT, [leaf])] if reference is not None else []
    found: dict[str, list[Tensor | None]] = {}
    for i, (rule, inputs) in enumerate(stages, 1):
        if rules is not None:
            rules.rule = rule
        found[rule] = _backward(network, scores, inputs, retain=i < len(stages))
    kept = {}
    for name, gradient in zip(values, found.get(PLAIN, [])[int(image) :], strict=True):
        if gradient is None:
            raise ValueError(f"layer: the score does not depend on {name!r}")
        kept[name] = Layer(values[name].detach().to(x.dtype), gradient.to(x.dtype))
    of_image = {rule: f[0] for rule, f in found.items() if rule != PLAIN or image}
    return Gradients(
        x=x,
        scores=scores.detach(),
        image=of_image.get(PLAIN),
        guided=of_image.get(GUIDED),
        multipliers=of_image.get(DEEPLIFT),
        reference=reference,
        layers=kept,
        rectifiers=frozenset(rules.rectifiers) if rules is not None else frozenset(),
    )


def there(value: T | None) -> T:
    """A part that was asked for."""
    if value is None:
        raise ValueError("x: these gradients were made for other methods")
    return value


def reference(network: Network, baseline: Tensor) -> Reference:
    """Run the baselines (1 or N, C, H, W) and keep what DeepLIFT needs of them: two tensors for every activation.

    Raises:
        Refused: a call has no rule.
    """
    rules = Rules(record=True)
    with torch.enable_grad(), _replaced(network.module, "", partial(_inside, rules)):
        outputs = network(baseline.detach().requires_grad_().clone())
    return Reference(baseline, outputs.detach(), tuple(rules.calls))


def _forward(
    network: Network, leaf: Tensor, target: Tensor, layers: Sequence[str | None], rules: Rules | None
) -> tuple[Tensor, dict[str | None, Tensor]]:
    """Scores (N,), and the activations (N, K, h, w) of the layers, all still part of the graph."""
    kept: dict[str | None, list[Any]] = {name: [] for name in layers}
    watch = _Watch()
    with ExitStack() as stack:
        for name in kept:
            if name is not None:
                _check_layer(network.module, name)
                stack.enter_context(_replaced(network.module, name, partial(_keeping, kept[name])))
        if None in kept:
            for name, module in network.module.named_modules():
                if name:
                    stack.enter_context(_replaced(network.module, name, partial(watch.over, name, module)))
        if rules is not None:
            stack.enter_context(_replaced(network.module, "", partial(_inside, rules)))
        outputs = network(leaf.clone())  # a clone, since the first layer may work in place
    scores = pick(outputs, target)
    for name, found in kept.items():
        if name is not None and (len(found) != 1 or getattr(found[0], "ndim", 0) != 4):
            shapes = ", ".join(str(tuple(getattr(f, "shape", ()))) for f in found)
            raise ValueError(
                f"layer: {name!r} gave {len(found)} outputs ({shapes}), expected one of shape (N, K, h, w)"
            )
    values = {name: found[0] for name, found in kept.items() if found}
    if None in kept:
        default = watch.default(outputs.shape[1])
        values[None] = default.value
        if default.value._version != default.version:  # changed in place behind the layer: run again, on a copy
            named = [default.name if name is None else name for name in kept]
            scores, again = _forward(network, leaf, target, named, rules)
            values = dict(zip(kept, (again[name] for name in named), strict=True))
    return scores, {name: values[name] for name in kept}


def _backward(network: Network, scores: Tensor, inputs: list[Tensor], retain: bool) -> list[Tensor | None]:
    """Gradients of the summed scores, counted as N backward passes; None where the scores do not depend on an input."""
    network.backward_passes += len(scores)
    if not scores.requires_grad:
        raise Refused("model: its output does not depend on the image in a way that can be differentiated")
    ones = torch.ones_like(scores)
    return list(torch.autograd.grad(scores, inputs, ones, retain_graph=retain, allow_unused=True))


# ------------------------------------------------------------------------------------------------ layers


@contextmanager
def _replaced(root: nn.Module, name: str, wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """Inside, the submodule's `forward` is ``wrap(forward)``. `root` is a shadow, the user's model keeps its own."""
    module = root.get_submodule(name)
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = wrap(module.forward)
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if own is not None:
            module.__dict__["forward"] = own


def _inside(rules: Rules, forward: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        with rules:
            return forward(*args, **kwargs)

    return run


def _keeping(kept: list[Any], forward: Forward) -> Forward:
    """Keep what leaves the layer and pass a clone on: an in-place ReLU behind the layer must not change it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        kept.append(out)
        return out.clone() if isinstance(out, Tensor) else out

    return run


def _check_layer(module: nn.Module, name: str) -> None:
    modules = dict(module.named_modules())
    if name not in modules or not name:
        known = [n for n, m in modules.items() if n and n.count(".") <= 1 and any(True for _ in m.parameters())]
        raise ValueError(f"layer: {name!r} is not in the model, which has {', '.join(known)}, ...")


@dataclass
class _Map:
    name: str
    value: Tensor
    version: int  # of the tensor: it grows when the tensor is changed in place


class _Watch:
    """Finds the default layer: the last output (N, K, h, w) of more than one cell that comes before the classifier.

    The classifier is the last layer with weights, if it has one channel for every output. Of several modules that give
    the same tensor, the outermost is named: "layer4" and not "layer4.2.relu".
    """

    def __init__(self) -> None:
        self.last: _Map | None = None
        self.before: _Map | None = None  # the last map when the last layer with weights began
        self.channels = 0  # of that layer's output

    def over(self, name: str, module: nn.Module, forward: Forward) -> Forward:
        """The module's forward, watched."""
        weights = any(p is not None for p in module._parameters.values())

        def run(*args: Any, **kwargs: Any) -> Any:
            if weights:
                self.before = self.last
            out = forward(*args, **kwargs)
            if not isinstance(out, Tensor) or out.ndim < 2:
                return out
            if weights:
                self.channels = out.shape[1]
            if out.ndim == 4 and out.shape[2] * out.shape[3] > 1:
                new = _Map(name, out, out._version)
                same = self.last is not None and self.last.value is out and self.last.version == new.version
                if self.last is None or not same or name.count(".") < self.last.name.count("."):
                    self.last = new
            return out

        return run

    def default(self, outputs: int) -> _Map:
        """The layer that was found in the pass of a model with this number of outputs."""
        found = self.before if self.channels == outputs and self.before is not None else self.last
        if found is None:
            raise ValueError("layer: no layer gives a map (N, K, h, w) with more than one cell; the image is too small")
        return found

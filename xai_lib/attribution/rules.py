"""Other rules than the gradient's for the calls of a network: DeepLIFT, and guided backpropagation.

Usage::

    rules = Rules()                                     # guided backpropagation needs no baseline
    with rules:
        score = module(image)                           # image requires a gradient, no parameter does
    rules.rule = "guided"                               # read when the backward pass runs: one forward pass serves all
    torch.autograd.grad(score, image)

Theory: a `TorchFunctionMode` sees every torch call, whether it comes from a module (``nn.ReLU``), a function
(``F.relu``), a method or an operator (``x * s``, ``+=``). Calls of tensors that depend on the image are looked up by
name. What is affine is left to autograd. The others that are known get a hook on their node of the autograd graph,
which replaces the gradient there. Everything else is refused by name, never approximated. Nothing is stored in modules,
so a module may be used several times, and in-place calls stay in place.

With z, y the input and output of a call, z0, y0 those of the baseline, and g the gradient by y:

- plain: autograd's gradient.
- DeepLIFT, element-wise ("rescale"): ``g (y - y0) / (z - z0)``, autograd's where z and z0 are (almost) equal.
- DeepLIFT, product a b of two activations: ``g (b + b0) / 2`` and ``g (a + a0) / 2``, the factors' Shapley values.
- DeepLIFT, max-pooling: y - y0 of every window goes to the place that holds the larger of its two maxima, that of the
  image or that of the baseline. Windows that overlap add up.
- guided: ``relu(g) f'(z) [z > 0]`` at rectifiers. For ReLU this is the published rule. For its relatives (ReLU6, SiLU,
  GELU ...) it is our definition. Sigmoids and the like are no rectifiers: the gate of a squeeze-and-excitation block
  keeps its gradient, and so do products.

References: Shrikumar et al. 2017, "Learning important features through propagating activation differences", sections
3.1 to 3.5.1; Springenberg et al. 2015, "Striving for simplicity", section 3.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai_lib.attribution.calls import (
    AFFINE_IN_ONE,
    ASKS,
    ELEMENTWISE,
    POOLS,
    RECTIFIERS,
    SMOOTH,
    call_name,
    dependent,
    is_affine,
)
from xai_lib.attribution.core import Refused

PLAIN, GUIDED, DEEPLIFT = RULES = ("plain", "guided", "deeplift")


@dataclass(frozen=True)
class Call:
    """What DeepLIFT keeps of one call of the baseline's forward pass."""

    name: str
    tensors: tuple[Tensor, ...]


class Rules(TorchFunctionMode):
    """Inside, the torch calls of a network get rules; `rule` says which one the next backward pass follows.

    Args:
        guided: prepare for the guided rule.
        record: keep the calls of this (the baseline's) forward pass in `calls`.
        references: the calls of the baseline; prepares for DeepLIFT.

    Raises:
        Refused: inside, for a call without a rule, or one that differs from the baseline's.
    """

    def __init__(self, guided: bool = False, record: bool = False, references: Sequence[Call] | None = None) -> None:
        super().__init__()
        self.rule = PLAIN
        self.guided, self.record, self.references = guided, record, references
        self.calls: list[Call] = []
        self.rectifiers: set[str] = set()  # names met, besides ReLU
        self._met = 0

    def __enter__(self) -> "Rules":
        self._met = 0
        self.calls.clear()
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None and self.references is not None and self._met != len(self.references):
            raise Refused("model: control flow differs between input and baseline (number of calls)")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Decide by name what happens to one call."""
        kwargs = kwargs or {}
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        operands = dependent(args, kwargs)  # on the image: parameters need no gradient
        name = call_name(func)
        if not operands or name in ASKS:
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise Refused(f"no rule for {name!r} inside torch.no_grad()")
        first = bool(args) and args[0] is operands[0]
        if name in ELEMENTWISE and len(operands) == 1 and first:
            return self._elementwise(name, func, args, kwargs)
        if name in POOLS and first:
            return self._max_pool(name, args, kwargs)
        if name == "mul" and len(operands) == 2:
            return self._product(operands, func, args, kwargs)
        if not is_affine(name, args, kwargs, operands):
            raise Refused(f"no rule for {name!r}{' of two activations' if name in AFFINE_IN_ONE | {'div'} else ''}")
        out = func(*args, **kwargs)
        if out is not None and not dependent([out], {}):
            raise Refused(f"no rule for {name!r} to something that has no gradient")
        return out

    def _elementwise(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """y = f(z), where z is the first argument; f may work in place."""
        x: Tensor = args[0]
        z = x.clone() if x._is_view() else x  # an in-place call on a view would hide its node of the graph
        source, kept = z.grad_fn, z.detach()
        published = name == "relu" or name not in RECTIFIERS
        sign = kept.clone() if self.guided and not published else None
        if self.record:
            kept = kept.clone()
        reference = self._reference(name, kept)
        step = kept - reference[0] if reference else kept
        y = func(z, *args[1:], **kwargs)
        if self.record:
            self.calls.append(Call(name, (kept, y.detach().clone())))
        slope, rest = _slope(step, y.detach() - reference[1], name in SMOOTH) if reference else (None, None)
        if not published:
            self.rectifiers.add(name)

        def replace(native: Tensor, g: Tensor) -> Tensor:
            if self.rule == DEEPLIFT and slope is not None:
                return g * slope if rest is None else (rest * native).addcmul_(g, slope)
            if self.rule == GUIDED and name == "relu":
                return native.clamp(min=0)  # it is 0 already where z < 0
            if self.rule == GUIDED and sign is not None:
                return _where_positive(sign, _where_positive(g, native))
            return native

        self._attach(name, y, [source], lambda natives, g: [replace(natives[0], g)])
        return x.copy_(y) if y is z and z is not x else y

    def _product(
        self, operands: list[Tensor], func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """y = a b, both depend on the image."""
        a, b = operands
        sources, shapes = [a.grad_fn, b.grad_fn], [a.shape, b.shape]
        factors = (a.detach(), b.detach())
        if self.record:
            self.calls.append(Call("mul", tuple(f.clone() for f in factors)))
        reference = self._reference("mul", *factors)
        means = [(now + then) / 2 for now, then in zip(factors, reference, strict=True)] if reference else []
        y = func(*args, **kwargs)

        def replace(natives: list[Tensor], g: Tensor) -> list[Tensor]:
            if self.rule != DEEPLIFT or not means:
                return natives
            return [(g * m).sum_to_size(s) for m, s in zip(reversed(means), shapes, strict=True)]

        self._attach("mul", y, sources, replace)
        return y

    def _max_pool(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """y = the largest z of each window, (N, C, H, W) -> (N, C, h, w)."""
        z: Tensor = args[0]
        kwargs = {**kwargs, "return_indices": True}
        y, places = getattr(F, name)(*args[: POOLS[name]], **kwargs)  # places (N, C, h, w): index into H * W
        if self.record:
            self.calls.append(Call(name, (z.detach().clone(), y.detach().clone(), places)))
        reference = self._reference(name, z.detach(), y.detach(), places)
        if reference:
            before, largest, where = reference
            difference = y.detach() - largest
            places = torch.where(difference >= 0, places, where.expand_as(places)).flatten(2)
            share, rest = _slope((z.detach() - before).flatten(2).gather(2, places), difference.flatten(2), False)
            share = share if rest is None else share + rest

        def replace(natives: list[Tensor], g: Tensor) -> list[Tensor]:
            if self.rule != DEEPLIFT or not reference:
                return natives
            out = torch.zeros_like(natives[0]).flatten(2)
            return [out.scatter_add_(2, places, g.flatten(2) * share).view_as(natives[0])]

        self._attach(name, y, [z.grad_fn], replace)
        return y

    def _reference(self, name: str, *now: Tensor) -> tuple[Tensor, ...]:
        """The baseline's tensors of this call; () where there is no baseline."""
        if self.references is None:
            return ()
        then = self.references[self._met] if self._met < len(self.references) else None
        self._met += 1
        if then is None or then.name != name:
            raise Refused(f"model: control flow differs between input and baseline ({name!r}, call {self._met})")
        for one, other in zip(now, then.tensors, strict=False):
            if one.shape[1:] != other.shape[1:] or len(other) not in (1, len(one)):
                raise Refused(
                    f"model: {name!r} gets shape {tuple(one.shape)} for the images and {tuple(other.shape)} for the "
                    "baseline; give one baseline for every image"
                )
        return then.tensors

    def _attach(
        self,
        name: str,
        y: Tensor,
        sources: list[Any],
        replace: Callable[[list[Tensor], Tensor], list[Tensor]],
    ) -> None:
        """Let `replace` (gradients of the inputs, gradient of y -> gradients) act on y's node of the graph."""
        node = y.grad_fn
        places = [i for i, (edge, _) in enumerate(node.next_functions) if edge is not None] if node else []
        if node is None or [node.next_functions[i][0] for i in places] != sources:
            raise Refused(f"no rule for {name!r} as this version of torch computes it")

        def hook(natives: tuple[Tensor | None, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...] | None:
            if self.rule == PLAIN:
                return None
            out = list(natives)
            changed = replace([natives[i] for i in places], gradients[0])  # type: ignore[misc]
            for i, value in zip(places, changed, strict=True):
                out[i] = value
            return tuple(out)

        node.register_hook(hook)


def _slope(step: Tensor, rise: Tensor, smooth: bool) -> tuple[Tensor, Tensor | None]:
    """a and c of the slope ``a + c f' = (rise step + e^2 f') / (step^2 + e^2)``; c is None if it is 0 everywhere.

    This is the secant, and turns into the derivative f' as the step goes to 0. For a smooth call e is the root of the
    rounding error: nearer, rounding spoils the secant. A call with a kink needs it only where the step is 0.
    """
    limits = torch.finfo(step.dtype)
    e2 = limits.eps if smooth else limits.tiny**0.8
    squares = step.square().add_(e2)
    rest = e2 / squares
    return rise * step / squares, rest if rest.amax() > limits.eps else None


def _where_positive(sign: Tensor, value: Tensor) -> Tensor:
    """The value where `sign` is positive, else 0; one fused kernel."""
    return torch.ops.aten.threshold_backward(value, sign, 0)


def refuse_unseen(module: torch.nn.Module, scores: Tensor) -> None:
    """Refuse what a `Rules` cannot see: scripted modules, and autograd functions of the user.

    DeepLIFT does not need this, its completeness is checked.

    Raises:
        Refused: there is one; the message names it.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise Refused(f"no rule for the scripted module {name!r}")
    todo, seen = [scores.grad_fn], set[Any]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            raise Refused(f"no rule for the autograd function {type(node).__name__.removesuffix('Backward')!r}")
        seen.add(node)
        todo += [edge for edge, _ in node.next_functions]

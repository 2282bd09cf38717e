"""What all attribution methods share: the user's model made safe to explain, checks, chunks, and the result.

Usage::

    network = Network(model)                                    # runs the model, counts passes, cannot change it
    x, target = network.inputs(x, target)                       # checked: (N, C, H, W), (N,)
    scores = network.scores(x, target)                          # (N,)
    for start, stop, value in chunked(network, 500, run): ...   # run(start, stop) in chunks that fit and are fast

Theory: a *shadow* of the model is run instead of the model itself: its modules are copied shallowly, its parameters
are the same memory, but detached. Nothing that an attribution method does (a rule, a captured layer, a kept gradient,
an interrupt half-way) can then change the user's model, and no gradient is computed for weights.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

PRECISIONS = ("float32", "bf16")
COMPLETENESS_LIMIT = 1e-3  # largest gap of a method that promises completeness exactly
CHUNKS = (1, 2, 4, 8)  # sizes that are timed on a CPU
CHUNKS_CUDA = (8, 16, 32, 64)
BAR_AFTER_S = 3.0  # a progress bar appears when the work lasts longer


class Refused(ValueError):
    """A method cannot be right on this model or input; the message names the call, layer or argument."""


@dataclass(frozen=True)
class Attribution:
    """What a method says about a batch of images.

    `map` (N, H, W) is signed: positive values argue for the target. `grid` (N, h, w) is the map before it was resized
    (methods of the CAM family), `baseline` (N or 1, C, H, W) what the image was compared with. `completeness_gap` is
    ``|sum of the map - (f(x) - f(baseline))|`` relative to the difference (see `completeness_gap`), the largest of the
    batch; None where the method promises no completeness. Kernel SHAP's sum is over segments: its map holds a segment's
    value at each of its pixels. Passes count images sent through the network.
    """

    method: str
    map: Tensor
    target: Tensor
    scores: Tensor  # (N,) the target's logit for every image
    baseline: Tensor | None
    grid: Tensor | None
    completeness_gap: float | None
    forward_passes: int
    backward_passes: int
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a method's function returns; `attribute` adds the bookkeeping and makes an `Attribution` of it."""

    map: Tensor  # (N, H, W)
    scores: Tensor  # (N,)
    baseline: Tensor | None = None
    grid: Tensor | None = None
    gap: float | None = None


def shadow(model: nn.Module) -> nn.Module:
    """A model that computes the same and shares the weights' memory, but whose modules and parameters are others.

    Parameters are detached. Half-precision weights are turned into float32: an attribution needs differences of
    numbers that lie close together.
    """
    return _shadow(model, {})


def _shadow(module: nn.Module, seen: dict[int, Any]) -> nn.Module:
    if id(module) not in seen:
        new = seen[id(module)] = module.__class__.__new__(module.__class__)
        new.__dict__.update(module.__dict__)
        new.__dict__["_parameters"] = {k: _detached(p, seen) for k, p in module._parameters.items()}
        new.__dict__["_buffers"] = {k: _detached(b, seen) for k, b in module._buffers.items()}
        children = module._modules.items()
        new.__dict__["_modules"] = {k: None if c is None else _shadow(c, seen) for k, c in children}
    return seen[id(module)]


def _detached(value: Tensor | None, seen: dict[int, Any]) -> Tensor | None:
    if value is None:
        return None
    if id(value) not in seen:
        half = value.dtype in (torch.float16, torch.bfloat16)
        seen[id(value)] = value.detach().float() if half else value.detach()
    return seen[id(value)]


@dataclass
class Network:
    """The user's model as the methods see it: a `shadow`, run with checks and counted passes.

    Args:
        model: in eval mode; gives (N, K) or (N,) for images (N, C, H, W). It is not changed.
        precision: "float32", or "bf16" (autocast; its deviation is noted).
        progress: show a bar on work of more than a few seconds.

    Raises:
        ValueError: a model in train mode (the message names a module), or an unknown precision.
    """

    model: nn.Module
    precision: str = "float32"
    progress: bool = True
    forward_passes: int = 0
    backward_passes: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: {self.precision!r} is unknown, expected one of {', '.join(PRECISIONS)}")
        training = [name for name, m in self.model.named_modules() if m.training]
        if training:
            raise ValueError(f"model: it is in train mode ({training[0] or 'as a whole'}); call model.eval() first")
        self.module = shadow(self.model)
        tensors = [*self.module.parameters(), *self.module.buffers()]
        first = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = first.device, first.dtype

    def inputs(self, x: Tensor, target: int | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and targets (N,), checked, on the model's device and in its precision.

        Raises:
            TypeError: `x` is no floating-point tensor, or `target` holds no integers.
            ValueError: no image, another shape, a value that is not finite, or as many targets as there are not images.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.ndim != 4 or x.numel() == 0:
            raise ValueError(f"x: expected at least one image, shape (N, C, H, W), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError("x: it holds NaN or infinite values")
        wanted = torch.as_tensor(target)
        if wanted.is_floating_point() or wanted.dtype == torch.bool:
            raise TypeError(f"target: expected integers, got {wanted.dtype}")
        if wanted.ndim > 1 or (wanted.ndim == 1 and len(wanted) != len(x)):
            raise ValueError(f"target: expected one class or {len(x)} classes, got shape {tuple(wanted.shape)}")
        x = x.detach().to(self.device, self.dtype).clone()
        return x, wanted.to(self.device).expand(len(x)).long()

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (N, K) of images (N, C, H, W), counted as N forward passes.

        Raises:
            ValueError: the model does not take this shape, or gives another shape than (N, K) or (N,), or values that
                are not finite (the message names the weight, where one is the cause).
        """
        self.forward_passes += len(x)
        try:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                out = self.module(x)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise ValueError(f"x: the model does not take images of shape {tuple(x.shape)} ({error})") from error
        if not isinstance(out, Tensor) or out.ndim not in (1, 2) or len(out) != len(x):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"model: expected outputs of shape ({len(x)}, K), got {shape}")
        if not torch.isfinite(out).all():
            raise ValueError(f"model: its output is not finite{_bad_weight(self.module)}")
        out = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
        return out.reshape(len(x), -1)

    def scores(self, x: Tensor, target: Tensor) -> Tensor:
        """The target's output for every image: (N, C, H, W), (N,) -> (N,).

        Raises:
            ValueError: as calling the network; a target that the model does not have.
        """
        return pick(self(x), target)

    def gradient(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N,) and their gradient by the image (N, C, H, W), both detached: one forward, one backward pass."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            scores = self.scores(x.clone(), target)  # a first layer that works in place may not touch a leaf
        return scores.detach(), self.backward(scores, [x])[0]

    def backward(self, scores: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> tuple[Tensor, ...]:
        """Gradients of the summed scores (N,) by `inputs`, counted as N backward passes."""
        self.backward_passes += len(scores)
        if not scores.requires_grad:
            raise Refused("model: its output does not depend on the image in a way that can be differentiated")
        found = torch.autograd.grad(scores.sum(), inputs, retain_graph=retain_graph, allow_unused=True)
        return tuple(torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True))

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, the network runs in float32 whatever its precision."""
        precision, self.precision = self.precision, "float32"
        try:
            yield
        finally:
            self.precision = precision

    def note(self, text: str) -> None:
        """Remember something the user should know about the result, once."""
        if text not in self.notes:
            self.notes.append(text)


def pick(outputs: Tensor, target: Tensor) -> Tensor:
    """Each row's target column: (N, K), (N,) -> (N,).

    Raises:
        ValueError: a target outside 0 ... K - 1.
    """
    classes = outputs.shape[1]
    if bool(((target < 0) | (target >= classes)).any()):
        wrong = target[(target < 0) | (target >= classes)][0]
        raise ValueError(f"target: {int(wrong)} is out of range, the model has outputs 0 to {classes - 1}")
    return outputs.gather(1, target[:, None])[:, 0]


def _bad_weight(module: nn.Module) -> str:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not torch.isfinite(value).all():
            return f"; {name!r} holds NaN or infinite values"
    return ", although the image and all weights are"


def as_baseline(baseline: float | Tensor | None, x: Tensor) -> Tensor:
    """The baseline as a tensor (1 or N, C, H, W): None is 0, a number fills the image.

    Raises:
        ValueError: a tensor of another shape, or values that are not finite.
    """
    if baseline is None or isinstance(baseline, int | float):
        filled = torch.full_like(x[:1], 0.0 if baseline is None else float(baseline))
    else:
        filled = baseline.detach().to(x)
        filled = filled[None] if filled.ndim == 3 else filled
        if filled.ndim != 4 or filled.shape[1:] != x.shape[1:] or len(filled) not in (1, len(x)):
            expected = f"a number, {tuple(x.shape[1:])} or {tuple(x.shape)}"
            raise ValueError(f"baseline: shape {tuple(baseline.shape)} does not fit, expected {expected}")
    if not torch.isfinite(filled).all():
        raise ValueError("baseline: it holds NaN or infinite values")
    return filled


def completeness_gap(total: Tensor, difference: Tensor, scores: Tensor) -> float:
    """Largest ``|sum of attributions - (f(x) - f(b))| / max(|f(x) - f(b)|, 1e-3 max |f|)`` of a batch.

    The floor keeps rounding from looking like a fault where the two outputs are almost equal.

    Args:
        total: sums of the attributions (N,).
        difference: f(x) - f(baseline) (N,).
        scores: outputs that say how large the model's numbers are, any shape.
    """
    floor = 1e-3 * scores.detach().abs().max().double().clamp(min=1e-12)
    total, difference = total.detach().double(), difference.detach().double()
    return float(((total - difference).abs() / torch.maximum(difference.abs(), floor)).max())


def require_complete(method: str, gap: float) -> float:
    """The gap, if it is within `COMPLETENESS_LIMIT`.

    Raises:
        Refused: it is not: the network makes a call that no rule has seen.
    """
    if not gap <= COMPLETENESS_LIMIT:
        raise Refused(
            f"{method}: the attributions miss the difference of the outputs by {gap:.2g} of it (limit "
            f"{COMPLETENESS_LIMIT:g}); the network computes something that no rule has seen"
        )
    return gap


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def chunked(
    network: Network,
    count: int,
    run: Callable[[int, int], Tensor],
    chunk: int | None = None,
    unit: str = "passes",
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield ``(start, stop, run(start, stop))`` until `count` items are done.

    Args:
        network: gets a note when memory was short, and the deviation of bf16 on the first chunk.
        count: number of items (windows, samples, steps, images).
        run: computes the items start ... stop - 1; its value does not matter to this function.
        chunk: items at a time. None: sizes are timed on the first items and the fastest is kept; equal results then
            differ from one run to the next in the last digits.
        unit: for the progress bar.

    Raises:
        ValueError: `chunk` below 1.
        RuntimeError: memory runs out with one item at a time.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: {chunk} is below 1")
    trials = _trials(network, count) if chunk is None else []
    size, limit, times = chunk or 1, count, dict[int, float]()
    done = 0
    with tqdm(total=count, unit=unit, delay=BAR_AFTER_S, leave=False, disable=not network.progress) as bar:
        while done < count:
            size = trials.pop(0) if trials else min(times, key=times.__getitem__, default=size)
            stop = min(done + min(size, limit), count)
            started = time.perf_counter()
            try:
                value = run(done, stop)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or stop - done == 1:
                    raise
                limit = (stop - done) // 2
                trials, times = [t for t in trials if t <= limit], {k: v for k, v in times.items() if k <= limit}
                size = min(size, limit)
                network.note(f"memory was short: {limit} instead of {stop - done} {unit} at a time")
                continue
            if stop - done == size and chunk is None:
                times[size] = (time.perf_counter() - started) / size
            if done == 0 and network.precision == "bf16":
                _note_deviation(network, run, stop, value)
            yield done, stop, value
            bar.update(stop - done)
            done = stop


def _trials(network: Network, count: int) -> list[int]:
    """Sizes to time: the first twice, since a network's first pass is slow. None beyond an eighth of the work."""
    sizes = CHUNKS_CUDA if network.device.type == "cuda" else CHUNKS
    return [sizes[0], *(s for s in sizes if s == sizes[0] or 8 * s <= count)]


def _note_deviation(network: Network, run: Callable[[int, int], Tensor], stop: int, value: Tensor) -> None:
    forward, backward = network.forward_passes, network.backward_passes
    with network.exact():
        reference = run(0, stop).double()
    network.forward_passes, network.backward_passes = forward, backward
    deviation = (value.double() - reference).abs().sum() / reference.abs().sum().clamp(min=1e-30)
    network.note(f"bf16: {float(deviation):.2g} from float32 on the first chunk (sum of differences over sum)")

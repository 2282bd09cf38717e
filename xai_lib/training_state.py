"""What a training needs to go on after a kill, as one safetensors file.

Usage::

    best = copy(model)                                            # what training can change, by name
    save(path, model, optimizer, best, history, {"seed": 0})
    history, best = resume(path, model, optimizer, {"seed": 0})

The file is replaced in one step, so a kill while it is written leaves the older one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def copy(model: nn.Module) -> dict[str, Tensor]:
    """What training can change: trainable weights and, unless the backbone is frozen, the buffers."""
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if not getattr(model, "frozen", False):
        trained |= {n for n, _ in model.named_buffers()}
    return {n: t.detach().clone() for n, t in model.state_dict().items() if n in trained}


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    history: list[dict[str, float]],
    training: Mapping[str, Any],
) -> None:
    """Write everything needed to go on; `training` (config, seed) says whose it is, and must be plain JSON."""
    tensors = {f"model/{n}": t for n, t in copy(model).items()} | {f"best/{n}": t for n, t in best.items()}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in slots.items() if torch.is_tensor(v)}
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    text = json.dumps({"history": history, **training})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"training": text})
    temporary.replace(path)


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, training: Mapping[str, Any]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Load what `save` wrote into `model` and `optimizer`; returns history and the best weights so far.

    Raises:
        ValueError: the file is damaged, or of another training or network; the message names it.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["training"])
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # a copy: the file is replaced later
        history = meta.pop("history")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"state: {path} is damaged or not a training's state ({error}); delete it") from error
    if meta != training:
        raise ValueError(f"state: {path} belongs to a training with other settings or another seed; delete it")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    if {n: t.shape for n, t in parts["model"].items()} != {n: t.shape for n, t in copy(model).items()}:
        raise ValueError(f"state: {path} belongs to another network; delete it")
    model.load_state_dict({**model.state_dict(), **parts["model"]})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, key = name.split("/")
        slots.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return history, parts["best"]

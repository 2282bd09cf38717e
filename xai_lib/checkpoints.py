"""Checkpoints: weights as ``.safetensors``, and a JSON card beside them that says what they are.

Usage::

    save(model, "net.safetensors", {"profile": "lab", "seed": 0, "figures": {...}}, precision="float16")
    model, card = load("net.safetensors")

The card holds the architecture, so that a file is enough to build the network again, and the weights' hash, so that a
damaged or exchanged file is noticed. Pickles are never written.

In 8 bits a weight w of output channel c is stored as round(w / s_c) with s_c = max |w| / 127 over the channel, so it
comes back with an error of s_c / 2 at most. The name ``net.safetensors.gz`` compresses the file, by a tenth in 8 bits.
"""

import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from xai_lib import models

SPEC = ("architecture", "in_channels", "outputs", "padding", "drs")
PRECISIONS = ("float32", "float16", "int8")
SUFFIXES = (".safetensors", ".safetensors.gz")
SCALE = ".scale"  # of a weight in 8 bits, one for each output channel: <name>.scale


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


def card_path(path: str | Path) -> Path:
    """The card of ``net.safetensors`` or ``net.safetensors.gz`` is ``net.json``."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).with_suffix(".json")


def save(
    model: models.Classifier,
    path: str | Path,
    card: dict[str, Any],
    precision: str = "float32",
    trainable_only: bool = False,
) -> dict[str, Any]:
    """Write `model` and its card; return the card with architecture, dtype and hash filled in.

    Args:
        model: the network.
        path: ends in ``.safetensors``, or in ``.safetensors.gz`` for a compressed file.
        card: anything JSON can hold: profile, seed, data fingerprint, figures. What `save` itself fills in wins.
        precision: "float32", "float16", or "int8" (weights of convolutions and linear layers in 8 bits, the rest in
            float16). Loading turns all of them back into float32.
        trainable_only: store only what trained (DRS scales and head, or the last layers with their statistics);
            `load` then needs the same frozen `base`.

    Raises:
        CheckpointError: another suffix or precision, weights that are NaN or infinite (or become so in float16), a
            card that JSON cannot hold, or `trainable_only` for a network that is not frozen. Older files stay as they
            are.
    """
    _check_name(Path(path), precision)
    if trainable_only and all(p.requires_grad for p in model.parameters()):
        raise CheckpointError(f"{path}: trainable_only needs a frozen backbone, all of this network trains")
    state = model.state_dict()
    trained = _trained(model)
    base = {n: t for n, t in state.items() if n not in trained} if trainable_only else {}
    full = {
        **card,
        **{k: model.spec[k] for k in SPEC},
        "partial": trainable_only,
        "frozen": model.frozen,
        "base_sha256": _digest(base) if trainable_only else None,
    }
    return save_state({n: t for n, t in state.items() if n not in base}, path, full, precision)


def save_state(
    state: Mapping[str, Tensor], path: str | Path, card: Mapping[str, Any], precision: str = "float32"
) -> dict[str, Any]:
    """Write the weights of any network and the card; return the card with dtype and hash filled in.

    Arguments and errors are those of `save`; the card must say what `load_state` is later asked to find.
    """
    path = Path(path)
    _check_name(path, precision)
    state = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    _check_finite(state, path)
    packed = _pack(state, precision)
    _check_finite(packed, path)  # float16 ends at 65504
    payload = to_bytes(packed)
    payload = gzip.compress(payload, mtime=0) if path.suffix == ".gz" else payload
    full = {**card, "dtype": precision, "sha256": sha256(payload).hexdigest()}
    try:
        text = json.dumps(full, indent=1, sort_keys=True) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"card: {error}; expected what JSON can hold") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, payload)
    _write(card_path(path), text.encode())
    return full


def _check_name(path: Path, precision: str) -> None:
    if not path.name.endswith(SUFFIXES):
        raise CheckpointError(f"{path}: a checkpoint's name ends in {' or '.join(SUFFIXES)}")
    if precision not in PRECISIONS:
        raise CheckpointError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")


def _pack(state: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Weights as they are stored."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if precision == "float32" or not tensor.is_floating_point():
            packed[name] = tensor
        elif precision == "int8" and tensor.ndim >= 2:
            packed[name], packed[name + SCALE] = _quantise(tensor)
        else:
            packed[name] = tensor.half()
    return packed


def _unpack(packed: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights in 8 bits times their scales; all others as they are."""
    state = dict(packed)
    for name in [n for n, t in packed.items() if t.dtype == torch.int8]:
        scale = state.pop(name + SCALE, None)
        if scale is None or scale.shape != packed[name].shape[:1]:
            raise CheckpointError(f"{path}: {name!r} is in 8 bits and needs one scale for each output channel")
        state[name] = packed[name].float() * _column(scale, packed[name])
    return state


def _quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (channels, ...) as int8 and one scale per channel (channels,), so that weight = int8 x scale."""
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / _column(scale, weight)).round().to(torch.int8), scale


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    """(channels,) -> (channels, 1, ...), as many axes as `weight`."""
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _trained(model: models.Classifier) -> set[str]:
    """Names of the weights that train, and of the statistics beside them."""
    weights = {n for n, p in model.named_parameters() if p.requires_grad}
    modules = {n.rpartition(".")[0] for n in weights}
    return weights | {n for n, _ in model.named_buffers() if n.rpartition(".")[0] in modules}


def _digest(state: dict[str, Tensor]) -> str:
    """Hash of names and values."""
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_finite(state: dict[str, Tensor], path: Path) -> None:
    bad = [n for n, t in state.items() if not torch.isfinite(t).all()]
    if bad:
        raise CheckpointError(f"{path}: {len(bad)} weights are NaN or infinite, the first is {bad[0]!r}")


def _write(path: Path, payload: bytes) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(payload)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_card(path: str | Path, fields: Sequence[str] = SPEC) -> dict[str, Any]:
    """Read the card of the checkpoint `path`, which must have these fields.

    Raises:
        CheckpointError: there is no card, it is not a card, or a field is missing.
    """
    file = card_path(path)
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; the checkpoint {Path(path).name} needs its card beside it") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error})") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{file}: not a card, expected a JSON object")
    missing = [k for k in (*fields, "sha256") if k not in card]
    if missing:
        raise CheckpointError(f"{file}: the card lacks {', '.join(missing)}")
    return card


def load(
    path: str | Path, expect: dict[str, Any] | None = None, base: models.Classifier | None = None
) -> tuple[models.Classifier, dict[str, Any]]:
    """Build the network of a checkpoint, load its weights (as float32), and return it in eval mode with its card.

    Args:
        path: the ``.safetensors`` or ``.safetensors.gz`` file.
        expect: fields that the card must have, for example ``{"architecture": "resnet18"}``.
        base: for a checkpoint of what trained only, the network it was trained on, before DRS (left unchanged).

    Raises:
        CheckpointError: file or card missing, hash wrong, file truncated, another architecture, weights that are
            missing, left over, of another shape, or not finite, a base with other weights. The message names which.
    """
    path = Path(path)
    state, card = load_state(path, expect)
    model = _skeleton(card, path, base)
    _fill(model, state, path, card)
    return model.eval(), card


def load_state(
    path: str | Path, expect: Mapping[str, Any] | None = None, fields: Sequence[str] = SPEC
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights (as they were before they were packed, but for rounding) and the card of a checkpoint.

    Args:
        path: the file.
        expect: fields that the card must have, with these values.
        fields: that it must have, with any value.

    Raises:
        CheckpointError: as `load`, but for what concerns the network.
    """
    path = Path(path)
    card = read_card(path, fields)
    for key, value in (expect or {}).items():
        if card.get(key) != value:
            raise CheckpointError(f"{path}: {key} is {card.get(key)!r}, expected {value!r}")
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, although its card is there")
    payload = path.read_bytes()
    if sha256(payload).hexdigest() != card["sha256"]:
        raise CheckpointError(f"{path}: its hash is not the card's; the file is truncated, damaged or exchanged")
    try:
        packed = from_bytes(gzip.decompress(payload) if path.suffix == ".gz" else payload)
    except (SafetensorError, OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    _check_finite(packed, path)
    return _unpack(packed, path), card


def _skeleton(card: dict[str, Any], path: Path, base: models.Classifier | None) -> models.Classifier:
    """The network without the checkpoint's weights, frozen as it was if they are only a part."""
    if card.get("partial") and base is None:
        raise CheckpointError(f"{path}: it holds only what trained; give the frozen network it belongs to as base")
    try:
        model = models.build(
            card["architecture"], in_channels=card["in_channels"], outputs=card["outputs"], padding=card["padding"]
        )
    except ValueError as error:
        raise CheckpointError(f"{card_path(path)}: {error}") from error
    if base is not None:
        if base.spec != {**{k: card[k] for k in SPEC}, "drs": False}:
            raise CheckpointError(f"{path}: made for {card['architecture']}, the base is {base.spec}")
        model.load_state_dict(base.state_dict())
    if card["drs"]:
        return models.add_representation_scaling(model)
    return models.freeze_backbone(model) if card.get("partial") and card.get("frozen", True) else model


def _fill(model: models.Classifier, state: dict[str, Tensor], path: Path, card: dict[str, Any]) -> None:
    """Copy `state` into `model` (which becomes float32), naming what does not fit."""
    own = model.state_dict()
    wanted = set(own)
    if card.get("partial"):
        wanted = _trained(model) if model.frozen else set(own) & set(state)
    missing = sorted(wanted - set(state))
    extra = sorted(set(state) - wanted)
    wrong = sorted(n for n in set(own) & set(state) if own[n].shape != state[n].shape)
    for problem, names in (("missing", missing), ("not in the network", extra), ("of another shape", wrong)):
        if names:
            raise CheckpointError(f"{path}: {len(names)} weights are {problem}, the first is {names[0]!r}")
    if card.get("partial") and _digest({n: own[n] for n in set(own) - wanted}) != card.get("base_sha256"):
        raise CheckpointError(f"{path}: the base holds other weights than the network that this was trained on")
    if card.get("partial"):
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in wanted)
    model.load_state_dict({**own, **state})

"""One image file explained by one method: an overlay, the map as an array, and a JSON file that says how it was made.

Usage::

    paths = explain_file("mass.png", "net.safetensors", "integrated_gradients", "out", {"steps": 100})

Reads what `data.images.read_image` reads, DICOM included. Nothing from a DICOM header goes into the results.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from xai_lib import checkpoints, plotting, records
from xai_lib.attribution import Attribution, attribute
from xai_lib.config import output_dir, runtime
from xai_lib.data import Case, images
from xai_lib.data.case import file_digest

SIZE = 224  # side of the network's input where the checkpoint's card does not name one


def explain_file(
    image: str | Path,
    checkpoint: str | Path,
    method: str,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    target: int = 0,
    size: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Write ``<image>.<method>.png``, ``.npy`` (map of the network's input size, float32) and ``.json`` into `out`.

    Args:
        image: PNG, JPEG, TIFF, BMP or DICOM file.
        checkpoint: a ``.safetensors`` file with its card beside it.
        method: a key of `attribution.METHODS`.
        out: folder, made where it is missing; older files of the same names are replaced.
        options: of the method.
        target: the output to explain.
        size: side of the network's input in pixels; None takes the card's, else 224.
        device: as for `config.runtime`.

    Raises:
        ValueError, TypeError, OSError: an image, a checkpoint, a method, an option or a folder cannot be used; the
            message names it. Nothing is written then.
    """
    where = runtime(device)
    pixels = torch.from_numpy(images.read_image(image))[None]
    model, card = checkpoints.load(checkpoint)
    side = size or int(card.get("size", SIZE))
    x = images.resize(pixels, side)
    found = attribute(method, model.to(where.device), x[None].to(where.device), target, **dict(options or {}))
    folder = output_dir(out)
    stem = f"{Path(image).stem}.{method}"
    none = torch.zeros((0, 4), dtype=torch.int64)
    case = Case(x, None, None, none, pixel_mm=None, patient_id="", view="", source=Path(image).name)
    figure = plotting.explained(case, found)
    plotting.save(figure, folder, stem)
    plt.close(figure)
    np.save(folder / f"{stem}.npy", found.map[0].float().cpu().numpy())
    facts = {
        "image_sha256": file_digest(Path(image)),
        "image_shape": list(pixels.shape[1:]),
        "input_size": side,
        "checkpoint": {"architecture": card["architecture"], "sha256": card["sha256"]},
        "options": {k: v for k, v in (options or {}).items() if not isinstance(v, torch.Tensor)},
        **_facts(found),
        "versions": records.versions(),
    }
    (folder / f"{stem}.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    return [folder / f"{stem}{ending}" for ending in (".png", ".npy", ".json")]


def _facts(found: Attribution) -> dict[str, Any]:
    """What an attribution says about itself, without its arrays."""
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    facts = {k: v for k, v in values.items() if not isinstance(v, torch.Tensor)}
    return facts | {"target": int(found.target[0]), "score": float(found.scores[0])}

"""Study 2, its parts put together: network, images, methods, and how many images get what.

Usage::

    chosen, setup, counts = profile_settings("lab")
    model, card = network(chosen, "lab", 0, runtime(), "outputs/training")
    study = study_of(chosen, model, card, setup, counts, "bf16")       # ready for `tables.tables`
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from xai_lib import checkpoints, config
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.models import Classifier
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import VARIANTS, Variant
from xai_lib.training import FitConfig

VERSION = 1  # of the tables; a higher one makes all stored tables void


@dataclass(frozen=True)
class Counts:
    """How many malignant images get what; each count of test images is a beginning of the next larger one.

    `main`: test images explained by `MAIN`; `cheap`: test images explained by the methods of few passes; `val`:
    validation images on which each method's quantile is chosen; `ablations`: test images explained by `ABLATIONS`;
    `inserted`: healthy twins that get a lesion at `contrasts`, the methods of many passes only at those in `costly`;
    `shown`: examples of each of `GROUPS`.
    """

    main: int = 16
    cheap: int = 60
    val: int = 5
    ablations: int = 4
    inserted: int = 10
    contrasts: tuple[float, ...] = (0.1, 0.2, 0.4)
    costly: tuple[float, ...] = (0.2,)
    shown: int = 2


@dataclass(frozen=True, eq=False)
class Study:
    """Everything the tables are made from; see `study_of`."""

    chosen: mn.WholeSettings
    dataset: CaseDataset
    twins: CaseDataset
    networks: Mapping[str, nn.Module]
    weights: str
    setup: Setup
    counts: Counts
    precision: str
    seed: int

    @property
    def base(self) -> dict[str, Any]:
        """What the rows of one image depend on, apart from the image and the variants."""
        known = {"version": VERSION, "weights": self.weights, "data": self.dataset.fingerprint}
        return known | {"setup": asdict(self.setup), "precision": self.precision, "seed": self.seed}

    @property
    def key(self) -> dict[str, Any]:
        """What the tables depend on, as plain JSON."""
        counts = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.counts).items()
        }
        return self.base | {"counts": counts, "parts": list(self.chosen.parts), "variants": plain(VARIANTS)}


def plain(variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Variants as plain JSON."""
    return {name: asdict(variant) for name, variant in variants.items()}


def profile_settings(profile: str) -> tuple[mn.WholeSettings, Setup, Counts]:
    """Network and images, parameters of the methods, and numbers of images of a profile.

    The thesis's sizes in pixels are for 1024 rows; at `lab` (512) windows are half as large. `smoke` tries the wiring,
    with few and large windows.
    """
    if config.profile(profile).name == "paper":
        fit = FitConfig(30, 8, 0.01, 1e-4, "sgd", "warm_restarts", None, augment="mammogram", group=2)
        chosen = mn.WholeSettings(1800, (1024, 512), weights="imagenet", patch_fit=None, fit=fit)
        return chosen, Setup(), Counts(main=400, cheap=400, val=100, ablations=40, inserted=40)
    if profile == "lab":
        return mn.WholeSettings(), Setup(window=30, stride=15), Counts()
    lab = mn.WholeSettings()
    patch_fit = replace(lab.patch_fit, epochs=1, batch_size=4) if lab.patch_fit else None
    fit = replace(lab.fit, epochs=1, batch_size=4)
    chosen = replace(
        lab,
        patients=10,
        size=(128, 64),
        parts=(0.4, 0.3, 0.3),
        architecture="squeezenet1_1",
        patch=32,
        jitter=3,
        copies=1,
        patch_fit=patch_fit,
        fit=fit,
    )
    setup = Setup(window=32, stride=16, steps=4, segments=12, samples=12)
    return chosen, setup, Counts(main=2, cheap=2, val=1, ablations=1, inserted=1, contrasts=(0.2, 0.4), shown=1)


def network(
    chosen: mn.WholeSettings, profile: str, seed: int, runtime: Runtime, state: str | Path, retrain: bool = False
) -> tuple[Classifier, dict[str, Any] | None]:
    """The shipped network with its card at profile `lab`; else, or with `retrain`, one trained here (card None)."""
    file = config.repository_dir() / "data" / "checkpoints" / f"mammogram_{chosen.architecture}.safetensors.gz"
    if profile == "lab" and not retrain:
        model, card = checkpoints.load(file, {"architecture": chosen.architecture})
        return model.to(runtime.device).eval(), card
    images = mn.whole_images(chosen, seed, progress=False)
    model, _ = mn.train_whole(chosen, images, seed, runtime, state, progress=False)
    return model.eval(), None


def study_of(
    chosen: mn.WholeSettings,
    model: Classifier,
    card: Mapping[str, Any] | None,
    setup: Setup,
    counts: Counts,
    precision: str = "float32",
    seed: int = 0,
) -> Study:
    """Put a study together.

    Args:
        chosen: its settings.
        model: the trained network.
        card: of its checkpoint; None for one that was just trained.
        setup: parameters of the methods, in pixels of these images.
        counts: how many images.
        precision: of occlusion, LIME and Kernel SHAP.
        seed: of the images, the split, the untrained network, random boxes and lesions.
    """
    weights = b"".join(t.cpu().numpy().tobytes() for t in model.state_dict().values()) if card is None else b""
    untrained = mn.fresh(model.spec["architecture"], None, seed + 1).to(next(model.parameters()).device)
    return Study(
        chosen,
        mn.cases(chosen, seed),
        mn.cases(chosen, seed, twins=True),
        {"trained": model.eval(), "untrained": untrained},
        sha256(weights).hexdigest() if card is None else str(card["sha256"]),
        setup,
        counts,
        precision,
        seed,
    )

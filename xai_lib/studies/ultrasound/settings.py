"""Study 3, the settings: which data, network and training a profile means.

Usage::

    chosen = settings("lab")                                        # synthetic images, the shipped network
    chosen = settings("lab", dataset="busi", weights="squeezenet.pth")

The repr of `Settings` is part of the name under which a trained network is cached.
"""

from dataclasses import dataclass, field, replace

from xai_lib.config import profile, repository_dir
from xai_lib.studies.ultrasound.runs import Backbone
from xai_lib.training import FitConfig

SYNTHETIC = "synthetic_ultrasound"
DATASETS = ("breast", "busi", "oasbud", SYNTHETIC)
TRANSFERS = ("drs", "linear", "none")
RING_FRACTION = 0.567  # median of 5 mm / equivalent diameter over the masses of BrEaST; for data without a pixel size
LAYERS = {  # the layer for LayerCAM: twice as fine as the last one
    "resnet10": "features.layer3",
    "resnet18": "features.layer3",
    "resnet50": "features.layer3",
    "resnet101": "features.layer3",
    "mobilenet_v2": "features.13",
    "efficientnet_b0": "features.5",
    "densenet121": "features.0.transition3.norm",
    "squeezenet1_1": "features.7",
}


@dataclass(frozen=True)
class Settings:
    """What a profile means for this study. `masses` and `cue_masses` count synthetic masses (two views each);
    `parts` are the shares of train, val and test.

    `transfer` says what happens on a real data set: "drs" trains scales and head in folds, "linear" only a linear head
    in folds, "none" tests the shipped synthetic network as it is.
    """

    profile: str
    dataset: str = SYNTHETIC
    data_root: str | None = None
    transfer: str = "drs"
    masses: int = 1200
    cue_masses: int = 80
    parts: tuple[float, float, float] = (0.80, 0.10, 0.10)
    size: int = 224
    backbone: Backbone = field(default_factory=lambda: Backbone("resnet10", transfer="all", layer=LAYERS["resnet10"]))
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=12, batch_size=16, optimizer="adamw", weight_decay=0.01, schedule="onecycle", patience=None
        )
    )
    cue_fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=12, batch_size=12, learning_rate=3e-3))
    folds: int = 5
    repetitions: int = 5
    replicates: int = 1000
    checkpoint: str | None = field(default_factory=lambda: str(repository_dir() / "data" / "checkpoints"))

    @property
    def synthetic(self) -> bool:
        """Whether the images come from the generator."""
        return self.dataset == SYNTHETIC

    @property
    def regions(self) -> dict[str, float]:
        """Options of `localization.regions`: 5 mm, or a fraction of the diameter where the pixel size is unknown."""
        return {"ring_fraction": RING_FRACTION} if self.dataset == "busi" else {"ring_mm": 5.0}


def settings(
    profile_name: str,
    dataset: str = "",
    data_root: str = "",
    backbone: str = "",
    weights: str = "",
    padding: str = "torchvision",
    transfer: str = "",
    epochs: int = 0,
    folds: int = 5,
    repetitions: int = 5,
) -> Settings:
    """Settings of a profile; an empty text or 0 leaves the profile's choice.

    On synthetic images any other network or number of epochs means training anew (all weights, or DRS where `weights`
    are given). On real images the default start is ImageNet: ResNet-50 at `paper`, else SqueezeNet.

    Raises:
        ValueError: an unknown profile, data set, network or option, or `transfer` with synthetic images.
    """
    chosen = profile(profile_name)
    for name, value, known in (
        ("dataset", dataset, DATASETS),
        ("backbone", backbone, LAYERS),
        ("transfer", transfer, TRANSFERS),
    ):
        if value and value not in known:
            raise ValueError(f"{name}: {value!r} is unknown, expected one of {', '.join(known)}")
    dataset = dataset or ("busi" if chosen.name == "paper" else SYNTHETIC)
    base = Settings(chosen.name, dataset, data_root or None, folds=folds, repetitions=repetitions)
    if chosen.name == "smoke":  # hardly fewer masses can be split, and the test part halved, with both classes in each
        fit, cue_fit = replace(base.fit, epochs=2), replace(base.cue_fit, epochs=1)
        base = replace(base, masses=14, cue_masses=8, parts=(0.5, 0.2, 0.3), size=96, replicates=20)
        base = replace(base, fit=fit, cue_fit=cue_fit)
    if base.synthetic:
        if transfer:
            raise ValueError(f"transfer: {transfer!r} is for real data sets, not for {dataset}")
        if backbone or weights or padding != "torchvision":
            name = backbone or base.backbone.name
            start = Backbone(name, weights or None, padding, "drs" if weights else "all", LAYERS[name])
            base = replace(base, backbone=start)
        anew = chosen.name != "lab" or bool(epochs) or base.backbone != Settings("lab").backbone
        base = replace(base, checkpoint=None if anew else base.checkpoint)
    else:
        name = backbone or ("resnet50" if chosen.name == "paper" else "squeezenet1_1")
        start = Backbone(name, weights or "imagenet", padding, "drs", LAYERS[name])
        base = replace(base, backbone=start, fit=FitConfig(), transfer=transfer or "drs")
    return replace(base, fit=replace(base.fit, epochs=epochs)) if epochs else base

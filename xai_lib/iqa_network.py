"""The network that reads a contrast-detail curve from one image of the phantom, and the ensemble of ten.

Usage::

    member = IqaNetwork()                                    # table 2: 250 x 250 pixels, 12 outputs
    curves = member(x)                                       # (N, 12) in micrometres
    predict(members, x).total                                # standard deviation of each point, (N, 12)

Reference: Amanova et al. 2022, section 2.2, table 2 and appendix C; Lakshminarayanan et al. 2017 (deep ensembles).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from xai_lib.cdmam.geometry import CURVE_MM

SIGMAS = ("constant", "features")
UNITS = ("um", "log um")
CHANNELS = (8, 16, 32)


@fx.wrap
def of_size(x: Tensor, size: int) -> Tensor:
    """`x` itself, when it is (N, 1, size, size); one call in a traced graph.

    Raises:
        ValueError: another shape.
    """
    if x.ndim != 4 or x.shape[1:] != (1, size, size):
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (N, 1, {size}, {size})")
    return x


class IqaNetwork(nn.Module):
    """Three convolutions and two full layers: images (N, 1, S, S), normalised, to 12 thresholds (N, 12) in micrometres.

    Args:
        size: S, pixels of a side.
        hidden: width of the two full layers.
        outputs: points of the curve.
        dropout: after the first full layer's input, in training.
        sigma: "constant", one learnt variance per output (the paper's text: homoscedastic), or "features", a layer fed
            by the features (table 2).
        unit: of the curve inside the network; "log um" learns its logarithm. The output is in micrometres either way.

    Raises:
        ValueError: an unknown `sigma` or `unit`, or a size below 8.
    """

    curve_mean: Tensor
    curve_sd: Tensor

    def __init__(
        self,
        size: int = 250,
        hidden: int = 512,
        outputs: int = len(CURVE_MM),
        dropout: float = 0.2,
        sigma: str = "constant",
        unit: str = "um",
    ) -> None:
        super().__init__()
        for name, value, known in (("sigma", sigma, SIGMAS), ("unit", unit, UNITS)):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
        if size < 8:
            raise ValueError(f"size: {size} is below 8 pixels")
        self.size, self.outputs, self.unit = size, outputs, unit
        layers: list[nn.Module] = []
        for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        side = size // 2 // 2
        self.features = nn.Sequential(
            *layers[:-1],  # no pooling after the third
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(side * side * CHANNELS[-1], hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.mu = nn.Linear(hidden, outputs)
        self.log_variance = nn.Linear(hidden, outputs) if sigma == "features" else nn.Parameter(torch.zeros(outputs))
        self.register_buffer("curve_mean", torch.zeros(outputs))
        self.register_buffer("curve_sd", torch.ones(outputs))

    def standardised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (N, K) of the curve in the network's unit, less its mean over its spread in training.

        Raises:
            ValueError: images of another size.
        """
        f = self.features(of_size(x, self.size))  # (N, hidden)
        spread = self.log_variance
        return self.mu(f), spread(f) if isinstance(spread, nn.Module) else spread.expand(len(f), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Curves (N, K) in micrometres."""
        return self.micrometres(self.mu(self.features(of_size(x, self.size))))

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Curves and their standard deviations (N, K) in micrometres; from the logarithm by its derivative."""
        mean, log_variance = self.standardised(x)
        sd = (log_variance / 2).exp() * self.curve_sd
        curve = self.micrometres(mean)
        return curve, sd * curve if self.unit == "log um" else sd

    def micrometres(self, standardised: Tensor) -> Tensor:
        """Standardised outputs (N, K) as thresholds in micrometres."""
        curve = standardised * self.curve_sd + self.curve_mean
        return curve.exp() if self.unit == "log um" else curve

    def targets(self, curves_um: Tensor) -> Tensor:
        """Thresholds (N, K) in micrometres as the network's standardised outputs."""
        curve = curves_um.log() if self.unit == "log um" else curves_um
        return (curve - self.curve_mean) / self.curve_sd


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an ensemble says, on the CPU: `mean`, `epistemic` and `aleatoric` sd (N, K), and `members` (M, N, K)."""

    mean: Tensor
    epistemic: Tensor
    aleatoric: Tensor
    members: Tensor

    @property
    def total(self) -> Tensor:
        """Standard deviation of both together (N, K)."""
        return (self.epistemic**2 + self.aleatoric**2).sqrt()

    @property
    def midpoint(self) -> Tensor:
        """Mean of the curve's points (N,)."""
        return self.mean.mean(1)


def predict(members: Sequence[IqaNetwork], x: Tensor, batch: int = 32) -> Prediction:
    """Mean curve and its uncertainty: of the members' means (epistemic) and of each member (aleatoric).

    Raises:
        ValueError: no members.
    """
    if not members:
        raise ValueError("members: the ensemble is empty")
    curves, spreads = [], []
    with torch.inference_mode():
        for member in members:
            was = member.training
            member.eval()
            parts = [member.distribution(part) for part in x.split(batch)]
            member.train(was)
            curves.append(torch.cat([curve for curve, _ in parts]))
            spreads.append(torch.cat([sd for _, sd in parts]))
    found, sds = torch.stack(curves).cpu(), torch.stack(spreads).cpu()  # (M, N, K)
    epistemic = found.std(0, unbiased=False)
    return Prediction(found.mean(0), epistemic, (sds**2).mean(0).sqrt(), found)

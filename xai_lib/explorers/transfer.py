"""Study 4, hands on: where a group of a network is active when the mass is in the middle, moved away, or gone.

Usage::

    activations({"transfer": model}, ready.sets.moved, [3, 17])

Reference: Li et al. 2025, equation 3 and section 5.1.2; the moved masses are ours.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from xai_lib import knowledge_transfer as kt
from xai_lib import network_groups
from xai_lib.data import Case, CaseDataset
from xai_lib.explorers.common import Explorer, dropdown, steps
from xai_lib.models import Classifier
from xai_lib.plotting.common import CLASS_NAMES
from xai_lib.plotting.knowledge_transfer_images import show_activation

PLACES = {"centred": "mass in the middle", "shifted": "mass moved", "twin": "no mass (outline: where it was)"}


def activations(
    networks: Mapping[str, Classifier], moved: Mapping[str, CaseDataset], indices: Sequence[int]
) -> Explorer:
    """Choose image, network and group; see the map and its share inside the mass.

    Args:
        networks: by name, in eval mode.
        moved: ROIs "centred", "shifted" and "twin" with masks; index i is the same mass in all of them.
        indices: the masses to choose from.
    """
    groups = list(network_groups.groups(next(iter(networks.values()))))

    @lru_cache(maxsize=256)
    def maps(image: int, network: str) -> dict[str, dict[str, Tensor]]:
        """Activation map (h, w) by group, by place."""
        model = networks[network]
        x = torch.stack([moved[place][image].image for place in PLACES])  # (3, 1, H, W)
        with torch.inference_mode():
            found = network_groups.group_activations(model, x.to(next(model.parameters()).device))
        drawn = {group: kt.activation_map(A).cpu() for group, A in found.items()}
        return {place: {group: m[k] for group, m in drawn.items()} for k, place in enumerate(PLACES)}

    def draw(image: int, network: str, group: str) -> Figure:
        cases = {place: moved[place][image] for place in PLACES}
        shown = {place: found[group] for place, found in maps(image, network).items()}
        return activation_figure(cases, shown, f"{network}, {group}")

    names = {f"{i}, {CLASS_NAMES[int(moved['centred'].labels[i])]}": int(i) for i in indices}
    controls = {
        "image": dropdown("mass", names, int(indices[0])),
        "network": dropdown("network", {name: name for name in networks}, list(networks)[-1]),
        "group": steps("group", {name: name for name in groups}, groups[-1]),
    }
    return Explorer(draw, controls, "activation maps with the mass in the middle, moved, and gone")


def activation_figure(cases: Mapping[str, Case], maps: Mapping[str, Tensor], title: str = "") -> Figure:
    """Activation maps over their ROIs, each with its share inside the mass and the mass's share of the area.

    Args:
        cases: ROIs (1, H, W) with masks, by place.
        maps: (h, w) >= 0 by place.
        title: above all.
    """
    figure, axes = plt.subplots(1, len(cases), figsize=(2.1 * len(cases), 2.8), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=8.5)
    for ax, (place, case) in zip(axes[0], cases.items(), strict=True):
        show_activation(ax, case, maps[place].numpy(), PLACES.get(place, place))
        if case.mask is not None and case.mask.any():
            inside = float(kt.share_inside(maps[place][None], case.mask[None]))
            ax.text(
                0.5,
                -0.03,
                f"inside {inside:.0%}\n(area {float(case.mask.float().mean()):.0%})",
                transform=ax.transAxes,
                ha="center",
                va="top",
                fontsize=8,
            )
    return figure

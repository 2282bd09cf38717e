"""Planted faults: each makes a method wrong in a way that is easy to write, runs without an error, and looks right."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault: `old` occurs once in `file` and becomes `new`; the test `caught_by` must then fail."""

    what: str
    file: str
    old: str
    new: str
    caught_by: str


MUTATIONS = (
    Mutation(
        "integrated gradients: the path starts at 0, whatever the baseline",
        "xai_lib/attribution/path.py",
        "network.gradient(start + points[point, None, None, None] * move, target[image])",
        "network.gradient(points[point, None, None, None] * move, target[image])",
        "tests/test_attribution_path.py::test_ig_of_a_square_is_the_square",
    ),
    Mutation(
        "DeepLIFT: the secant goes through 0 instead of through the baseline",
        "xai_lib/attribution/rules.py",
        "step = kept - reference[0] if reference else kept",
        "step = kept",
        "tests/test_attribution_rules.py::test_secant_of_two_units_by_hand",
    ),
    Mutation(
        "Grad-CAM: the weight of a channel is its largest gradient instead of the mean",
        "xai_lib/attribution/gradients.py",
        "at.gradient.mean((2, 3), keepdim=True) * at.value",
        "at.gradient.amax((2, 3), keepdim=True) * at.value",
        "tests/test_attribution_gradients.py::test_the_weight_of_a_channel_is_its_mean_gradient_by_hand",
    ),
    Mutation(
        "occlusion: the sum over the windows that cover a pixel is divided by the number of all windows",
        "xai_lib/attribution/occlusion.py",
        "return total / count",
        "return total / len(corners)",
        "tests/test_attribution_occlusion.py::test_overlap_and_cut_windows_by_hand",
    ),
    Mutation(
        "pointing game: a cell stands at its corner instead of its centre",
        "xai_lib/localization.py",
        "point = (places[0] + 0.5) * step - 0.5 + offset",
        "point = places[0] * step + offset",
        "tests/test_localization.py::test_extremes_are_cell_centres",
    ),
    Mutation(
        "IOU: boxes hold their last row and column, so neighbours overlap",
        "xai_lib/box_scores.py",
        "common = np.maximum(high - low, 0)",
        "common = np.maximum(high - low + 1, 0)",
        "tests/test_boxes.py::test_iou_by_hand",
    ),
    Mutation(
        "GLCM variance: mu is scaled in the mixed term only (eq. 2)",
        "xai_lib/glcm.py",
        "factor * (2 - factor) * sums**2",
        "2 * factor * sums**2",
        "tests/test_glcm.py::test_the_four_level_example_by_hand",
    ),
    Mutation(
        "knowledge transfer: maps divided by their sum instead of their L2 norm (eq. 4)",
        "xai_lib/knowledge_transfer.py",
        "norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)",
        "norms = vectors.sum(1, keepdim=True)",
        "tests/test_knowledge_transfer.py::test_distance_by_hand",
    ),
    Mutation(
        "partial convolution: sum(1) counts the channels of the first mask only, not those of the skip",
        "xai_lib/inpainting.py",
        'weight = float(windows.sum()) if self.scale == "liu"',
        'weight = float(windows[0, 0].sum()) if self.scale == "liu"',
        "tests/test_inpainting.py::test_shares_are_masks_repeated_for_their_channels[liu]",
    ),
    Mutation(
        "deletion region: psi with the sign turned round, as if the score were to rise",
        "xai_lib/deletion_region.py",
        "return score - z",
        "return z - score",
        "tests/test_deletion_region.py::test_phi_and_psi_by_hand",
    ),
    Mutation(
        "OMIG: the first gradient is clipped as well, which Algorithm 1 does not",
        "xai_lib/omig.py",
        "if step > 0 or clip_first:",
        "if step >= 0 or clip_first:",
        "tests/test_omig.py::test_printed_order_of_the_clipping",
    ),
    Mutation(
        "CDMAM: the threshold is where half of the answers are right instead of 62.5 %",
        "xai_lib/cdmam/readout.py",
        "\nCHANCE = 0.25\n",
        "\nCHANCE = 0.0\n",
        "tests/test_cdmam_readout.py::test_an_observer_on_a_cubic_is_recovered_exactly_from_its_chances",
    ),
    Mutation(
        "bootstrap: images are drawn instead of patients, which makes intervals too narrow",
        "xai_lib/statistics.py",
        "codes = pd.factorize(np.asarray(groups), use_na_sentinel=False)[0]",
        "codes = np.arange(len(np.asarray(groups)))",
        "tests/test_statistics.py::test_bootstrap_draws_whole_patients",
    ),
    Mutation(
        "splits: images are dealt out instead of patients, who then are in training and test",
        "xai_lib/data/splits.py",
        "patients, patient_of = np.unique(dataset.patient_ids, return_inverse=True)",
        "patients = patient_of = np.arange(len(dataset))",
        "tests/test_data_splits.py::test_every_case_once_and_no_patient_twice[0]",
    ),
)

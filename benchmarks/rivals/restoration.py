"""Restoring what pruned channels did with the kept ones, by matrices Z with x ~ Z x[kept] that the consumers absorb.

`published_merging`: Kim, Kim, Park, Jeon, "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020.
`leave_before_you_leave`: Lee, Kim, Choi, "Training-Free Restoration of Pruned Neural Networks" (LBYL), arXiv 2502.08474.
`gram_ridge`: Tang, Wang, Thiele, Saukh, "GRAIL: Post-hoc Compensation by Linear Reconstruction for Compressed Networks", 2026.
`affine_ridge`: Zhang, Yang, "CORP: Closed-Form One-shot Representation-Preserving Structured Pruning", arXiv 2602.05243.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxmerge.algorithms.criteria import keep_best
from onnxmerge.algorithms.decomposition import decompose
from onnxmerge.errors import Refusal
from onnxmerge.graph.channel_groups import ChannelGroup
from onnxmerge.graph.channel_propagation import Product
from onnxmerge.graph.merge_validity import PreActivations, pre_activations
from onnxmerge.graph.product_factors import channels_of_rows, linear_factors
from onnxmerge.graph.rewrite import Removal, Replacement
from onnxmerge.pruning.product_update import OutputMix
from rivals.activations import Moments, factor_moments, moments
from rivals.cases import Case, NotRun, absorbed

CALIBRATION = 500
COSINE_WEIGHT = 0.85
"""The lambda of neuron merging."""
PUBLISHED_THRESHOLDS = {False: 0.45, True: 0.1}
"""Its thresholds: of LeNet-300-100, and of networks with BatchNormalization."""


def leave_before_you_leave(compared: PreActivations, kept: np.ndarray, offset_weight: float, ridge: float) -> np.ndarray:
    """Z (n, k) of channels y_i = a_i (W_i x) + t_i: for every pruned i the s that minimises

        |W_i - sum_k s_k a_k / a_i W_k|^2 + offset_weight (t_i - sum_k s_k t_k)^2 + ridge |s|^2,

    the paper's residual error, its error of the batch normalization, and its bound of the error of the activation.

    Parameters
    ----------
    compared : PreActivations
        W (n, d), and a and t (n,), which the BatchNormalization gives.
    kept : ndarray of shape (k,), int
    offset_weight, ridge : float
        The paper's lambda_1 and lambda_2.
    """
    affine, offset = compared.rows * compared.scale[:, None], compared.offset
    products, between = affine[kept] @ affine.T, np.outer(offset[kept], offset)
    scaling = np.zeros((len(affine), len(kept)))
    for channel in np.setdiff1d(np.arange(len(affine)), kept):
        unit = compared.scale[channel] ** 2  # the loss, times this
        system = products[:, kept] + unit * (offset_weight * between[:, kept] + ridge * np.eye(len(kept)))
        scaling[channel] = np.linalg.solve(system, products[:, channel] + unit * offset_weight * between[:, channel])
    return _identity_at(scaling, kept)


def published_merging(compared: PreActivations, kept: np.ndarray) -> np.ndarray:
    """Z (n, k) of neuron merging as published, with the standard deviation sigma of the BatchNormalization:

        s_ik = |W_i| / |W_k| gamma_k / gamma_i sigma_i / sigma_k,
        d_ik = |gamma_k / sigma_k (|W_i| / |W_k| (mu_i - sigma_i beta_i / gamma_i) - mu_k) + beta_k| / s_ik,

    d stretched to 0..1 over k, and the k of lowest lambda (1 - cos(W_i, W_k)) + (1 - lambda) d_ik, where the cosine reaches the
    threshold. Exact multiples would need gamma and sigma the other way round; the published figures are with these.
    """
    if compared.mean_std is None:
        with_bias = np.concatenate([compared.rows, compared.offset[:, None]], axis=1)
        return decompose(with_bias, kept, PUBLISHED_THRESHOLDS[False])
    removed = np.setdiff1d(np.arange(len(compared.rows)), kept)
    lengths = np.linalg.norm(compared.rows, axis=1)
    cosines = compared.rows[removed] @ compared.rows[kept].T / np.outer(lengths[removed], lengths[kept])
    ratios = lengths[removed][:, None] / lengths[kept]
    scales = ratios * compared.scale[kept] / compared.scale[removed][:, None]
    shifts = ratios * (-compared.offset / compared.scale)[removed][:, None] * compared.scale[kept] + compared.offset[kept]
    distances = np.abs(shifts) / scales
    low, high = distances.min(1, keepdims=True), distances.max(1, keepdims=True)
    scores = COSINE_WEIGHT * (1.0 - cosines) + (1.0 - COSINE_WEIGHT) * (distances - low) / np.maximum(high - low, 1e-30)
    scaling = np.zeros((len(compared.rows), len(kept)))
    for row, (channel, at) in enumerate(zip(removed, scores.argmin(1), strict=True)):
        if cosines[row, at] >= PUBLISHED_THRESHOLDS[True]:
            scaling[channel, at] = scales[row, at]
    return _identity_at(scaling, kept)


def gram_ridge(second: np.ndarray, kept: np.ndarray, ridge: float) -> np.ndarray:
    """Z (n, k) = G[:, kept] (G[kept, kept] + ridge mean(diag) I)^-1 of the Gram matrix G (n, n) of what a consumer reads."""
    own = second[np.ix_(kept, kept)]
    return np.linalg.solve(own + ridge * np.trace(own) / len(kept) * np.eye(len(kept)), second[kept]).T


def affine_ridge(found: Moments, kept: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Z (n, k) and c (n,) with x ~ Z x[kept] + c: the ridge of the covariance for pruned channels, and the means."""
    scaling = _identity_at(gram_ridge(found.covariance, kept, ridge), kept)
    return scaling, found.mean - scaling @ found.mean[kept]


def _identity_at(scaling: np.ndarray, kept: np.ndarray) -> np.ndarray:
    scaling[kept] = np.eye(len(kept))
    return scaling


def activation_norm(case: Case, group: ChannelGroup, found: Moments | None) -> np.ndarray:
    """(k,) kept channels by sqrt(E[x_i^2]) |V[:, i]|, V the weights of the consumers (Sun et al., "Wanda", 2024).

    Channels that logits sum over by the root of what the squares of queries and keys multiply to.
    """
    scores = np.zeros(group.size)
    if found is not None:
        columns = np.concatenate([each.columns().swapaxes(0, 1).reshape(group.size, -1) for each in group.consumers], axis=1)
        scores += np.sqrt(np.diag(found.second)) * np.linalg.norm(columns, axis=1)
    for product in group.products:
        query, key = (np.diagonal(each, axis1=1, axis2=2) for each in factor_moments(case, CALIBRATION)[product.key])
        rows = channels_of_rows(case.analysed.channels, group, product)
        np.add.at(scores, rows[rows >= 0], np.sqrt(query * key)[rows >= 0])
    return keep_best(scores, case.counts[group.name], group.removable, group.conv_groups)


def affine_rows(case: Case, group: ChannelGroup) -> PreActivations:
    """What a group's producers compute. Raises NotRun behind anything but ReLU and the like."""
    compared = pre_activations(case.analysed.channels, group)
    if isinstance(compared, Refusal):
        raise NotRun(f"not valid here: {compared.text}")
    return compared


def write_neuron_merging(case: Case, settings: dict[str, Any], target: Path) -> None:
    """Neuron merging as published; the program's `merge` has a scale and a distance of its own behind BatchNormalization."""
    removals = []
    for group in case.groups:
        compared, kept = affine_rows(case, group), case.kept(group, settings["criterion"])
        removals.append(Removal(group, kept, "merge", scaling=published_merging(compared, kept)))
    case.write(removals, absorbed(removals), target)


def write_lbyl(case: Case, settings: dict[str, Any], target: Path) -> None:
    """LBYL with channels by a criterion of their weights, as in the paper."""
    removals = []
    for group in case.groups:
        compared, kept = affine_rows(case, group), case.kept(group, settings["criterion"])
        scaling = leave_before_you_leave(compared, kept, settings["lambda_1"], settings["lambda_2"])
        removals.append(Removal(group, kept, "lbyl", scaling=scaling))
    case.write(removals, absorbed(removals), target)


def write_grail(case: Case, settings: dict[str, Any], target: Path) -> None:
    """GRAIL with Gram matrices of the original model."""
    found, removals = moments(case, CALIBRATION), []
    for group in case.groups:
        kept = _selected(case, group, settings["criterion"], found.get(group.name))
        scaling = None if group.name not in found else gram_ridge(found[group.name].second, kept, settings["ridge"])
        removals.append(Removal(group, kept, "grail", scaling=scaling))
    case.write(removals, absorbed(removals), target)


def write_corp(case: Case, settings: dict[str, Any], target: Path) -> None:
    """CORP: an affine ridge for what layers read, and for attention logits the matrix between the kept queries and keys."""
    found, removals, shifts = moments(case, CALIBRATION), [], dict[str, np.ndarray]()
    mixes: dict[str, OutputMix] = {}
    for group in case.groups:
        kept, scaling = _selected(case, group, settings["criterion"], found.get(group.name)), None
        if group.name in found:
            scaling, constant = affine_ridge(found[group.name], kept, settings["ridge"])
            for each in group.consumers:
                shift = each.layer.alpha * each.columns().sum(2) @ constant
                shifts[each.key] = shifts.get(each.key, 0.0) + shift
        removals.append(Removal(group, kept, "corp", scaling=scaling))
        for product in group.products:
            _keep_logits(mixes, case, removals[-1], product, settings["ridge"])
    replaced = {key: Replacement(each.weight, shifts[key]) for key, each in absorbed(removals).items()}
    for key, mix in mixes.items():
        replaced[key] = mix.applied(case.analysed.channels, replaced.get(key))
    case.write(removals, replaced, target)


def _keep_logits(mixes: dict[str, OutputMix], case: Case, removal: Removal, product: Product, ridge: float) -> None:
    """Queries that with the kept keys give the logits again, where both are linear in layers: q' = M^T q[kept]."""
    channels = case.analysed.channels
    factors = linear_factors(channels, removal.group, product)
    if factors is None:
        return
    for row, of_row in enumerate(channels_of_rows(channels, removal.group, product)):
        query, key = (moment[row] for moment in factor_moments(case, CALIBRATION)[product.key])
        kept = np.flatnonzero(np.isin(of_row, removal.kept))
        mixture = np.zeros_like(query)
        mixture[np.ix_(kept, kept)] = logit_ridge(query, key, kept, ridge)
        layer, positions = factors[0].layer, factors[0].positions[row]
        mixes.setdefault(layer.key, OutputMix(layer)).blocks[positions.tobytes()] = positions, mixture


def logit_ridge(query: np.ndarray, key: np.ndarray, kept: np.ndarray, ridge: float) -> np.ndarray:
    """M (k, k) that minimises E (q . k - q[kept] M k[kept])^2, from second moments (n, n) of both, with a ridge each."""
    return np.asarray(gram_ridge(query, kept, ridge).T @ gram_ridge(key, kept, ridge))


def _selected(case: Case, group: ChannelGroup, criterion: str, found: Moments | None) -> np.ndarray:
    return activation_norm(case, group, found) if criterion == "wanda" else case.kept(group, criterion)

"""Fitting what prompts look like that the probes may score."""

from __future__ import annotations

import numpy as np
from sklearn.covariance import LedoitWolf

from introspect.types import PromptInfo
from introspect_probes.domain import Domain, image_tokens, novelty_features, pair_codes, text_tokens
from introspect_probes.fitting import fit_logistic


def fit_domain(fit: list[PromptInfo], calibration: list[PromptInfo], outside: list[PromptInfo]) -> Domain:
    """What the fit met, and a novelty probe told apart on the calibration pool's prompts from those outside."""
    pictures = np.array([p.image_embedding for p in fit if p.image_embedding is not None], dtype=np.float64)
    covariance = LedoitWolf().fit(pictures)
    values, vectors = np.linalg.eigh(covariance.covariance_)
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-9))).T.astype(np.float32)
    center = covariance.location_.astype(np.float32)
    tokens = np.unique([t for p in fit for t in text_tokens(p)]).astype(np.int64)
    pairs = np.unique(np.concatenate([pair_codes(text_tokens(p)) for p in fit]))
    features = np.stack([novelty_features(p, center, whitening, tokens, pairs) for p in [*calibration, *outside]])
    labels = np.array([1] * len(calibration) + [0] * len(outside), dtype=np.int8)
    weights = np.where(labels == 1, 0.5 / len(calibration), 0.5 / len(outside)) * len(labels)
    probe, _ = fit_logistic(features, labels, np.arange(len(labels)).astype(str), weights=weights, strengths=(1.0,))
    bare = [pair_codes(text_tokens(p)) for p in fit if p.image_embedding is None]
    bare_pairs = np.unique(np.concatenate([pair_codes([]), *bare]))
    return Domain(center, whitening, tokens, pairs, probe, bare_pairs, max(image_tokens(p) for p in fit))

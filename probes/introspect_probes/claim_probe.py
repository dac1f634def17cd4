"""Hallucination risk as it is served: an internal probe times a prior, calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from introspect.types import PromptInfo
from introspect_probes.features import TokenFeatures, kind_features
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, probability
from introspect_probes.signals import HallucinationRisk


@dataclass(frozen=True)
class ClaimProbe:
    """P(the claim decided at a token is false), as HaloProbe factorises it (arXiv 2604.06165).

    Attributes:
        internal: from attention, logits and kind, fitted with positions and repetitions balanced.
        prior: from position, repetition, kind and budget.
        calibration: of the sum of both logits.
        any_false_calibration: of the logit of P(any claim false) under independence.
    """

    internal: BudgetedProbe
    prior: BudgetedProbe
    calibration: BudgetedPlatt
    any_false_calibration: BudgetedPlatt

    def risk(self, features: TokenFeatures, kind: str, prompt: PromptInfo, level: Literal["claim", "token"] = "claim") -> HallucinationRisk:
        """Risk of the claim of `kind` that a token decides; `level` says whether claims can be told apart."""
        reduced = is_reduced(prompt)
        internal = float(self.internal.logits(internal_features(features, kind), reduced))
        prior = float(self.prior.logits(prior_features(features, kind, prompt), reduced))
        risk = float(self.calibration(internal + prior, reduced))
        return HallucinationRisk(risk=risk, internal=probability(internal), prior=probability(prior), kind=level)

    def any_false(self, risks: Sequence[float], *, reduced: bool) -> float:
        """P(any of an answer's claims is false) from their risks."""
        return float(self.any_false_calibration(any_false_logit(risks), reduced))


def any_false_logit(risks: Sequence[float] | NDArray[np.floating]) -> float:
    """Logit of P(any claim false) if claims were independent."""
    all_true = float(np.log1p(-np.clip(risks, 1e-6, 1 - 1e-6)).sum())
    return float(np.log(-np.expm1(all_true)) - all_true)


def internal_features(features: TokenFeatures, kind: str) -> NDArray[np.float32]:
    """What the internal hallucination probe reads."""
    return np.concatenate([features.heads, features.logits, kind_features(kind)])


def prior_features(features: TokenFeatures, kind: str, prompt: PromptInfo) -> NDArray[np.float32]:
    """What the prior reads: place, kind, and how much the budget kept."""
    return np.concatenate([features.place, kind_features(kind), budget_features(prompt)])


def is_reduced(prompt: PromptInfo) -> bool:
    """Whether anything of the prompt's cache was dropped."""
    return prompt.budget.effective < prompt.budget.prompt_tokens


def budget_features(prompt: PromptInfo) -> NDArray[np.float32]:
    """Kept share of the prompt, and whether anything was dropped."""
    ratio = prompt.budget.effective / prompt.budget.prompt_tokens
    return np.array([ratio, is_reduced(prompt)], dtype=np.float32)

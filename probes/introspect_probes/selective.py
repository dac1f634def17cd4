"""Selective prediction: how many mistakes are left when the least confident answers are refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


def errors_among(confidence: Floats, correct: Labels) -> NDArray[np.float64]:
    """Errors among the 0, 1, ... n most confident answers, `[n + 1]`; within a tie, what a random order gives on average."""
    order = np.argsort(-np.asarray(confidence), kind="stable")
    sorted_confidence, wrong = np.asarray(confidence)[order], 1.0 - np.asarray(correct)[order]
    ends = np.flatnonzero(np.r_[sorted_confidence[1:] != sorted_confidence[:-1], True]) + 1
    cumulative = np.cumsum(wrong)[ends - 1]
    return np.interp(np.arange(len(wrong) + 1), np.r_[0, ends], np.r_[0.0, cumulative])


def risk_coverage(confidence: Floats, correct: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage (share of answers kept) and risk (share of these that are wrong), `[n]` each."""
    errors = errors_among(confidence, correct)[1:]
    kept = np.arange(1, len(errors) + 1)
    return kept / len(errors), errors / kept


def aurc(confidence: Floats, correct: Labels) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages (Geifman and El-Yaniv); lower is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def augrc(confidence: Floats, correct: Labels) -> float:
    """Area under the generalised risk-coverage curve: errors kept as a share of all answers (arXiv 2407.01032); at best err ** 2 / 2."""
    errors = errors_among(confidence, correct)
    count = len(errors) - 1
    return float((errors[1:] + errors[:-1]).sum() / 2 / count / count)


def prr(confidence: Floats, correct: Labels) -> float:
    """Prediction rejection ratio: share of the way from random to perfect refusal (1 perfect, 0 random); NaN with one class only.

    As in lm-polygraph, over all rejection rates: (area of the score - area of random) / (area of the oracle - area of random).
    """
    error = 1.0 - float(np.mean(correct))
    best = aurc(np.asarray(correct, dtype=float), correct) if 0 < error < 1 else error
    return float("nan") if best == error else (error - aurc(confidence, correct)) / (error - best)

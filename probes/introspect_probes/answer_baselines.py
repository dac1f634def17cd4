"""What confidence is compared with, answer by answer: higher scores for right answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from introspect_probes.claim_probe import budget_features
from introspect_probes.dataset import Table
from introspect_probes.features import LOGITS
from introspect_probes.fitting import fit_by_cache
from introspect_probes.linear import sigmoid
from introspect_probes.training_free import SCORES

Floats = NDArray[np.floating]


def answer_scores(fit: Table, test: Table) -> dict[str, Floats]:
    """Scores of every test answer. What must be fitted is fitted on `fit` and tuned in the same way.

    NaN where a score cannot be had: L+H is fitted on the answers that hold hidden states and scores those that do; agreement
    is of answers that were sampled; some training-free scores need a picture, or words enough.
    """
    kinds = sorted({a.trace.kind for a in fit.answers})
    conditions = sorted({a.trace.condition for a in fit.answers})

    def length(table: Table) -> Floats:
        return np.array([[len(a.tokens)] for a in table.answers], dtype=np.float32)

    def kind(table: Table) -> Floats:
        return np.array([[a.trace.kind == k for k in kinds] for a in table.answers], dtype=np.float32)

    def condition(table: Table) -> Floats:
        return np.array([[a.trace.condition == c for c in conditions] for a in table.answers], dtype=np.float32)

    def logits(table: Table) -> Floats:
        last = np.stack([a.tokens[-1].logits for a in table.answers])
        budget = np.stack([budget_features(a.trace.prompt) for a in table.answers])
        return np.concatenate([last, kind(table), length(table), budget], axis=1)

    def entropy(table: Table) -> Floats:
        return np.stack([a.tokens[-1].logits for a in table.answers])[:, [LOGITS.index("mean_entropy"), LOGITS.index("max_entropy")]]

    def fitted(matrix_of: Callable[[Table], Floats], strengths: Sequence[float] | None = (0.1, 1.0)) -> Floats:
        probe = fit_by_cache(matrix_of(fit), fit.correct, fit.groups, fit.reduced, strengths=strengths)[0]
        return sigmoid(probe.logits(matrix_of(test), test.reduced))

    free = {name: np.array([a.scores[name] for a in test.answers]) for name in SCORES}
    scores = {
        "length": fitted(length),
        "question type": fitted(kind),
        "question type and length": fitted(lambda t: np.concatenate([kind(t), length(t)], 1)),
        "budget and policy": fitted(condition),
        "question and answer text": text_probabilities(_texts(fit), fit.correct, _texts(test)),
        **{e.title: e.sign * free[name] for name, e in SCORES.items() if np.isfinite(free[name]).any()},
        "CES": fitted(entropy),
    }
    scores["agreement of samples"] = test.agreement
    scores["L"] = fitted(logits)
    seen, held = fit.where(fit.has_hidden), test.where(test.has_hidden)
    if len(np.unique(seen.correct)) == 2 and held.answers:
        own, _ = fit_by_cache(np.concatenate([logits(seen), _last_hidden(seen)], 1), seen.correct, seen.groups, seen.reduced)
        scores["L+H"] = np.full(len(test.answers), np.nan)
        scores["L+H"][test.has_hidden] = own.logits(np.concatenate([logits(held), _last_hidden(held)], 1), held.reduced)
    return scores


def _last_hidden(table: Table) -> Floats:
    """Hidden states behind every layer of the query that predicted each answer's last word."""
    return np.stack([a.baselines.hidden[-1] for a in table.answers if a.baselines.hidden is not None])


def _texts(table: Table) -> list[str]:
    return [f"{a.trace.question} | {a.trace.answer}" for a in table.answers]


def text_probabilities(fit: Sequence[str], labels: NDArray[np.int8], test: Sequence[str]) -> Floats:
    """What words alone tell of label 1: tf-idf of words and pairs, logistic regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), tokenizer=str.split, token_pattern=None)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(words.fit_transform(fit), labels)
    return np.asarray(model.predict_proba(words.transform(test))[:, 1], dtype=np.float64)

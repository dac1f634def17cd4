"""A probe set: frozen, versioned, served from arrays and a manifest; nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from introspect.loading import LoadedModel
from introspect.types import PromptInfo
from introspect_kernels import feature_schema_hash
from introspect_probes.domain import Domain
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.features import Shape, TokenFeatures, kind_features
from introspect_probes.grammar import question_form
from introspect_probes.linear import BudgetedPlatt, LinearProbe, sigmoid
from introspect_probes.scoring import Session
from introspect_probes.signals import STRATEGIES, HallucinationRisk, Strategy, StrategyLabel
from introspect_probes.training_free import TrainingFreeScores

EMBEDDED = "embedded"
FORMAT = "introspect-probes/1"
_ARRAYS, _MANIFEST = "probes.safetensors", "manifest.json"


@dataclass(frozen=True)
class ProbeSet:
    """Fitted probes with their calibration; a `Scorer`.

    Attributes:
        manifest: what it was fitted on and what it may score.
        internal: hallucination from attention, logits and kind, fitted with positions and repetitions balanced.
        prior: hallucination from position, repetition, kind and budget.
        risk_calibration: of the sum of both logits.
        any_false_calibration: of the logit of P(any claim false) under independence.
        confidence: answer-level probe.
        confidence_calibration: of its logit.
        strategy: one output for each label of `strategies`.
        strategies: labels in the probe's order.
        strategy_temperature: divides the strategy logits.
        strategy_thresholds: smallest probability with which a label stays in the conformal set, per label.
        domain: what counts as familiar.
    """

    manifest: dict[str, Any]
    internal: LinearProbe
    prior: LinearProbe
    risk_calibration: BudgetedPlatt
    any_false_calibration: BudgetedPlatt
    confidence: LinearProbe
    confidence_calibration: BudgetedPlatt
    strategy: LinearProbe
    strategies: tuple[StrategyLabel, ...]
    strategy_temperature: float
    strategy_thresholds: tuple[float, ...]
    domain: Domain
    mismatch: str | None = None

    @property
    def name(self) -> str:
        """Name and version, such as `embedded-1`."""
        return str(self.manifest["name"])

    @property
    def shape(self) -> Shape:
        """Shape of the model it was fitted for."""
        return Shape(**self.manifest["model"]["shape"])

    def check(self, model: LoadedModel, *, allow_mismatch: bool = False) -> ProbeSet:
        """Make sure that the probe set may score a model.

        Args:
            model: the model that will answer.
            allow_mismatch: for research: score all the same, every output marked. The shape must fit even so.

        Returns:
            The probe set itself, or with `allow_mismatch` one that marks its outputs.

        Raises:
            ProbeMismatchError: it was not fitted for this model.
        """
        fitted = self.manifest["model"]
        shape = {"layers": model.num_layers, "heads": model.num_heads, "kv_heads": model.num_kv_heads}
        if shape != fitted["shape"]:
            raise ProbeMismatchError(f"probe set {self.name!r} was fitted on a model of shape {fitted['shape']}, this one has {shape}")
        if model.fingerprint == fitted["fingerprint"]:
            return self
        reason = (
            f"probe set {self.name!r} was fitted on {fitted['name']!r} ({fitted['fingerprint'][:12]}), "
            f"this is {model.name!r} ({model.fingerprint[:12]})"
        )
        if not allow_mismatch:
            raise ProbeMismatchError(reason + "; fit one for this model, or allow the mismatch for research")
        return ProbeSet(**{**self.__dict__, "mismatch": reason})

    def budget_mismatch(self, prompt: PromptInfo) -> str | None:
        """Why this budget is not one the probe set was fitted for, or `None` if it is."""
        budget = prompt.budget
        if not is_reduced(prompt):
            return None
        ratio = budget.effective / budget.prompt_tokens
        fitted = self.manifest["budgets"]
        if budget.policy not in fitted["policies"]:
            return f"fitted under policies {', '.join(fitted['policies'])}, not {budget.policy}"
        if ratio < fitted["min_ratio"] * 0.8:
            return f"fitted down to {fitted['min_ratio']:.0%} of the prompt kept, this answer keeps {ratio:.0%}"
        return None

    def session(self, prompt: PromptInfo) -> Session:
        """Begin to score the answer to `prompt`.

        Where the budget is none that the probe set was fitted for, only training-free scores are given, and the note says why.
        """
        from introspect_probes.session import ProbeSession

        reason = self.budget_mismatch(prompt)
        if reason is not None and self.mismatch is None:
            return TrainingFreeScores(prompt, note=f"probe set {self.name} does not cover this budget: {reason}")
        return ProbeSession(self, prompt, question_form(prompt.question))

    def risk(self, features: TokenFeatures, kind: str, prompt: PromptInfo) -> HallucinationRisk:
        """Risk of the claim of `kind` that a token decides."""
        internal = float(self.internal.logits(internal_features(features, kind))[0])
        prior = float(self.prior.logits(prior_features(features, kind, prompt))[0])
        return HallucinationRisk(
            risk=float(self.risk_calibration(internal + prior, is_reduced(prompt))),
            internal=float(sigmoid(internal)),
            prior=float(sigmoid(prior)),
            kind="claim",
        )

    def strategy_of(self, features: TokenFeatures) -> Strategy:
        """What the model leaned on at a token."""
        logits = self.strategy.logits(features.heads) / self.strategy_temperature
        weights = np.exp(logits - logits.max())
        return self.strategy_from(weights / weights.sum())

    def strategy_from(self, probabilities: NDArray[np.floating]) -> Strategy:
        """The state and its conformal set from probabilities in the order of `strategies`."""
        order = np.argsort(-probabilities)
        kept = tuple(self.strategies[i] for i in order if probabilities[i] >= self.strategy_thresholds[i])
        by_label = {label: float(p) for label, p in zip(self.strategies, probabilities, strict=True)}
        return Strategy(self.strategies[order[0]], {s: by_label[s] for s in STRATEGIES if s in by_label}, kept)

    def save(self, folder: Path) -> None:
        """Write arrays and manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[np.generic]] = dict(self.domain.arrays())
        for name in ("internal", "prior", "confidence", "strategy"):
            arrays |= getattr(self, name).arrays(name)
        save_file(arrays, folder / _ARRAYS)
        fitted = {
            "risk_calibration": self.risk_calibration.as_dict(),
            "any_false_calibration": self.any_false_calibration.as_dict(),
            "confidence_calibration": self.confidence_calibration.as_dict(),
            "strategies": list(self.strategies),
            "strategy_temperature": self.strategy_temperature,
            "strategy_thresholds": list(self.strategy_thresholds),
        }
        (folder / _MANIFEST).write_text(json.dumps({**self.manifest, "fitted": fitted}, indent=1) + "\n", encoding="utf-8")


def load_probe_set(path_or_name: str | Path = EMBEDDED) -> ProbeSet:
    """Load a probe set from a folder, or the embedded model's by the name `embedded`.

    Raises:
        ProbesError: there is none, or it is of another format.
        ProbeMismatchError: it was fitted under another feature schema.
    """
    folder = Path(str(files("introspect_probes") / "embedded" / "probes")) if path_or_name == EMBEDDED else Path(path_or_name)
    if not (folder / _MANIFEST).is_file() or not (folder / _ARRAYS).is_file():
        raise ProbesError(f"{path_or_name} holds no probe set ({_MANIFEST} and {_ARRAYS}); make one with `introspect train`")
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise ProbesError(f"{path_or_name} is of format {manifest.get('format')!r}, this version reads {FORMAT!r}")
    if manifest["feature_schema"] != feature_schema_hash():
        raise ProbeMismatchError(
            f"{path_or_name} was fitted under feature schema {manifest['feature_schema']}, the engine measures {feature_schema_hash()}"
        )
    try:
        return _assembled(manifest, load_file(folder / _ARRAYS))
    except (KeyError, TypeError) as problem:
        raise ProbesError(
            f"{path_or_name} is not a whole probe set: {problem!r} is missing; make it again with `introspect train`"
        ) from problem


def _assembled(manifest: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ProbeSet:
    """The probe set of a manifest and its arrays."""
    fitted = manifest["fitted"]
    return ProbeSet(
        manifest={key: value for key, value in manifest.items() if key != "fitted"},
        internal=LinearProbe.from_arrays("internal", arrays),
        prior=LinearProbe.from_arrays("prior", arrays),
        risk_calibration=BudgetedPlatt.from_dict(fitted["risk_calibration"]),
        any_false_calibration=BudgetedPlatt.from_dict(fitted["any_false_calibration"]),
        confidence=LinearProbe.from_arrays("confidence", arrays),
        confidence_calibration=BudgetedPlatt.from_dict(fitted["confidence_calibration"]),
        strategy=LinearProbe.from_arrays("strategy", arrays),
        strategies=tuple(fitted["strategies"]),
        strategy_temperature=fitted["strategy_temperature"],
        strategy_thresholds=tuple(fitted["strategy_thresholds"]),
        domain=Domain.from_arrays(arrays),
    )


def internal_features(features: TokenFeatures, kind: str) -> NDArray[np.float32]:
    """What the internal hallucination probe reads."""
    return np.concatenate([features.heads, features.logits, kind_features(kind)])


def is_reduced(prompt: PromptInfo) -> bool:
    """Whether anything of the prompt's cache was dropped."""
    return prompt.budget.effective < prompt.budget.prompt_tokens


def budget_features(prompt: PromptInfo) -> NDArray[np.float32]:
    """Kept share of the prompt, and whether anything was dropped."""
    ratio = prompt.budget.effective / prompt.budget.prompt_tokens
    return np.array([ratio, is_reduced(prompt)], dtype=np.float32)


def prior_features(features: TokenFeatures, kind: str, prompt: PromptInfo) -> NDArray[np.float32]:
    """What the prior reads: place, kind, and how much the budget kept."""
    return np.concatenate([features.place, kind_features(kind), budget_features(prompt)])


def answer_features(tokens: list[TokenFeatures], risks: list[float], kinds: list[str], prompt: PromptInfo) -> NDArray[np.float32]:
    """What the confidence probe reads of an answer so far.

    Means of the heads' statistics and last value of the logits' over its tokens, its claims' risks
    summed up (largest, mean, log-probability that all are true, count), the kinds of its claims, its length and budget.
    """
    heads = np.mean([t.heads for t in tokens], axis=0)
    clipped = np.clip(risks, 1e-4, 1 - 1e-4) if risks else np.zeros(0)
    all_true = float(np.log1p(-clipped).sum())
    summary = [
        max(risks, default=0.0),
        float(np.mean(risks)) if risks else 0.0,
        all_true,
        np.log(-np.expm1(min(all_true, -1e-6))),
        len(risks),
    ]
    counts = np.sum([kind_features(k) for k in kinds], axis=0) if kinds else kind_features("")
    return np.concatenate(
        [heads, tokens[-1].logits, np.log1p(counts), np.array([*summary, np.log1p(len(tokens))]), budget_features(prompt)]
    ).astype(np.float32)

"""A probe set: frozen, versioned, served from arrays and a manifest; nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from introspect.loading import LoadedModel
from introspect.types import PromptInfo
from introspect_kernels import feature_schema_hash
from introspect_probes.claim_probe import ClaimProbe, budget_features, is_reduced
from introspect_probes.domain import Domain
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.features import Shape, TokenFeatures, kind_features
from introspect_probes.grammar import claim_finder
from introspect_probes.guarantee import Guarantee
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, LinearProbe
from introspect_probes.reference import Reference
from introspect_probes.scoring import Session
from introspect_probes.strategy_probe import StrategyProbe
from introspect_probes.training_free import TrainingFreeScores

if TYPE_CHECKING:
    from introspect_probes.narrow import NarrowProbes

EMBEDDED = "embedded"
FORMAT, READ = "introspect-probes/2", ("introspect-probes/1", "introspect-probes/2")
"""What is written, and what is read: the first had one probe for whole and reduced caches."""
_ARRAYS, _MANIFEST = "probes.safetensors", "manifest.json"


@dataclass(frozen=True)
class ProbeSet:
    """Fitted probes with their calibration; a `Scorer`. What could not be fitted is `None`, and its signal absent.

    Attributes:
        manifest: what it was fitted on and what it may score.
        confidence: answer-level probe.
        confidence_calibration: of its logit.
        claims: hallucination risk, where claims were labelled.
        strategy: strategy state, where causes were measured.
        domain: what counts as familiar, where prompts from outside were recorded.
        guarantee: the threshold over which answers are guaranteed, where one was asked for and found.
        reference: what is watched for drift, on the answers that it was calibrated on; sets made before there was one have none.
    """

    manifest: dict[str, Any]
    confidence: BudgetedProbe
    confidence_calibration: BudgetedPlatt
    claims: ClaimProbe | None = None
    strategy: StrategyProbe | None = None
    domain: Domain | None = None
    guarantee: Guarantee | None = None
    reference: Reference | None = None
    mismatch: str | None = None

    @property
    def name(self) -> str:
        """Name and version, such as `embedded-4`."""
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
        return replace(self, mismatch=reason)

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

    def narrow(self, *, is_reduced: bool) -> NarrowProbes:
        """What a session reads: tables of what `confidence`, `claims` and `strategy` have a weight for, under that kind of cache."""
        return self._narrow[is_reduced]

    @cached_property
    def _narrow(self) -> tuple[NarrowProbes, NarrowProbes]:
        from introspect_probes.narrow import NarrowProbes

        return NarrowProbes(self, is_reduced=False), NarrowProbes(self, is_reduced=True)

    def prepare(self) -> None:
        """Make what the first answer would wait for: tables, and compiled code, which is kept on disk from the first time on."""
        from introspect_probes import compiled, compiled_scores

        compiled.compiled()
        compiled_scores.compiled()
        _ = self._narrow

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> Session:
        """Begin to score the answer to `prompt`.

        With `provisional` each word is scored twice: at once, and for good when the row that reads it is here. Without, once.
        Where the budget is none that the probe set was fitted for, only training-free scores are given, and the note says why.
        """
        from introspect_probes.session import ProbeSession

        reason = self.budget_mismatch(prompt)
        if reason is not None and self.mismatch is None:
            return TrainingFreeScores(prompt, note=f"probe set {self.name} does not cover this budget: {reason}")
        return ProbeSession(self, prompt, claim_finder(self.manifest["grammar"], prompt.question), provisional=provisional)

    def in_domain(self, prompt: PromptInfo) -> float | None:
        """P(the prompt is of the kind that was fitted on), where that can be told."""
        return None if self.domain is None else self.domain.probability(prompt)

    def save(self, folder: Path) -> None:
        """Write arrays and manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = dict(self.confidence.arrays("confidence"))
        fitted: dict[str, Any] = {"confidence_calibration": self.confidence_calibration.as_dict()}
        if self.claims is not None:
            arrays |= {**self.claims.internal.arrays("internal"), **self.claims.prior.arrays("prior")}
            fitted["risk_calibration"] = self.claims.calibration.as_dict()
            fitted["any_false_calibration"] = self.claims.any_false_calibration.as_dict()
        if self.strategy is not None:
            arrays |= self.strategy.probe.arrays("strategy")
            fitted["strategies"] = list(self.strategy.states)
            fitted["strategy_temperature"] = self.strategy.temperature
            fitted["strategy_thresholds"] = list(self.strategy.thresholds)
        if self.domain is not None:
            arrays |= self.domain.arrays()
        if self.guarantee is not None:
            fitted["guarantee"] = self.guarantee.as_dict()
        if self.reference is not None:
            arrays |= self.reference.arrays()
            fitted["reference"] = list(self.reference.streams)
        save_file(arrays, folder / _ARRAYS)
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
    if manifest.get("format") not in READ:
        raise ProbesError(f"{path_or_name} is of format {manifest.get('format')!r}, this version reads {' and '.join(READ)}")
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
    """The probe set of a manifest and its arrays; a manifest without `absent` holds every signal."""
    fitted, absent = manifest["fitted"], manifest.get("absent", {})
    return ProbeSet(
        manifest={key: value for key, value in manifest.items() if key != "fitted"},
        confidence=BudgetedProbe.from_arrays("confidence", arrays),
        confidence_calibration=BudgetedPlatt.from_dict(fitted["confidence_calibration"]),
        claims=None if "hallucination_risk" in absent else _claim_probe(fitted, arrays),
        strategy=None if "strategy" in absent else _strategy_probe(fitted, arrays),
        domain=None if "in_domain" in absent else Domain.from_arrays(arrays),
        guarantee=Guarantee(**fitted["guarantee"]) if "guarantee" in fitted else None,
        reference=Reference.from_arrays(tuple(fitted["reference"]), arrays) if "reference" in fitted else None,
    )


def _claim_probe(fitted: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ClaimProbe:
    return ClaimProbe(
        internal=BudgetedProbe.from_arrays("internal", arrays),
        prior=BudgetedProbe.from_arrays("prior", arrays),
        calibration=BudgetedPlatt.from_dict(fitted["risk_calibration"]),
        any_false_calibration=BudgetedPlatt.from_dict(fitted["any_false_calibration"]),
    )


def _strategy_probe(fitted: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> StrategyProbe:
    return StrategyProbe(
        probe=LinearProbe.from_arrays("strategy", arrays),
        states=tuple(fitted["strategies"]),
        temperature=fitted["strategy_temperature"],
        thresholds=tuple(fitted["strategy_thresholds"]),
    )


def answer_features(tokens: list[TokenFeatures], risks: list[float], kinds: list[str], prompt: PromptInfo) -> NDArray[np.float32]:
    """What the confidence probe reads of an answer so far: means of the heads' statistics over its tokens, and `answer_tail`."""
    heads = np.mean([t.heads for t in tokens], axis=0)
    return np.concatenate([heads, answer_tail(tokens[-1].logits, len(tokens), risks, kinds, prompt)]).astype(np.float32)


def answer_tail(last: NDArray[np.floating], length: int, risks: list[float], kinds: list[str], prompt: PromptInfo) -> NDArray[np.float32]:
    """What the confidence probe reads beside the heads' statistics.

    Last value of the logits' statistics, the kinds of the answer's claims, their risks summed up (largest, mean,
    log-probability that all are true, its complement's logit, count), its length and budget.
    """
    clipped = np.clip(risks, 1e-4, 1 - 1e-4) if risks else np.zeros(0)
    mean = float(np.mean(risks)) if risks else 0.0
    summary = np.array([[max(risks, default=0.0), mean, float(np.log1p(-clipped).sum()), len(risks), length]])
    counts = np.sum([kind_features(k) for k in kinds], axis=0) if kinds else kind_features("")
    tails: NDArray[np.float32] = answer_tails(np.asarray(last)[None], summary, counts[None], budget_features(prompt)[None])
    return np.asarray(tails[0])


def answer_tails(
    last: NDArray[np.floating], summary: NDArray[np.floating], counts: NDArray[np.floating], budget: NDArray[np.floating]
) -> NDArray[np.float32]:
    """`answer_tail` of several answers.

    Args:
        last: logit features of each one's last token, `[batch, logits]`.
        summary: largest and mean risk of its claims, sum of ln(1 - risk), number of claims, number of tokens, `[batch, 5]`.
        counts: its claims by kind, `[batch, kinds]`.
        budget: `claim_probe.budget_features`, `[batch, 2]`.
    """
    largest, mean, all_true, claims, length = summary.T
    any_false = np.log(-np.expm1(np.minimum(all_true, -1e-6)))
    columns = np.stack([largest, mean, all_true, any_false, claims, np.log1p(length)], axis=1)
    return np.concatenate([last, np.log1p(counts), columns, budget], axis=1).astype(np.float32)

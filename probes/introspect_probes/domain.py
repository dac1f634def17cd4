"""Is this prompt of the kind that the probe set was fitted on?

Two measures of novelty, neither of which looks at the answer: the distance of
the picture's mean embedding from those of the fit (Mahalanobis), and the share
of the question's tokens and token pairs that the fit never met. A logistic
regression turns them into P(in domain); outside it no answer counts as right,
so confidence is multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect.types import PromptInfo
from introspect_kernels import Segment
from introspect_probes.linear import LinearProbe, sigmoid

NOVELTY = ("picture_distance", "has_picture", "new_tokens", "new_pairs", "length")
_TEXT = (int(Segment.QUESTION), int(Segment.CONTEXT))


def text_tokens(prompt: PromptInfo) -> list[int]:
    """The tokens of question and context, in order."""
    question, context = _TEXT
    found: list[int] = prompt.token_ids[(prompt.segments == question) | (prompt.segments == context)].tolist()
    return found


@dataclass(frozen=True)
class Domain:
    """What was met in the fit, and the novelty probe.

    Attributes:
        center: `[hidden]`, mean picture embedding of the fit.
        whitening: `[hidden, hidden]`, maps differences to unit covariance.
        tokens: sorted token ids met in questions and contexts.
        pairs: sorted `first * 2**32 + second` of neighbouring tokens met there.
        probe: logit of P(in domain) from the novelty features.
    """

    center: NDArray[np.float32]
    whitening: NDArray[np.float32]
    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]
    probe: LinearProbe

    def novelty(self, prompt: PromptInfo) -> NDArray[np.float32]:
        """The features of `NOVELTY`."""
        return novelty_features(prompt, self.center, self.whitening, self.tokens, self.pairs)

    def probability(self, prompt: PromptInfo) -> float:
        """P(the prompt is in domain)."""
        return float(sigmoid(self.probe.logits(self.novelty(prompt)))[0])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays under `domain/`."""
        own = {f"domain/{key}": np.ascontiguousarray(getattr(self, key)) for key in ("center", "whitening", "tokens", "pairs")}
        return {**own, **self.probe.arrays("domain/probe")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Domain:
        """What `arrays()` gave."""
        own = {key: arrays[f"domain/{key}"] for key in ("center", "whitening", "tokens", "pairs")}
        return cls(**own, probe=LinearProbe.from_arrays("domain/probe", arrays))  # type: ignore[arg-type]


def pair_codes(tokens: list[int]) -> NDArray[np.int64]:
    """One number for each pair of neighbouring tokens."""
    ids = np.array(tokens, dtype=np.int64)
    return ids[:-1] * 2**32 + ids[1:] if len(ids) > 1 else np.zeros(0, dtype=np.int64)


def novelty_features(
    prompt: PromptInfo,
    center: NDArray[np.float32],
    whitening: NDArray[np.float32],
    known_tokens: NDArray[np.int64],
    known_pairs: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The features of `NOVELTY` for one prompt; distance is the root mean square in units of the fit's own spread."""
    distance = 1.0
    if prompt.image_embedding is not None:
        distance = float(np.sqrt(np.mean((whitening @ (prompt.image_embedding - center)) ** 2)))
    tokens = text_tokens(prompt)
    new_tokens = _share_of_new(np.array(tokens, dtype=np.int64), known_tokens)
    new_pairs = _share_of_new(pair_codes(tokens), known_pairs)
    has_picture = float(prompt.image_embedding is not None)
    return np.array([np.log(max(distance, 1e-3)), has_picture, new_tokens, new_pairs, np.log1p(len(tokens))], dtype=np.float32)


def _share_of_new(values: NDArray[np.int64], known: NDArray[np.int64]) -> float:
    """Share that is not in the sorted `known`; 1 of nothing."""
    if not len(values):
        return 1.0
    met = np.searchsorted(known, values, "right") > np.searchsorted(known, values, "left")
    return 1.0 - float(met.mean())

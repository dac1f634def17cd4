"""Is this prompt of the kind that the probe set was fitted on?

Two measures of novelty, neither of which looks at the answer: the distance of
the picture's mean embedding from those of the fit (Mahalanobis), and the share
of the question's tokens and token pairs that the fit never met. A logistic
regression turns them into P(in domain); outside it no answer counts as right,
so confidence is multiplied by it. Two kinds of prompts are outside whatever the
regression says, which met none of them: without a picture, and most token pairs
met in prompts with one only (a question about what is not there); and with at
least twice as many image tokens as any prompt of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.types import PromptInfo
from introspect_kernels import Segment
from introspect_probes.linear import LinearProbe, sigmoid

NOVELTY = ("picture_distance", "has_picture", "new_tokens", "new_pairs", "length")
_MOST_NEW = 0.5
"""Share of token pairs over which a prompt without a picture is a question about one."""

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
        bare_pairs: those of prompts without a picture; absent, as the next is, in sets that were fitted before it was kept.
        image_tokens: most image tokens of a prompt of the fit.
    """

    center: NDArray[np.float32]
    whitening: NDArray[np.float32]
    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]
    probe: LinearProbe
    bare_pairs: NDArray[np.int64] | None = None
    image_tokens: int | None = None

    def novelty(self, prompt: PromptInfo) -> NDArray[np.float32]:
        """The features of `NOVELTY`."""
        return novelty_features(prompt, self.center, self.whitening, self.tokens, self.pairs)

    def probability(self, prompt: PromptInfo) -> float:
        """P(the prompt is in domain)."""
        if self._is_outside(prompt):
            return 0.0
        return float(sigmoid(self.probe.logits(self.novelty(prompt)))[0])

    def _is_outside(self, prompt: PromptInfo) -> bool:
        if self.image_tokens and image_tokens(prompt) >= 2 * self.image_tokens:
            return True
        if self.bare_pairs is None or prompt.image_embedding is not None:
            return False
        return _share_of_new(pair_codes(text_tokens(prompt)), self.bare_pairs) > _MOST_NEW

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays under `domain/`."""
        own = {f"domain/{key}": np.ascontiguousarray(getattr(self, key)) for key in ("center", "whitening", "tokens", "pairs")}
        if self.bare_pairs is not None:
            own["domain/bare_pairs"] = self.bare_pairs
        if self.image_tokens is not None:
            own["domain/image_tokens"] = np.array(self.image_tokens)
        return {**own, **self.probe.arrays("domain/probe")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Domain:
        """What `arrays()` gave."""
        own: dict[str, Any] = {key: arrays[f"domain/{key}"] for key in ("center", "whitening", "tokens", "pairs")}
        if "domain/image_tokens" in arrays:
            own |= {"bare_pairs": arrays["domain/bare_pairs"], "image_tokens": int(arrays["domain/image_tokens"])}
        return cls(**own, probe=LinearProbe.from_arrays("domain/probe", arrays))  # type: ignore[arg-type]


def image_tokens(prompt: PromptInfo) -> int:
    """How many tokens of the prompt stand for pictures."""
    return int((prompt.segments == int(Segment.IMAGE)).sum())


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

"""What baselines read of an answer beside its features, taken when the answer is read, so that its trace need not be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from introspect_probes.token_store import StoredRows, TokenStore
from introspect_probes.traces import Trace
from introspect_probes.training_free import SCORES, Words

ONE_WORD = (
    "visual_attention_score", "svar", "lookback_ratio", "prelim_attention_score", "attention_score", "waad",
    "retrieval_share", "image_output_share", "head_consensus", "attention_entropy",
)  # fmt: skip
"""Training-free scores that mean something of a single word; RAUQ, which runs over an answer, does not."""


@dataclass(frozen=True)
class BaselineRows:
    """An answer's words, and a row for each of its claims.

    Attributes:
        words: text of every token.
        place: the row of each token that decides a claim.
        scores: training-free scores of these words alone, `[rows, ONE_WORD]`.
        hidden: fp32 `[rows + 1, layers * width]`, hidden states behind every layer of the queries that predicted these words and, in
            the last row, the answer's last word; `None` where the trace holds none.
    """

    words: tuple[str, ...]
    place: dict[int, int]
    scores: NDArray[np.float64]
    hidden: NDArray[np.float32] | StoredRows | None

    def text(self, token: int) -> str:
        """The answer up to a token, that one included."""
        return "".join(self.words[: token + 1])


def baseline_rows(trace: Trace, claims: Sequence[int], length: int, store: TokenStore | None) -> BaselineRows:
    """The rows of a trace.

    Args:
        trace: with its steps, and hidden states where they were kept.
        claims: tokens that decide its claims.
        length: words of the answer.
        store: where hidden states go; without one they stay in memory.
    """
    tokens = list(dict.fromkeys(claims))
    hidden: NDArray[np.float32] | StoredRows | None = None
    if trace.hidden is not None:
        states = trace.hidden[[*tokens, length - 1]]
        hidden = states.reshape(len(states), -1).astype(np.float32)
        if store is not None:
            hidden = store.keep_rows(hidden)
    words = tuple(step.text for step in trace.steps)
    scores = np.array([_word_scores(trace, token) for token in tokens], dtype=np.float64).reshape(len(tokens), len(ONE_WORD))
    return BaselineRows(words, {token: row for row, token in enumerate(tokens)}, scores, hidden)


def _word_scores(trace: Trace, token: int) -> list[float]:
    own, following = trace.steps[token : token + 2]
    word = Words([own, replace(following, logits=None)])
    return [SCORES[name](word) for name in ONE_WORD]

"""Tokens as a client reads them: text and bytes of chosen tokens, and of those that might have been chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from introspect.types import StepTrace
from introspect_service.responses import TokenLogprob, TopLogprob
from introspect_service.signals import rounded

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTEXT = 4
_LOWEST = -9999.0


class Pieces:
    r"""Writes the tokens of one answer; call `add` with its steps in order.

    The bytes of an answer's tokens joined are the answer, and so are their texts,
    but that a token which only begins a character reads `bytes:\xe2`, as OpenAI has it.

    Args:
        tokenizer: the model's.
        top: how many candidates to list for each token.
    """

    def __init__(self, tokenizer: Any, top: int) -> None:
        self._tokenizer, self._top = tokenizer, top
        self._ids: list[int] = []

    def add(self, step: StepTrace) -> TokenLogprob:
        """The next token, without its signals."""
        byte = self._byte(step.token_id)
        raw = [byte] if byte is not None else list(step.text.encode())
        token = f"bytes:\\x{byte:02x}" if byte is not None and not step.text else step.text
        logits = step.logits
        top: list[TopLogprob] = []
        if logits is not None:
            before = self._ids[-_CONTEXT:]
            candidates = zip(logits.top_ids[: self._top], logits.top_logprobs, strict=False)
            top = [self._candidate(before, id_, value, (token, raw) if id_ == step.token_id else None) for id_, value in candidates]
        self._ids.append(step.token_id)
        return TokenLogprob(token=token, logprob=_in_range(logits.logprob if logits else _LOWEST), bytes=raw, top_logprobs=top)

    def _candidate(self, before: Sequence[int], token_id: int, logprob: float, written: tuple[str, list[int]] | None) -> TopLogprob:
        token, raw = written or self._write(before, token_id)
        return TopLogprob(token=token, logprob=_in_range(logprob), bytes=raw)

    def _write(self, before: Sequence[int], token_id: int) -> tuple[str, list[int]]:
        byte = self._byte(token_id)
        if byte is not None:
            return f"bytes:\\x{byte:02x}", [byte]
        # Decoded behind what stands before it: a first token has no leading space, a later one has.
        text = self._decode([*before, token_id])[len(self._decode(before)) :]
        return text, list(text.encode())

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _byte(self, token_id: int) -> int | None:
        found = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token_id)))
        return int(found[1], 16) if found else None


def _in_range(logprob: float) -> float:
    found = rounded(logprob)
    return _LOWEST if found is None else max(found, _LOWEST)

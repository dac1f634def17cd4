"""Tokens to text while they come: what decoding all of them says, from the last few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

_BY_TOKEN = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
_JOINING = {"ByteLevel", "Fuse"}
_UNFINISHED = "\ufffd"
_EVERY = 8


@dataclass(frozen=True)
class _Joints:
    """Where what comes can be decoded by itself.

    Attributes:
        tokens: not after these: control tokens and single bytes.
        letters: not where the text ends in one of these: what the decoder replaces once all tokens are one string.
    """

    tokens: frozenset[int]
    letters: frozenset[str]


class Detokenizer:
    """The text of a growing list of tokens, control tokens left out.

    Decoding is joined where both sides are independent of each other: no character
    is unfinished, and the side that comes is decoded behind a few tokens of the one
    before, since a first token may lose its space. Where a tokenizer's way of
    decoding gives no such places, everything is decoded each time.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._joints = tokenizer, _joints_of(tokenizer)
        self._context = self._joint = 0
        self._before, self._skip = "", 0

    def __call__(self, tokens: Sequence[int]) -> str:
        """What `tokens` say, which begin with those of the last call."""
        text = self._before + self._decode(tokens[self._context :])[self._skip :]
        if self._joints is not None and len(tokens) >= self._joint + _EVERY and tokens[-1] not in self._joints.tokens:
            context = self._decode(tokens[self._joint :])
            if context and text[-1] not in self._joints.letters:
                self._context, self._joint, self._before, self._skip = self._joint, len(tokens), text, len(context)
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


_KNOWN: WeakKeyDictionary[Any, tuple[_Joints | None]] = WeakKeyDictionary()


def _joints_of(tokenizer: Any) -> _Joints | None:
    if tokenizer not in _KNOWN:
        _KNOWN[tokenizer] = (_find_joints(tokenizer),)
    return _KNOWN[tokenizer][0]


def _find_joints(tokenizer: Any) -> _Joints | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    letters = _letters(decoder.get("decoders", [decoder]))
    if letters is None:
        return None
    control = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    single = {number for token, number in backend.get_vocab().items() if len(token) == 6 and token.startswith("<0x")}
    return _Joints(frozenset(control | single | set(tokenizer.all_special_ids)), letters)


def _letters(parts: Sequence[dict[str, Any]]) -> frozenset[str] | None:
    """What a joint must not stand behind; `None` for a decoder that looks further than a token's end.

    Before the tokens are joined each is decoded by itself, but for runs of bytes and the first one's space. Afterwards
    a replaced string may reach over a joint, but not over a letter that no such string has and none is replaced by.
    """
    kinds = [part["type"] for part in parts]
    joined = min((number for number, kind in enumerate(kinds) if kind in _JOINING), default=len(kinds))
    found = {_UNFINISHED}
    for part in parts[joined + 1 :]:
        literal = part.get("pattern", {}).get("String")
        if part["type"] == "Replace" and literal and part["content"]:
            found |= {*literal, *part["content"]}
        elif part["type"] != "Strip" or part["start"] > 1 or part["stop"]:
            return None
    return frozenset(found) if set(kinds) <= _BY_TOKEN else None

"""Text that grows token by token is what decoding all tokens says, at every token, at a cost that does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import EOS, PAD, UNK, build_tiny_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from introspect.detokenizing import Detokenizer
from introspect_probes.embedded.tokenizer import build_tokenizer

PIECES = ("▁", "▁a", "b", "▁the", "ing", ",", "▁,", ".", "'", "s", "▁n", "'t", "▁▁", "é", "水")
SPACED = decoders.Replace("▁", " ")


def pieces(decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    """A vocabulary as SentencePiece makes them: pieces with spaces in front, all bytes, control tokens."""
    vocabulary = {token: number for number, token in enumerate((PAD, EOS, UNK))}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {piece: len(vocabulary) + number for number, piece in enumerate(PIECES)}
    model = WordLevel(vocabulary, unk_token=UNK) if options else BPE(vocab=vocabulary, merges=[], unk_token=UNK, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, **options)


BUILD = {
    "bytes": build_tiny_tokenizer,
    "llama": lambda: pieces(decoders.Sequence([SPACED, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
    "gemma": lambda: pieces(decoders.Sequence([SPACED, decoders.ByteFallback(), decoders.Fuse()])),
    "metaspace": lambda: pieces(decoders.Metaspace()),
    "embedded": build_tokenizer,
    "word pieces": lambda: pieces(decoders.WordPiece()),
    "cleaned up": lambda: pieces(decoders.Metaspace(), clean_up_tokenization_spaces=True),
    "cut short": lambda: pieces(decoders.Sequence([SPACED, decoders.Fuse(), decoders.Replace("the", "")])),
}
WHOLE = ("word pieces", "cleaned up", "cut short")
"""Tokenizers whose text may change behind what was said: nothing but decoding everything is exact."""


@cache
def built(name: str) -> Any:
    return BUILD[name]()


@st.composite
def answers(draw: st.DrawFn, name: str) -> list[int]:
    """Any tokens at all; characters in whole and in pieces; words, many in a row."""
    tokenizer = built(name)
    some = st.integers(0, len(tokenizer) - 1)
    short = st.text("aé水😀 ,.'\n", max_size=12)
    parts = draw(st.lists(st.one_of(some.map(lambda token: [token]), short.map(lambda text: tokenizer(text).input_ids)), max_size=40))
    return [token for part in parts for token in part]


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_at_every_token_the_text_is_what_all_tokens_say(name: str, data: st.DataObject) -> None:
    tokens, growing = data.draw(answers(name)), Detokenizer(built(name))
    for end in range(1, len(tokens) + 1):
        assert growing(tokens[:end]) == built(name).decode(tokens[:end], skip_special_tokens=True)


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.decoded = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        self.decoded += len(tokens)
        text: str = self.inner.decode(tokens, **options)
        return text


@pytest.mark.parametrize("name", BUILD)
def test_a_long_answer_costs_its_length(name: str) -> None:
    tokenizer = Counting(built(name))
    growing, word = Detokenizer(tokenizer), built(name)("b a").input_ids
    tokens = (word * 600)[:600]
    for end in range(1, 601):
        growing(tokens[:end])
    assert (tokenizer.decoded < 20 * 600) is (name not in WHOLE)

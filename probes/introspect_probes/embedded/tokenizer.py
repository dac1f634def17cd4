"""The embedded model's tokenizer: one token a word of the world, syllables for names, bytes for the rest.

A Unigram model with hand-given pieces: every word of the world's questions and
answers is one token, made-up names fall into syllables, other Latin words into
syllables and letters, and anything else into bytes. Nothing is dropped, so a
word the model never learned still reaches it, and can be counted.
"""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from introspect_probes.worlds.facts import RELATIONS, syllables
from introspect_probes.worlds.scene import COLOR_NAMES, PHOTOGRAPHERS

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
USER, ASSISTANT, SYSTEM, IMAGE = "<|user|>", "<|assistant|>", "<|system|>", "<image>"
SPECIAL = (PAD, BOS, EOS, UNK, USER, ASSISTANT, SYSTEM, IMAGE)
MAX_NUMBER = 99

_FRAME_WORDS = tuple(
    (
        "a above add all an and answer are at below by color column describe digit digits do does empty every everything find give has "
        "have hidden how i image in is it list live lives many me no none not nothing nowhere number numbers of only pet photo picture "
        "plus please question read right row see show sum tell that the there this to up was what where which who yes you drink drinks "
    ).split()
)
_PUNCTUATION = tuple(".,:;?!'\"()-+=/%")
_WORD, _SYLLABLE, _LETTER = -2.0, -8.0, -14.0

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def world_words() -> list[str]:
    """Every word that the world's questions, notes and answers can hold, sorted."""
    words = {*_FRAME_WORDS, *_PUNCTUATION, *COLOR_NAMES, *PHOTOGRAPHERS, *(str(n) for n in range(MAX_NUMBER + 1))}
    for relation in RELATIONS:
        words |= set(relation.values)
        words |= {w for w in (relation.question + " " + relation.statement).split() if "{" not in w}
    return sorted(words)


def token_ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    """The ids of tokens."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


def build_tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Build the tokenizer; the same one every time, but for the names that a family's processor looks its tokens up by."""
    pieces: dict[str, float] = dict.fromkeys(SPECIAL, 0.0)
    pieces |= {f"▁{word}": _WORD for word in world_words()}
    for syllable in syllables():
        pieces.setdefault(f"▁{syllable}", _SYLLABLE)
        pieces.setdefault(syllable, _SYLLABLE)
    for letter in ("▁", *string.ascii_lowercase, *string.digits):
        pieces.setdefault(letter, _LETTER)
    pieces |= {f"<0x{byte:02X}>": -20.0 for byte in range(256)}
    tokenizer = Tokenizer(Unigram(list(pieces.items()), unk_id=SPECIAL.index(UNK), byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Split(Regex(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)"), "isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("▁", " "),
            decoders.Replace(" ,", ","),
            decoders.Replace(" .", "."),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM, IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        **named,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

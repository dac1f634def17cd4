"""A tokenizer of single bytes, with the control tokens that the families' processors ask for."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"
FIRST_BYTE, IMAGE, VIDEO, VISION_START, VISION_END, SEPARATOR = 10, 300, 301, 302, 303, 304
MERGED_NEWLINES = 266
VOCAB = 400

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Pictures and texts in the order in which they come; `PICTURE` is what each family's template writes for one."""


def build_tiny_tokenizer(
    placeholder: str = "<image>", *, soft_image: str | None = None, picture: str | None = None
) -> PreTrainedTokenizerFast:
    """Bytes from id 10 on, control tokens at the ids that the tiny models are configured with.

    Two newlines in a row are one token, so that text which a processor puts beside a picture can merge with the prompt's own.

    Args:
        placeholder: the token that stands for a picture until the processor expands it.
        soft_image: the image token, where it is another one than the placeholder (Gemma 3).
        picture: what the chat template writes for a picture, where that is more than the placeholder.
    """
    vocabulary = {token: number for number, token in enumerate((PAD, BOS, EOS, UNK, USER, ASSISTANT))}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= {letter: FIRST_BYTE + number for number, letter in enumerate(alphabet)}
    newline = "\u010a"  # how byte-level models write it
    vocabulary[newline * 2] = MERGED_NEWLINES
    start, image = (placeholder, soft_image) if soft_image else ("<start>", placeholder)
    control = {image: IMAGE, "<video>": VIDEO, start: VISION_START, "<end>": VISION_END, "<fake_token_around_image>": SEPARATOR}
    control |= {"<global-img>": 305, "<end_of_utterance>": 306}
    control |= {f"<row_{i + 1}_col_{j + 1}>": 310 + 6 * i + j for i in range(6) for j in range(6)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary | control, merges=[(newline, newline)], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    extra = {"image_token": image, "context_image_token": image, "video_token": "<video>"}
    extra |= {"start_image_token": start, "end_image_token": "<end>", "boi_token": start, "eoi_token": "<end>"}
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, extra_special_tokens=extra
    )
    built.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, *control]}, replace_extra_special_tokens=False)
    built.chat_template = TEMPLATE.replace("PICTURE", picture or placeholder)
    return built

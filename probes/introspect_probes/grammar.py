"""Where an answer makes claims, told from question and answer alone, without knowing the truth.

A probe set names the grammar it was fitted with. Questions that the world's
grammar does not know have no claims: their risk is then absent, not guessed.
Where people marked false words, every word counts as a claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.claims import Claim, first_described, judge, words

WORLD_GRAMMAR = "digits-world/1"
WORDS_GRAMMAR = "words/1"
"""Every word is a claim of kind `span`: for probes fitted on spans that people marked."""

_PLACE = r"at row \d+ column \d+"
_QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("digit_at", rf"what digit is {_PLACE}", "0"),
    ("color_at", rf"what color is {_PLACE}", "red"),
    ("where", r"where is the [a-z]+ \d+", "row 1 column 1"),
    ("color_of", r"what color is the \d+", "red"),
    ("digit_of", r"what digit is [a-z]+", "0"),
    ("exists", r"is there a (?:[a-z]+ )?\d+", "yes"),
    ("count", r"how many [a-z]+", "0"),
    ("sum_row", r"what is the sum of row \d+", "0"),
    ("add_row", r"add up row \d+", "0 is 0"),
    ("describe", r"describe everything", "row 1 column 1 red 0"),
    ("fact", r"(?:what does [a-z]+ drink|where does [a-z]+ live|what pet does [a-z]+ have)", "tea"),
)
_PATTERNS = tuple((kind, re.compile(pattern + r"\s*[?.!]?", re.IGNORECASE), answer) for kind, pattern, answer in _QUESTIONS)


@dataclass(frozen=True)
class QuestionForm:
    """A question of a known form: its kind, and a well-formed answer that gives the claims' parser its shape."""

    kind: str
    case: Case


def question_form(question: str) -> QuestionForm | None:
    """The form of a question, or `None` if the grammar does not know it."""
    text = " ".join(question.lower().split())
    for kind, pattern, answer in _PATTERNS:
        if pattern.fullmatch(text):
            return QuestionForm(kind, Case("", kind, text, (answer,), ""))
    return None


def find_claims(form: QuestionForm | None, answer: str) -> tuple[Claim, ...]:
    """The claims in an answer so far; only their places and kinds mean anything."""
    return judge(form.case, answer, _unjudged).claims if form is not None else ()


def _unjudged(_: str, __: Sequence[str]) -> bool:
    """Whether the whole answer is right does not matter here, and takes longer to tell than where its claims are."""
    return False


First = Callable[[str, int], Claim | None]


@dataclass(frozen=True)
class ClaimFinder:
    """Finds the claims of an answer so far; only their places and kinds mean anything.

    Attributes:
        level: `token` where claims cannot be told apart.
        find: the claims in a text.
        first_from: the first claim of a text that begins at a place or behind it; asked at each token, of a text that grows.
    """

    level: Literal["claim", "token"]
    find: Callable[[str], tuple[Claim, ...]]
    first_from: First


def claim_finder(grammar: str | None, question: str) -> ClaimFinder:
    """What finds claims in the answers to a question, under the grammar that a probe set names."""
    if grammar == WORDS_GRAMMAR:
        return ClaimFinder("token", find_words, _first_word)
    form = question_form(question) if grammar == WORLD_GRAMMAR else None
    first = _first_described if form is not None and form.kind == "describe" else partial(_first, form)
    return ClaimFinder("claim", partial(find_claims, form), first)


def _first(form: QuestionForm | None, text: str, start: int) -> Claim | None:
    return next((claim for claim in find_claims(form, text) if claim.start >= start), None)


def _first_described(text: str, start: int) -> Claim | None:
    """No claim reaches across a comma: nothing before it need be read again."""
    begin = text.rfind(",", 0, start) + 1
    while (found := first_described(text, begin, start)) is None:
        begin = text.find(",", begin) + 1
        if not begin:
            return None
    return found


def _first_word(text: str, start: int) -> Claim | None:
    cut = text.rfind(" ", 0, start) + 1  # no word reaches across it
    for begin, end in words(text[cut:]):
        if begin + cut >= start:
            return Claim(begin + cut, end + cut, "span", False, (), 0, text[begin + cut : end + cut])
    return None


def find_words(answer: str) -> tuple[Claim, ...]:
    """Every word as a claim; only places mean anything."""
    return tuple(Claim(start, end, "span", False, (), slot, answer[start:end]) for slot, (start, end) in enumerate(words(answer)))

"""The truth of everything an answer says: each claim with its place in the text, judged by program.

A claim is a word at which a checkable statement becomes decided. Its kind says
what the question asks for at that point, not what the answer happened to say:
`none` in answer to "what digit ...?" is a digit claim, `nowhere` in answer to
"where ...?" a place claim. Only in a description is it the answer that chooses
to state neither colour nor digit; its `hidden` and `nothing` are `none` claims.

Truth comes from the case's accepted answers alone, so a case that went through
`cases.jsonl` is judged like the one it was written from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from introspect_probes.matching import Matcher, normalise, normalised
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.facts import RELATIONS
from introspect_probes.worlds.questions import HIDDEN, NONE, NOWHERE
from introspect_probes.worlds.scene import COLOR_NAMES

ClaimKind = Literal["digit", "color", "place", "existence", "count", "sum", "fact", "none", "span"]
CLAIM_KINDS: tuple[ClaimKind, ...] = get_args(ClaimKind)
"""`span` is a word of an answer in which somebody marked what is false."""

NOTHING = "nothing"
_ONE_WORD: dict[str, ClaimKind] = {
    "digit_at": "digit",
    "digit_of": "digit",
    "color_at": "color",
    "color_of": "color",
    "exists": "existence",
    "count": "count",
    "sum_row": "sum",
    "fact": "fact",
}
_VALUES = frozenset({*COLOR_NAMES, "yes", "no", NONE, HIDDEN, NOWHERE, NOTHING, *(v for r in RELATIONS for v in r.values)})

# ASCII, and never lower-cased before matching: lower-casing may change the length of foreign text, and spans are offsets into it.
_FLAGS = re.IGNORECASE | re.ASCII
_NUMBER = r"([0-9]{1,3})(?![0-9a-z])"
_WORD = re.compile(r"\s*([0-9]{1,3}|[a-z]+)(?![0-9a-z])", _FLAGS)
_PLACE = re.compile(rf"\s*row\s+{_NUMBER}(?:\s+column\s+{_NUMBER})?", _FLAGS)
_OBJECT = re.compile(
    rf"\s*row\s+{_NUMBER}\s+column\s+{_NUMBER}(?:\s+(?:({HIDDEN})\b|({'|'.join(COLOR_NAMES)})\b(?:\s+{_NUMBER})?))?", _FLAGS
)
_OBJECT_PARTS: tuple[tuple[int, ClaimKind], ...] = ((2, "place"), (3, "none"), (4, "color"), (5, "digit"))
_NOTHING = re.compile(rf"\s*({NOTHING})\b", _FLAGS)
_NOTHING_PARTS: tuple[tuple[int, ClaimKind], ...] = ((1, "none"),)
_ADDEND = re.compile(rf"\s*{_NUMBER}", _FLAGS)
_JOINT = re.compile(r"\s*(plus|is)\b", _FLAGS)
_END = re.compile(r"\s*\.?\s*")
_WORDS = re.compile(r"\w(?:\S*\w)?")


@dataclass(frozen=True)
class Claim:
    """One checkable statement of an answer.

    Attributes:
        start: offset of its first character in the judged text.
        end: offset behind its last character.
        kind: what it is about, one of `CLAIM_KINDS`.
        is_false: whether it is untrue of the case.
        evidence: the cells (reading order) that show the truth; empty where no cell does.
        slot: its number among the answer's claims, from 0.
        text: the words that make it, as written.
    """

    start: int
    end: int
    kind: ClaimKind
    is_false: bool
    evidence: tuple[int, ...]
    slot: int
    text: str


@dataclass(frozen=True)
class Judgement:
    """Whether an answer is right as a whole, and its claims in the order of the text."""

    is_correct: bool
    claims: tuple[Claim, ...]

    @property
    def has_false_claim(self) -> bool:
        """Whether any claim is false; an incomplete answer can be wrong without one."""
        return any(claim.is_false for claim in self.claims)


def judge(case: Case, text: str, matches: Matcher = normalised) -> Judgement:
    """Judge an answer to a case.

    `is_correct` is what `matches` says of the text and the accepted answers; a
    description may name the objects in any order. What cannot be read carries no
    claims. Where the user gave the false `spans` of the first expected answer and
    the text is that answer, each of its words is a claim, false inside a span, and
    the answer is not correct if any is.

    - One-word answers are one claim of the kind the question asks for.
    - `where`: the row number and the column number are place claims, each judged by itself.
    - `describe`: the column number is a place claim (false where nothing is, or where the answer has already been), then
      colour and digit, or `hidden`, are judged at the place that was stated.
    - `add_row`: each addend is judged against the row's digit of the same rank, the total against the row's sum.
    """
    exact = matches(text, case.answers)
    if case.spans is not None:
        return _judge_spans(case, text, exact)
    if case.kind == "describe":
        return _judge_description(case, text, exact)
    claims = _Claims(text)
    if case.kind in _ONE_WORD:
        _claim_word(case, claims, _ONE_WORD[case.kind])
    elif case.kind in _PARSERS:
        _PARSERS[case.kind](case, claims)
    return Judgement(exact, tuple(claims.found))


def claims_in_answer_tokens(judgement: Judgement, token_spans: Sequence[tuple[int, int]]) -> list[tuple[int, Claim]]:
    """The token that decides each claim: the first one that covers the claim's first character.

    Args:
        judgement: the judged answer.
        token_spans: `(start, end)` of each token's characters in the judged text.

    Returns:
        `(token index, claim)` in the order of the text; a claim that no token covers (a cut answer) is left out.
    """
    found = []
    for claim in judgement.claims:
        index = next((i for i, (start, end) in enumerate(token_spans) if start <= claim.start < end), None)
        if index is not None:
            found.append((index, claim))
    return found


class _Claims:
    """The claims found so far in one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Claim] = []

    def add(self, span: tuple[int, int], kind: ClaimKind, *, is_true: bool, evidence: tuple[int, ...]) -> None:
        start, end = span
        self.found.append(Claim(start, end, kind, not is_true, evidence, len(self.found), self.text[start:end]))


def _judge_spans(case: Case, text: str, exact: bool) -> Judgement:
    claims = _Claims(text)
    if text == case.answers[0]:
        for start, end in words(text):
            is_true = not any(start < stop and begin < end for begin, stop in case.spans or ())
            claims.add((start, end), "span", is_true=is_true, evidence=())
    judgement = Judgement(exact, tuple(claims.found))
    return Judgement(exact and not judgement.has_false_claim, judgement.claims)


def words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word, punctuation at its ends aside."""
    return [match.span() for match in _WORDS.finditer(text)]


def _claim_word(case: Case, claims: _Claims, kind: ClaimKind) -> None:
    accepted = {normalise(answer) for answer in case.answers}
    match = _WORD.match(claims.text)
    if match is None:
        return
    word = match[1].lower()
    if word.isdigit() or word in _VALUES or word in accepted:
        claims.add(match.span(1), kind, is_true=word in accepted, evidence=case.evidence)


def _judge_where(case: Case, claims: _Claims) -> None:
    truths = [match for answer in case.answers if (match := _PLACE.match(answer))]
    if not truths and NOWHERE not in case.answers:
        return
    if (match := _WORD.match(claims.text)) and match[1].lower() == NOWHERE:
        claims.add(match.span(1), "place", is_true=NOWHERE in case.answers, evidence=case.evidence)
    if match := _PLACE.match(claims.text):
        for part in (1, 2):
            if match[part] is not None:
                is_true = any(match[part] == truth[part] for truth in truths)
                claims.add(match.span(part), "place", is_true=is_true, evidence=case.evidence)


def _judge_add_row(case: Case, claims: _Claims) -> None:
    truth = _addends(case.answers[0])
    if truth is None:
        return
    digits, total = truth
    position, rank = 0, 0
    while match := _ADDEND.match(claims.text, position):
        is_true = rank < len(digits) and match[1] == digits[rank]
        evidence = case.evidence[rank : rank + 1] if len(case.evidence) == len(digits) else ()
        claims.add(match.span(1), "digit", is_true=is_true, evidence=evidence)
        rank += 1
        joint = _JOINT.match(claims.text, match.end())
        if joint is None:
            return
        position = joint.end()
        if joint[1].lower() == "is":
            break
    if rank and (match := _ADDEND.match(claims.text, position)):
        claims.add(match.span(1), "sum", is_true=match[1] == total, evidence=case.evidence)


_PARSERS: dict[str, Callable[[Case, _Claims], None]] = {"where": _judge_where, "add_row": _judge_add_row}


def _addends(answer: str) -> tuple[list[str], str] | None:
    """The digits and the total of a true `add_row` answer."""
    left, joint, total = answer.partition(" is ")
    return (left.split(" plus "), total.strip()) if joint else None


_Place = tuple[str, str]
_Content = tuple[str, str]


def _judge_description(case: Case, text: str, exact: bool) -> Judgement:
    truth = _described(case.answers[0])
    if truth is None:
        return Judgement(exact, ())
    claims, stated, is_readable = _Claims(text), set[_Place](), True
    segments = _segments(text)
    for start, end in segments:
        reach = _describe_segment(case, claims, truth, stated, start, end)
        is_readable &= reach is not None and _END.fullmatch(text, reach, end) is not None
    # Every segment must reach its last word, and every object have its segment.
    is_whole = sum(claim.kind in ("digit", "none") for claim in claims.found) == len(segments)
    is_right = is_readable and is_whole and stated == set(truth) and not any(claim.is_false for claim in claims.found)
    return Judgement(exact or is_right, tuple(claims.found))


def _describe_segment(case: Case, claims: _Claims, truth: dict[_Place, _Content], stated: set[_Place], start: int, end: int) -> int | None:
    """Claims of one object; returns where reading stopped, or `None` where nothing was read."""
    if match := _NOTHING.match(claims.text, start, end):
        claims.add(match.span(1), "none", is_true=not truth and not claims.found, evidence=case.evidence)
        return match.end()
    match = _OBJECT.match(claims.text, start, end)
    if match is None:
        return None
    place = (match[1], match[2])
    cell = _cell_index(case, place)
    content = truth.get(place)
    claims.add(match.span(2), "place", is_true=content is not None and place not in stated, evidence=cell)
    stated.add(place)
    if match[3] is not None:
        claims.add(match.span(3), "none", is_true=content == (HIDDEN, ""), evidence=cell)
    if match[4] is not None:
        claims.add(match.span(4), "color", is_true=content is not None and match[4].lower() == content[0], evidence=cell)
    if match[5] is not None:
        claims.add(match.span(5), "digit", is_true=content is not None and match[5] == content[1], evidence=cell)
    return match.end()


def first_described(text: str, begin: int, start: int) -> Claim | None:
    """The first claim at `start` or behind it of the object described from `begin` on; only its place and kind mean anything.

    Those of `judge`, without the rest of the answer and its truth: asked at every token of an answer.
    """
    match, parts = _OBJECT.match(text, begin), _OBJECT_PARTS
    if match is None:
        match, parts = _NOTHING.match(text, begin), _NOTHING_PARTS
    if match is None:
        return None
    found = ((match.start(part), match.end(part), kind) for part, kind in parts if match.start(part) >= start)
    return next((Claim(first, last, kind, False, (), 0, text[first:last]) for first, last, kind in found), None)


def _segments(text: str) -> list[tuple[int, int]]:
    """Spans between commas."""
    commas = [i for i, character in enumerate(text) if character == ","]
    return list(zip([0, *(i + 1 for i in commas)], [*commas, len(text)], strict=True))


@lru_cache(maxsize=256)  # the same question's truth is asked for at every token of an answer
def _described(answer: str) -> dict[_Place, _Content] | None:
    """What a true description says: content by place; `None` where it is not a description of this world."""
    if answer == NOTHING:
        return {}
    matches = [_OBJECT.fullmatch(part.strip()) for part in answer.split(",")]
    truth = {(m[1], m[2]): (HIDDEN, "") if m[3] else (m[4], m[5]) for m in matches if m and (m[3] or m[5])}
    return truth if len(truth) == len(matches) else None


def _cell_index(case: Case, place: _Place) -> tuple[int, ...]:
    """The cell at a stated place; empty without a scene, or outside its grid."""
    row, column = int(place[0]), int(place[1])
    if case.scene is None or not (1 <= row <= case.scene.rows and 1 <= column <= case.scene.columns):
        return ()
    return ((row - 1) * case.scene.columns + column - 1,)

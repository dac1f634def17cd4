"""When an answer counts as right: matchers by name; the one that was used stands in the manifest of the traces."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from introspect_probes.errors import CaseError

Matcher = Callable[[str, Sequence[str]], bool]
DEFAULT_MATCHER = "normalised"
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_RELATIVE = 1e-6


def normalise(text: str) -> str:
    """The form in which answers are compared: lower case, one space, none before punctuation, no full stop at the end."""
    spaced = re.sub(r"\s*([,.;:?!])\s*", r"\1 ", text.lower())
    return " ".join(spaced.split()).removesuffix(".")


def exact(text: str, answers: Sequence[str]) -> bool:
    """The same characters, white space around them aside."""
    return text.strip() in {answer.strip() for answer in answers}


def normalised(text: str, answers: Sequence[str]) -> bool:
    """The same after `normalise`."""
    return normalise(text) in {normalise(answer) for answer in answers}


def contains(text: str, answers: Sequence[str]) -> bool:
    """An accepted answer stands in the text as whole words, both after `normalise`."""
    found = normalise(text)
    return any(re.search(rf"(?<!\w){re.escape(normalise(answer))}(?!\w)", found) is not None for answer in answers)


def numeric(text: str, answers: Sequence[str]) -> bool:
    """The last number in the text is the last number of an accepted answer, to one part in a million.

    Raises:
        CaseError: an accepted answer holds no number.
    """
    said = _last_number(text)
    for answer in answers:
        wanted = _last_number(answer)
        if wanted is None:
            raise CaseError(f"the matcher numeric needs a number in every accepted answer, got {answer!r}; choose another with --match")
        if said is not None and abs(said - wanted) <= _RELATIVE * max(1.0, abs(wanted)):
            return True
    return False


MATCHERS: dict[str, Matcher] = {"exact": exact, "normalised": normalised, "contains": contains, "numeric": numeric}


def get_matcher(name: str) -> Matcher:
    """A matcher by its name.

    Raises:
        CaseError: there is none of that name.
    """
    if name not in MATCHERS:
        raise CaseError(f"expected a matcher out of {', '.join(MATCHERS)}, got {name!r}")
    return MATCHERS[name]


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None

"""Visual-head scores from decode statistics: no training, no attention matrix (after SparseMM, arXiv 2506.05344, algorithm 1).

The answer is teacher-forced. At the query that must produce a token whose evidence
is known, a head hits if, within the picture, it looks most at the evidence. A hit
counts the head's attention on the picture, over the number of evidence tokens, so that
large boxes are no easier than small ones, and heads that never look at the picture score nothing.
(SparseMM counts a hit where the whole row's largest weight lies in the box. That is blind
to heads that keep most of their weight on the first token, as most heads of the embedded model do.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from introspect.engine import Engine
from introspect.errors import HeadScoresError
from introspect.heads.boxes import Boxes, tokens_in_box
from introspect.heads.cases import HeadCase
from introspect.heads.places import token_boxes
from introspect.heads.visual_heads import VisualHeads
from introspect.prompt import EncodedPrompt
from introspect.types import Request, SamplingParams, StepTrace
from introspect_kernels import Segment

BATCH = 16
Floats = NDArray[np.float64]


def score_heads(engine: Engine, cases: Iterable[HeadCase], *, progress: Callable[[int], None] | None = None) -> VisualHeads:
    """Score every query head of a model.

    Args:
        engine: runs the model, with the whole cache.
        cases: pictures, answers and where their evidence is; every other one makes up each half of the stability check.
        progress: told the number of cases of each batch that is done.

    Returns:
        Scores with the sum 1, and each head's hit rate; `facts` hold `tokens` and `cases` that were scored, `best_hit_rate` (share of
        scored tokens whose evidence the best head looked at) and `stability` (Spearman's rank correlation over heads between the two
        halves).

    Raises:
        HeadScoresError: nothing could be scored.
        RequestError: a case is none that the model can take.
    """
    loaded = engine.loaded
    sums = np.zeros((2, loaded.num_layers, loaded.num_heads))
    hits = np.zeros((loaded.num_layers, loaded.num_heads))
    counts, used = np.zeros(2, dtype=int), 0
    for first, batch in _batches(cases):
        for offset, (case, prompt, steps, spans) in enumerate(_forced(engine, batch)):
            found = list(_hits(case, steps, spans, token_boxes(loaded, prompt, case.image)))
            half = (first + offset) % 2
            for hit, value in found:
                sums[half] += value
                hits += hit
            counts[half] += len(found)
            used += bool(found)
        if progress is not None:
            progress(len(batch))
    if not counts.all() or not sums.any():
        raise HeadScoresError(
            f"nothing to score heads by: {int(counts.sum())} tokens of {used} cases have evidence in the picture; "
            "at least two cases are needed, with boxes inside what the model sees"
        )
    whole = sums.sum(0)
    facts = {
        "model": Path(loaded.name).name,
        "cases": used,
        "tokens": int(counts.sum()),
        "best_hit_rate": round(float(hits.max() / counts.sum()), 4),
        "stability": {"spearman": round(rank_correlation(sums[0], sums[1]), 4), "tokens": counts.tolist()},
    }
    return VisualHeads(whole / whole.sum(), loaded.fingerprint, facts, hits / counts.sum())


def _forced(engine: Engine, cases: Sequence[HeadCase]) -> Iterator[tuple[HeadCase, EncodedPrompt, list[StepTrace], list[tuple[int, int]]]]:
    """Each case with its prompt, its teacher-forced steps and the characters of each answer token."""
    answers = [engine.loaded.tokenizer(case.answer, add_special_tokens=False, return_offsets_mapping=True) for case in cases]
    kept = [(case, answer) for case, answer in zip(cases, answers, strict=True) if answer.input_ids]
    prompts = [
        engine.encode(
            Request.ask(case.id, case.question, case.image, context=case.context, sampling=SamplingParams(max_tokens=len(answer.input_ids)))
        )
        for case, answer in kept
    ]
    scored = engine.score_encoded(prompts, [answer.input_ids for _, answer in kept])
    for (case, answer), prompt, steps in zip(kept, prompts, scored, strict=True):
        yield case, prompt, steps, [tuple(span) for span in answer.offset_mapping]


def _hits(case: HeadCase, steps: Sequence[StepTrace], spans: Sequence[tuple[int, int]], shown: Boxes) -> Iterator[tuple[Floats, Floats]]:
    """For each token with evidence, hits (0 or 1) and their values, both `[layers, heads]`; `shown` is what each image token shows."""
    prompt = steps[0].prompt
    where = np.flatnonzero(prompt.segments == Segment.IMAGE)
    for step, (start, end) in zip(steps, spans, strict=False):
        boxes = [box for piece in case.evidence if piece.start < end and start < piece.end for box in piece.boxes]
        parts = [tokens_in_box(box, shown) for box in boxes]
        tokens = where[np.unique(np.concatenate(parts))] if parts else where[:0]
        if len(tokens) and step.heads is not None:
            hit = np.isin(step.heads.image_argmax_position, tokens).astype(np.float64)
            yield hit, hit * step.heads.mass[..., Segment.IMAGE] / len(tokens)


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    one, two = (_ranks(np.ravel(values)) for values in (first, second))
    one, two = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / scale if scale > 0 else float("nan")


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _batches(cases: Iterable[HeadCase]) -> Iterator[tuple[int, list[HeadCase]]]:
    iterator, first = iter(cases), 0
    while batch := list(islice(iterator, BATCH)):
        yield first, batch
        first += len(batch)

"""`introspect record`: cases through the engine to labelled traces."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from introspect.engine import Engine
from introspect.hidden import HiddenRows, hidden_states
from introspect.types import Budget, Request, SamplingParams, StepTrace
from introspect_probes.case_budget import budget_for
from introspect_probes.interventions import measure_shifts
from introspect_probes.matching import DEFAULT_MATCHER, Matcher, get_matcher, normalised
from introspect_probes.traces import FALSE, TRUE, ClaimLabel, Trace, TraceWriter, manifest_of
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.claims import claims_in_answer_tokens, judge

MAX_ANSWER_TOKENS = 96
BATCH = 32
"""Answers that are decoded together and stored as one part."""
THUMBNAIL = 128
"""Pixels of the longer side of the pictures that traces keep, for reports."""


def record(
    cases: Iterable[Case],
    engine: Engine,
    out: Path,
    *,
    budgets: Sequence[Budget] = (Budget(),),
    interventions: bool = False,
    matcher: str = DEFAULT_MATCHER,
    batch_size: int = BATCH,
    max_tokens: int = MAX_ANSWER_TOKENS,
    hidden: bool = False,
    samples: int = 0,
    influence: bool = False,
    total: int | None = None,
) -> int:
    """Answer every case under every budget and store the labelled traces.

    What is recorded already is skipped, so an interrupted run goes on where it was.

    Args:
        cases: what to ask.
        engine: what answers, greedily.
        out: trace folder, made or appended to.
        budgets: conditions; every case is answered under each.
        interventions: also measure what moves each claim, for strategy states; takes about twenty times as long.
        matcher: when an answer counts as right, see `matching`; named in the manifest.
        batch_size: answers decoded together and stored as one part.
        max_tokens: longest answer.
        hidden: also keep the hidden states of every query, for the baseline L+H; they take more room than all else.
        samples: also draw this many answers for each and keep the share that agrees, for the baseline self-consistency.
        influence: also keep what each token received from later ones, for FAI; makes decode steps dearer.
        total: number of cases, for the progress bar.

    Returns:
        The number of traces written.

    Raises:
        CaseError: there is no such matcher, or it cannot judge a case; a case cannot be read.
        TraceError: the folder holds traces of another model, schema or matcher.
    """
    from introspect_probes.agreement import with_agreement

    matches = get_matcher(matcher)
    writer = TraceWriter(out, manifest_of(engine.loaded, matcher=matcher, samples=samples))
    done = writer.recorded()
    written = 0
    with tqdm(total=None if total is None else total * len(budgets), desc="recording", unit="answer") as bar:
        for batch in _batches(((c, budget_for(c.id, b)) for c in cases for b in budgets), batch_size):
            fresh = [(case, budget) for case, budget in batch if trace_id(case, budget) not in done]
            if fresh:
                traces = answer_cases(engine, fresh, max_tokens, matches, hidden=hidden, influence=influence)
                if samples:
                    traces = with_agreement(engine, fresh, traces, samples, max_tokens)
                if interventions:
                    traces = measure_shifts(engine, [case for case, _ in fresh], traces)
                writer.write(traces)
                written += len(traces)
            bar.update(len(batch))
    return written


def trace_id(case: Case, budget: Budget) -> str:
    """The id of a case's trace under a budget."""
    amount = f"-{budget.entries}" if budget.entries is not None else f"-{budget.ratio:g}" if budget.ratio is not None else ""
    return f"{case.id}@{budget.policy}{amount}"


def request_of(case: Case, budget: Budget, max_tokens: int = MAX_ANSWER_TOKENS, name: str | None = None) -> Request:
    """The request that asks a case's question, greedily."""
    sampling = SamplingParams(max_tokens=max_tokens)
    return Request.ask(
        name or trace_id(case, budget), case.question, case.picture(), context=case.context, sampling=sampling, budget=budget
    )


def answer_cases(
    engine: Engine,
    pairs: Sequence[tuple[Case, Budget]],
    max_tokens: int = MAX_ANSWER_TOKENS,
    matches: Matcher = normalised,
    *,
    hidden: bool = False,
    influence: bool = False,
) -> list[Trace]:
    """Answer cases together and judge the answers; with `hidden`, keep the queries' hidden states, with `influence` FAI's sums."""
    requests = [replace(request_of(case, budget, max_tokens), influence=influence) for case, budget in pairs]
    steps: dict[str, list[StepTrace]] = {request.id: [] for request in requests}
    keeping: AbstractContextManager[HiddenRows] = hidden_states(engine.loaded) if hidden else nullcontext({})
    with keeping as states:
        for step in engine.generate(requests):
            steps[step.prompt.request_id].append(step)
    traces = [trace_of(case, steps[request.id], matches) for (case, _), request in zip(pairs, requests, strict=True)]
    return [replace(trace, hidden=_hidden_of(trace, states)) for trace in traces] if hidden else traces


def _hidden_of(trace: Trace, states: HiddenRows) -> NDArray[np.float16]:
    """`[queries, layers, width]`, row by row those of the steps that carry head statistics."""
    return np.stack([states[trace.id, step.position] for step in trace.steps if step.heads is not None])


def trace_of(case: Case, steps: Sequence[StepTrace], matches: Matcher = normalised) -> Trace:
    """The labelled trace of one answered case."""
    answer, spans = "", []
    for step in steps:
        spans.append((len(answer), len(answer) + len(step.text)))
        answer += step.text
    judgement = judge(case, answer, matches)
    claims = tuple(
        ClaimLabel(token, claim.start, claim.end, claim.kind, FALSE if claim.is_false else TRUE, claim.evidence)
        for token, claim in claims_in_answer_tokens(judgement, spans)
    )
    return Trace(
        id=steps[0].prompt.request_id,
        case_id=case.id,
        group=case.group,
        pool=case.pool,
        kind=case.kind,
        source=case.source,
        prior=case.prior,
        question=case.question,
        answer=answer,
        correct=int(judgement.is_correct),
        prompt=steps[0].prompt,
        steps=tuple(steps),
        claims=claims,
        picture=thumbnail(case.picture()),
        expected=case.answers[0],
    )


def thumbnail(picture: Image.Image | None) -> bytes | None:
    """A picture as a PNG of at most `THUMBNAIL` pixels a side."""
    if picture is None:
        return None
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _batches(items: Iterable[tuple[Case, Budget]], size: int) -> Iterator[list[tuple[Case, Budget]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

"""Self-consistency: how many sampled answers say what the greedy one says (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from introspect.engine import Engine
from introspect.types import Budget, SamplingParams
from introspect_probes.case_budget import budget_for
from introspect_probes.matching import normalised
from introspect_probes.record import request_of
from introspect_probes.traces import Trace
from introspect_probes.worlds.cases import Case

TEMPERATURE = 1.0


def with_agreement(
    engine: Engine, pairs: Sequence[tuple[Case, Budget]], traces: Sequence[Trace], samples: int, max_tokens: int
) -> list[Trace]:
    """The traces with the share of `samples` answers, drawn at temperature 1 under the same budget, that equal theirs.

    Answers are equal but for case and spacing. Without head statistics, which nobody reads here.
    """
    requests = []
    for (case, budget), trace in zip(pairs, traces, strict=True):
        for number in range(samples):
            asked = request_of(case, budget, name=f"{trace.id}#{number}")
            sampling = SamplingParams(max_tokens=max_tokens, temperature=TEMPERATURE, seed=budget_for(asked.id, budget).seed)
            requests.append(replace(asked, sampling=sampling, signals=False))
    texts = dict.fromkeys((request.id for request in requests), "")
    for step in engine.generate(requests):
        texts[step.prompt.request_id] += step.text
    return [
        replace(trace, agreement=sum(normalised(texts[f"{trace.id}#{n}"], (trace.answer,)) for n in range(samples)) / samples)
        for trace in traces
    ]

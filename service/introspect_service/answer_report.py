"""A remembered answer as JSON: its tokens with their signals, what the budget kept, and one statistic of all heads."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel

from introspect.types import FinishReason, PromptInfo
from introspect_kernels import Segment
from introspect_service.backend import Backend
from introspect_service.compact import STATISTICS, head_map, image_patches
from introspect_service.errors import ApiError
from introspect_service.pieces import Pieces
from introspect_service.records import AnswerRecord
from introspect_service.responses import TokenLogprob
from introspect_service.signals import (
    AnswerIntrospection,
    BudgetReport,
    Sparse,
    answer_introspection,
    budget_report,
    rounded,
    token_introspection,
)

CANDIDATES = 5

HeadMap = list[list[float | int | None]]


class RecordedToken(TokenLogprob):
    """One token with its candidates and signals; `entropy` of the whole distribution and `margin` of the best two in nats."""

    index: int
    entropy: float | None
    margin: float | None


class KeptEntries(BaseModel):
    """KV entries of the prompt from one segment: how many there were, and how many a KV head kept on average over the model."""

    logical: int
    retained: float


class Grid(BaseModel):
    """Rows and columns of a picture's tokens."""

    rows: int
    columns: int


class HeadShape(BaseModel):
    """How many rows of statistics there are, and for how many heads; row t predicted token t and read token t - 1."""

    rows: int
    layers: int
    heads: int
    kv_heads: int


class AnswerReport(Sparse):
    """A remembered answer.

    Attributes:
        id: the completion's.
        model: who answered.
        created: when it began, seconds since 1970.
        state: whether it is still being made.
        text: the answer so far.
        finish_reason: why it ended.
        seconds: from the start of the prefill to the last token.
        prompt_tokens: tokens of the prompt.
        effective_budget: the KV budget.
        kept: what the budget kept, by segment.
        images: one grid a picture, where the model's image tokens form one.
        tokens: its tokens without control tokens; `index` is the row of the statistics that predicted it.
        shape: of the statistics.
        statistics: names that `heads` takes.
        introspection: the answer's signals, where it is complete.
        feature_schema: hash of names and order of the head statistics.
    """

    id: str
    model: str
    created: int
    state: Literal["running", "completed", "failed"]
    text: str
    finish_reason: FinishReason | None = None
    seconds: float | None = None
    prompt_tokens: int
    effective_budget: BudgetReport
    kept: dict[str, KeptEntries]
    images: list[Grid]
    tokens: list[RecordedToken]
    shape: HeadShape
    statistics: list[str]
    introspection: AnswerIntrospection | None = None
    feature_schema: str


class HeadReport(BaseModel):
    """One statistic of every head for one token.

    Attributes:
        token: index of the token.
        row: `producing`, the query that predicted the token, or `reading`, the one whose input it was.
        statistic: its name.
        values: `[layers][heads]`, of KV heads for `retained`; null where a head has no such value.
        patches: `[layers][heads]`, picture, row and column of the image token that the head attends to most; null where it
            keeps none.
        image_mass: `[layers][heads]`, share of the head's attention on the pictures.
    """

    token: int
    row: Literal["producing", "reading"]
    statistic: str
    values: HeadMap
    patches: list[list[tuple[int, int, int] | None]]
    image_mass: HeadMap


def recorded_tokens(record: AnswerRecord, pieces: Pieces, start: int = 0) -> list[RecordedToken]:
    """The tokens from `start` on; `pieces` must have seen those before."""
    told = []
    for step, signal in zip(record.steps[start:], record.signals[start:], strict=True):
        if step.is_special:
            continue
        entry = pieces.add(step).model_copy(update={"introspection": token_introspection(signal)})
        logits = step.logits
        entropy, margin = (rounded(logits.entropy), rounded(logits.margin)) if logits else (None, None)
        told.append(RecordedToken(**dict(entry), index=step.index, entropy=entropy, margin=margin))
    return told


def answer_report(record: AnswerRecord, backend: Backend) -> AnswerReport:
    """All of a remembered answer but its head statistics."""
    model, ended = backend.model, record.ended
    return AnswerReport(
        id=record.id,
        model=model.name,
        created=record.created,
        state="completed" if ended else "failed" if record.failed else "running",
        text=ended.text if ended else "".join(step.text for step in record.steps),
        finish_reason=ended.finish_reason if ended else None,
        seconds=round(ended.seconds, 6) if ended else None,
        prompt_tokens=len(record.prompt.token_ids),
        effective_budget=budget_report(record.prompt.budget),
        kept=_kept(record),
        images=[Grid(rows=rows, columns=columns) for rows, columns in record.prompt.image_grids],
        tokens=recorded_tokens(record, Pieces(model.tokenizer, CANDIDATES)),
        shape=HeadShape(rows=len(record.rows), layers=model.num_layers, heads=model.num_heads, kv_heads=model.num_kv_heads),
        statistics=list(STATISTICS),
        introspection=_introspection(record, backend.feature_schema),
        feature_schema=backend.feature_schema,
    )


def head_report(record: AnswerRecord, token: int, statistic: str, row: Literal["producing", "reading"]) -> HeadReport:
    """One statistic of every head for one token.

    Raises:
        ApiError: 404, there is no such token or row, or it is not there yet; 400, no such statistic.
    """
    if statistic not in STATISTICS:
        message = f"statistic: expected one of {', '.join(STATISTICS)}."
        raise ApiError(400, message, param="statistic", code="invalid_value")
    number = token if row == "producing" else token + 1
    if token >= len(record.steps) or number >= len(record.rows):
        message = f"There is no {row} row of token {token}: {len(record.rows)} rows are here."
        raise ApiError(404, message, param="token", code="token_not_found")
    values = record.rows[number]
    return HeadReport(
        token=token,
        row=row,
        statistic=statistic,
        values=head_map(values, statistic),
        patches=image_patches(values, record.prompt),
        image_mass=head_map(values, "mass.image"),
    )


def _introspection(record: AnswerRecord, schema: str) -> AnswerIntrospection | None:
    if record.ended is None:
        return None
    return answer_introspection(record.id, record.ended.signal, record.prompt.budget, schema)


def _kept(record: AnswerRecord) -> dict[str, KeptEntries]:
    """From the first row, which has seen the prompt alone: its own token is the prompt's last."""
    prompt: PromptInfo = record.prompt
    if not record.rows:
        return {}
    retained = np.mean(record.rows[0]["retained"], axis=(0, 1))
    return {
        segment.name.lower(): KeptEntries(logical=int(prompt.logical[segment]), retained=round(float(retained[segment]), 2))
        for segment in Segment
        if prompt.logical[segment]
    }

"""One question about one picture, without a server."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from introspect.types import FinishReason, Request, SamplingParams
from introspect_service.backend import Backend
from introspect_service.generation import Ended, Token, generate_answer
from introspect_service.images import decode_image
from introspect_service.pieces import Pieces
from introspect_service.responses import TokenLogprob
from introspect_service.settings import Settings
from introspect_service.signals import AnswerIntrospection, answer_introspection, token_introspection


class Asked(BaseModel):
    """What `introspect ask --json` prints."""

    question: str
    answer: str
    finish_reason: FinishReason
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    introspection: AnswerIntrospection
    tokens: list[TokenLogprob]


def ask(backend: Backend, settings: Settings, image: Path, question: str, context: tuple[str, ...] = ()) -> Asked:
    """Ask, and wait for the answer.

    Args:
        backend: who answers.
        settings: budget and limits.
        image: a png, jpeg or webp file.
        question: the question.
        context: passages to be read.

    Raises:
        ImageError: the picture cannot be used.
        OSError: the file cannot be read.
        RequestError: the model cannot take the question.
    """
    picture = decode_image(image.read_bytes(), max_pixels=settings.max_pixels)
    sampling = SamplingParams(max_tokens=settings.default_max_tokens)
    request = Request.ask(f"ask-{uuid.uuid4().hex}", question, picture, context=context, sampling=sampling, budget=settings.budget)
    pieces = Pieces(backend.model.tokenizer, top=0)
    tokens: list[TokenLogprob] = []
    found: dict[str, Any] = {}
    for what in generate_answer(backend.engine, backend.scorer, request):
        if isinstance(what, Token) and not what.step.is_special:
            tokens.append(pieces.add(what.step).model_copy(update={"introspection": token_introspection(what.signal)}))
        elif isinstance(what, Ended):
            found = {
                "answer": what.text,
                "finish_reason": what.finish_reason,
                "prompt_tokens": len(what.prompt.token_ids),
                "completion_tokens": what.tokens,
                "seconds": round(what.seconds, 6),
                "introspection": answer_introspection(request.id, what.signal, what.prompt.budget, backend.feature_schema),
            }
    return Asked(question=question, model=backend.model.name, tokens=tokens, **found)

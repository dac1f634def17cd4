"""One answer that nobody asked for, so that the first one that somebody asks for does not stand still in its middle.

The engine prepares its decode step once it has run for a while (see `introspect.forward`), which takes as long as
many tokens. Steps of several answers are prepared likewise when they first run together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing

from PIL import Image

from introspect.errors import IntrospectError
from introspect.types import Request, SamplingParams
from introspect_service.backend import Backend
from introspect_service.page import SAMPLES

logger = logging.getLogger(__name__)

PICTURE, QUESTION, TOKENS = "scene-1.png", "describe everything", 24
"""An answer longer than what the engine waits for."""


def warm_up(backend: Backend, is_enough: Callable[[], bool]) -> int:
    """Run it beside whatever is asked meanwhile; neither the stream nor a metric hears of it. Blocks.

    Args:
        backend: who answers.
        is_enough: is asked at each step whether to leave it at that.

    Returns:
        How many steps were taken.
    """
    steps = 0
    with Image.open(SAMPLES / PICTURE) as opened:
        request = Request.ask("warm-up", QUESTION, opened.convert("RGB"), sampling=SamplingParams(max_tokens=TOKENS))
    try:
        with closing(backend.engine.generate([request])) as answer:
            for _ in answer:
                steps += 1
                if is_enough():
                    break
    except IntrospectError as problem:  # a model that cannot take this one may well take others
        logger.info("the service is not warmed up: %s", problem)
    return steps

"""Several pictures in a message and over several messages reach the model in their order, over HTTP and by real classes of models."""

from __future__ import annotations

import httpx
import numpy as np
import openai
import pytest
from families import CORE, FAMILIES
from safetensors.numpy import load

from introspect.async_engine import AsyncEngine
from introspect.engine import Engine
from introspect.types import ImagePart, Message, Request, SamplingParams, TextPart
from introspect_kernels import Segment, feature_schema_hash
from introspect_probes.training_free import TrainingFree
from introspect_service.backend import Backend
from introspect_service.settings import Settings


@pytest.fixture(scope="module", params=CORE)
def served(request, make):
    """A service over a tiny model of a family, with random weights."""
    loaded = FAMILIES[request.param]().loaded
    backend = Backend(loaded, AsyncEngine(Engine(loaded)), TrainingFree(loaded), feature_schema_hash())
    settings = Settings(model=loaded.name, redis="off", port=make.free_port(), max_images=3)
    with make.running(settings, backend) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield url, client, backend
    backend.engine.close()


@pytest.fixture(scope="module")
def pictures(make):
    return [make.picture(60, 40, seed) for seed in range(3)]


TEXTS = ("the left one", "and this", "yes", "which is like the first ?")


def as_sent(pictures, make):
    """Two pictures in the first message, an answer, and a third picture."""
    parts = [{"type": "image_url", "image_url": {"url": make.data_uri(make.encoded(each))}} for each in pictures]
    texts = [{"type": "text", "text": text} for text in TEXTS]
    return [
        {"role": "user", "content": [parts[0], texts[0], parts[1], texts[1]]},
        {"role": "assistant", "content": TEXTS[2]},
        {"role": "user", "content": [parts[2], texts[3]]},
    ]


def as_the_engine_has_it(pictures):
    images, texts = [ImagePart(each) for each in pictures], [TextPart(text) for text in TEXTS]
    return (
        Message("user", (images[0], texts[0], images[1], texts[1])),
        Message("assistant", (texts[2],)),
        Message("user", (images[2], texts[3])),
    )


def arrays_of(served, shown, make, **options):
    """What is kept of the answer to a conversation: control tokens too, which a client never sees."""
    url, client, backend = served
    answer = client.chat.completions.create(model=backend.model.name, messages=as_sent(shown, make), **options)
    return answer, load(httpx.get(f"{url}/v1/introspection/{answer.id}").content)


def test_the_pictures_of_a_conversation_are_those_that_the_model_sees(served, pictures, make):
    engine = served[2].engine
    answer, stored = arrays_of(served, pictures, make, max_tokens=4)
    direct = list(engine.generate([Request("direct", as_the_engine_has_it(pictures), SamplingParams(max_tokens=4))]))
    said = [step.logits.logprob for step in direct if step.logits is not None]
    assert len(said) > 0
    assert stored["tokens.logprob"].tolist() == pytest.approx(said, abs=1e-4)
    segments = direct[0].prompt.segments
    assert answer.usage.prompt_tokens == len(segments)
    assert stored["prompt.segments"].tolist() == segments.tolist()
    alone = next(iter(engine.generate([Request.ask("one", TEXTS[3], pictures[0], sampling=SamplingParams(max_tokens=1))])))
    assert (segments == Segment.IMAGE).sum() == 3 * (alone.prompt.segments == Segment.IMAGE).sum() > 0


def test_the_order_of_the_pictures_matters_and_so_does_each_of_them(served, pictures, make):
    def said(*shown):
        return arrays_of(served, shown, make, max_tokens=1)[1]["tokens.top_logprobs"]

    first, second, third = pictures
    expected = said(first, second, third)
    assert np.allclose(said(first, second, third), expected, atol=1e-5)
    for other in ((second, first, third), (first, third, second), (first, second, make.picture(60, 40, 9))):
        assert not np.allclose(said(*other), expected, atol=1e-5)


def test_one_picture_too_many_is_refused_with_the_limit(served, pictures, make):
    _, client, backend = served
    chat = as_sent(pictures, make)
    chat[2]["content"].insert(0, chat[0]["content"][0])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=backend.model.name, messages=chat)
    assert refused.value.code == "limit_exceeded"
    assert "at most 3" in refused.value.message

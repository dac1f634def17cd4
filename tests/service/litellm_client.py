"""Asks a service through LiteLLM in every way, and prints what came as JSON. Run by an interpreter that has LiteLLM; see test_litellm.py.

Arguments: the service's address, the model, a picture as a `data:` URI.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # fetch no price list

import litellm


def told(chunks):
    """A stream: its text, its tokens with their signals, the answers' signals and the usage."""
    chunks = list(chunks)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    logprobs = [choice.logprobs for choice in choices if getattr(choice, "logprobs", None)]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "tokens": [entry for each in logprobs for entry in as_json(each)["content"]],
        "introspection": [chunk.introspection for chunk in chunks if getattr(chunk, "introspection", None)],
        "usage": [chunk.usage.total_tokens for chunk in chunks if getattr(chunk, "usage", None)],
    }


def as_json(value):
    """Some versions hand on models, some plain objects."""
    return value.model_dump() if hasattr(value, "model_dump") else value


def whole(answer):
    """An answer that was not streamed."""
    return {
        "texts": [choice.message.content for choice in answer.choices],
        "finish_reasons": [choice.finish_reason for choice in answer.choices],
        "tokens": as_json(answer.choices[0].logprobs)["content"],
        "introspection": answer.introspection,
        "usage": answer.usage.total_tokens,
    }


def refusal(**changed):
    """The kind of exception and its status."""
    try:
        litellm.completion(**changed)
    except litellm.exceptions.openai.OpenAIError as problem:
        return [type(problem).__name__, problem.status_code]
    return None


async def beside(options):
    """The same from a coroutine."""
    answer = await litellm.acompletion(**options)
    return whole(answer), told([chunk async for chunk in await litellm.acompletion(**options, stream=True)])


def main(address, model, uri):
    """Ask, and print."""
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "what digit is at row 2 column 3 ?"}]
    options = {
        "model": f"openai/{model}", "api_base": f"{address}/v1", "api_key": "none", "num_retries": 0, "max_tokens": 8,
        "messages": [{"role": "user", "content": parts}], "logprobs": True, "top_logprobs": 2, "extra_body": {"introspection": True},
    }  # fmt: skip
    asynchronous, asynchronous_stream = asyncio.run(beside(options))
    found = {
        "version": version("litellm"),
        "plain": whole(litellm.completion(**options)),
        "stream": told(litellm.completion(**options, stream=True, stream_options={"include_usage": True})),
        "async": asynchronous,
        "async_stream": asynchronous_stream,
        "choices": whole(litellm.completion(**options, n=3, temperature=1.0, seed=7)),
        "too_long": refusal(**options | {"max_tokens": 10**6}),
        "no_such_model": refusal(**options | {"model": "openai/other"}),
    }
    sys.stdout.write(json.dumps(found))


main(*sys.argv[1:])

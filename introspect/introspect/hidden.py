"""Hidden states of decode steps: a baseline that costs memory, so that it is kept only where it is asked for.

An instrument beside the engine: inside the context every decode step leaves the
residual stream behind each layer, for each of its sequences. Prefill is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.attention import DecodePass, running
from introspect.errors import ModelLoadError
from introspect.lanes import Lane
from introspect.loading import LoadedModel

HiddenRows = dict[tuple[str, int], NDArray[np.float16]]
"""By request id and token index of the query: `float16 [layers, width]`."""


@contextmanager
def hidden_states(loaded: LoadedModel) -> Iterator[HiddenRows]:
    """Keep the hidden states of every decode step that is computed in this context.

    The query at `StepTrace.position` is the one whose hidden states predicted the step's token. Whoever
    decodes much clears the rows now and then.

    Args:
        loaded: the model that decodes.

    Yields:
        The rows, filled while the engine runs.

    Raises:
        ModelLoadError: the language model's layers are not where they are looked for.
    """
    layers = getattr(loaded.language_model, "layers", None)
    if layers is None or len(layers) != loaded.num_layers:
        raise ModelLoadError(f"{loaded.name}: expected a language model with {loaded.num_layers} `layers` to read hidden states from")
    rows: HiddenRows = {}

    def keeper(layer: int) -> Callable[[torch.nn.Module, Any, Any], None]:
        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            step = running()
            if not isinstance(step, DecodePass):
                return
            states = (output[0] if isinstance(output, tuple) else output)[:, -1].to(torch.float16).cpu().numpy()
            for lane in (lane for lane in step.lanes if isinstance(lane, Lane)):
                for answer, state in zip(lane.answers, states[lane.rows], strict=False):  # a lane may have idle rows
                    key = (answer.prompt.request.id, answer.position)
                    rows.setdefault(key, np.full((len(layers), len(state)), np.nan, dtype=np.float16))[layer] = state

        return keep

    hooks = [layer.register_forward_hook(keeper(number)) for number, layer in enumerate(layers)]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()

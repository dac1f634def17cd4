"""The language model's part of a decode step: from tokens to log-probabilities, attention left to the active pass.

Most of a small step's time is Python between operators: modules that call modules. Once a batch size has come
often enough, the operators of the call are recorded and from then on run one after another. They are the same
operators on the same tensors, so the results are the same to the bit; attention stays a call.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from introspect.attention import AttentionPass, active, is_ablated, running, scale_of
from introspect.loading import LoadedModel

logger = logging.getLogger(__name__)

RECORD_AFTER = 16
"""Steps of one batch size before its operators are recorded, which takes about as long as some hundred steps of a small model."""

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Forward:
    """Log-probabilities of the next token.

    Args:
        loaded: the model.
        record_after: steps of one batch size before its operators are recorded; `None` never records.
    """

    def __init__(self, loaded: LoadedModel, record_after: int | None = RECORD_AFTER) -> None:
        self._loaded, self._after = loaded, record_after if loaded.device.type == "cpu" else None
        self._embed = loaded.model.get_input_embeddings()
        inside = (module for module in loaded.language_model.modules() if module is not loaded.language_model)
        self._hooks = [hooks for module in inside for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._seen: Counter[torch.Size] = Counter()
        self._recorded: dict[torch.Size, Call] = {}

    def __call__(self, token: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `[batch, vocab]` from tokens `[batch]` and rotary positions `[batch]` or `[axes, batch]`."""
        if self._after is None or self.is_watched:
            return self.eager(token, rotary)
        call = self._recorded.get(rotary.shape)
        if call is not None:
            return call(token, rotary)
        self._seen[rotary.shape] += 1
        if self._seen[rotary.shape] > self._after:
            self._recorded[rotary.shape] = self._record(token, rotary)
        return self.eager(token, rotary)

    @property
    def is_watched(self) -> bool:
        """Whether heads are silenced or modules have hooks: a recording would pass them by."""
        return is_ablated() or any(self._hooks)

    def eager(self, token: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """The same, module by module."""
        hidden = self._loaded.language_model(
            inputs_embeds=self._embed(token[:, None]),
            # One that is prepared already: nobody builds another, nor looks on the host whether one is needed.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=token.device),
            position_ids=rotary[..., None],
            use_cache=False,
        ).last_hidden_state
        return torch.log_softmax(self._loaded.model.lm_head(hidden[:, -1]).float(), -1)

    def _record(self, token: torch.Tensor, rotary: torch.Tensor) -> Call:
        """The recorded call, once it has shown on another input that it gives what the modules give; else the modules."""
        try:
            with active(_Recording()):
                found = make_fx(lambda token, rotary: self.eager(token, rotary), pre_dispatch=True)(token, rotary)
            call = _flat(found)
            other = token.roll(1) // 2, rotary + 3
            with active(_Echo()):
                if torch.equal(call(*other), self.eager(*other)):
                    return call
            logger.warning("%s: recorded operators do not give what its modules give; it runs module by module", self._loaded.name)
        except Exception:
            logger.info("%s: its operators cannot be recorded; it runs module by module", self._loaded.name, exc_info=True)
        return self.eager


def _flat(found: torch.fx.GraphModule) -> Call:
    """A recorded call without what does nothing, its constants where Python finds them at once."""
    for node in list(found.graph.nodes):
        if node.target is torch.ops.introspect.attend.default:
            node.target = attend_now
        elif node.target is torch._C._set_grad_enabled:  # a step runs in inference mode
            found.graph.erase_node(node)
        elif node.target is torch.ops.aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.replace_all_uses_with(node.args[0])
    found.graph.eliminate_dead_code()
    found.recompile()
    for name, tensor in [*found.named_parameters(remove_duplicate=False), *found.named_buffers(remove_duplicate=False)]:
        vars(found)[name] = tensor  # a module's own look-up is slow
    forward: Call = found.forward
    return forward


@torch.library.custom_op("introspect::attend", mutates_args=())
def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float) -> torch.Tensor:
    """Stands for attention in a recording; computes nothing."""
    del k, layer, scale
    return torch.zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[3]), dtype=q.dtype, device=q.device)


def attend_now(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, scale: float) -> torch.Tensor:
    """Attention by the active pass, `[batch, queries, heads, head_dim]`."""
    current: Any = running()
    out: torch.Tensor = current.attend(layer, None, q, k, v, None, scaling=scale)
    return out


class _Recording(AttentionPass):
    """Leaves a mark where attention is called."""

    def attend(
        self, layer: int, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """See `AttentionPass`."""
        del module, mask
        mark: torch.Tensor = _attend(q, k, v, layer, scale_of(q, kwargs.get("scaling")))
        return mark


class _Echo(AttentionPass):
    """Instead of attention something that depends on all it is given."""

    def attend(
        self, layer: int, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """See `AttentionPass`."""
        del module, mask
        groups = q.shape[1] // k.shape[1]
        given = (k + v).repeat_interleave(groups, 1) * (layer + scale_of(q, kwargs.get("scaling")))
        return (q + given).transpose(1, 2)

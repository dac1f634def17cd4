"""What a language model's attention does, found out from its configuration and from one trial run.

A configuration says what a model should do; the trial sees what reaches the
attention function. Where the two leave a doubt, the model is refused: a
statistic that is nearly right would look like one that is.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from introspect.attention import active
from introspect.errors import ModelLoadError

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_UNMEASURED = {"softcap": "capped scores", "s_aux": "learned sinks", "position_bias": "a bias by distance"}
_MEDIA_TOKENS = tuple(f"{kind}_token_{how}" for kind in ("image", "video", "audio") for how in ("id", "index"))


def image_token_of(config: Any) -> int:
    """The id of the image placeholder.

    Raises:
        ModelLoadError: the configuration names none.
    """
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    raise ModelLoadError(
        f"{config.model_type}: the configuration names no image token (image_token_id or image_token_index), "
        "so image entries cannot be told from text"
    )


def refuse_unsupported(config: Any) -> None:
    """Refuse what the configuration alone shows to be out of reach, before any weight is read.

    Raises:
        ModelLoadError: with the reason.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(f"{kind}: an encoder-decoder; its answer reaches the image through cross-attention, which cannot be measured")
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None):
        raise ModelLoadError(f"{kind}: images in cross-attention layers cannot be measured")
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    if others:
        raise ModelLoadError(f"{kind}: only layers of full and of sliding attention can be measured, this model has {', '.join(others)}")
    if getattr(text, "use_bidirectional_attention", None):
        raise ModelLoadError(f"{kind}: text tokens that attend to later ones cannot be decoded from a cache")
    image_token_of(config)


@dataclass
class _TrialPass:
    """Plain attention that notes what each layer's call looked like."""

    heads: dict[int, tuple[int, int]] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    problems: set[str] = field(default_factory=set)

    def attend(
        self,
        layer: int,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """See `AttentionPass`."""
        if layer in self.heads:
            self.problems.add("a layer that attends twice")
        if k.shape[-1] != v.shape[-1]:
            self.problems.add(f"keys of {k.shape[-1]} and values of {v.shape[-1]} numbers")
        self.problems |= {why for name, why in _UNMEASURED.items() if kwargs.get(name) is not None}
        self.heads[layer] = (q.shape[1], k.shape[1])
        self.windows[layer] = kwargs.get("sliding_window")
        known = {name: value for name, value in kwargs.items() if name not in _UNMEASURED}
        out: torch.Tensor = sdpa_attention_forward(module, q, k, v, mask, **known)[0]
        return out


@torch.inference_mode()
def layer_windows(model: Any, *, num_layers: int, num_heads: int, num_kv_heads: int, max_context: int) -> tuple[int | None, ...]:
    """Run three text tokens, and tell each layer's attention window from what happened.

    Args:
        model: with the runtime's attention set on its language model.
        num_layers: of the language model.
        num_heads: query heads of each layer.
        num_kv_heads: KV heads of each layer.
        max_context: longest sequence; a window of that size or more is none.

    Returns:
        For each layer `None` where a query attends to everything before it, or how many
        entries it attends to, itself included.

    Raises:
        ModelLoadError: the language model does not do what can be measured.
    """
    kind = model.config.model_type
    language_model_of(model)
    if not hasattr(model, "lm_head"):
        raise ModelLoadError(f"{kind}: expected the model's parts under `model` and `lm_head`; this class is built otherwise")
    token_ids = torch.tensor([_text_tokens(model.config)], device=model.device)
    trial = _TrialPass()
    with active(trial):
        hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state
    if trial.problems:
        raise ModelLoadError(f"{kind}: attention with {' and '.join(sorted(trial.problems))} cannot be measured")
    expected = dict.fromkeys(range(num_layers), (num_heads, num_kv_heads))
    if trial.heads != expected:
        missing = sorted(set(expected) - set(trial.heads))
        what = (
            f"layers {missing} do" if missing else f"heads of {sorted(set(trial.heads.values()))} instead of {num_heads, num_kv_heads} do"
        )
        raise ModelLoadError(f"{kind}: {what} not go through the attention interface of transformers, so they cannot be measured")
    if not torch.allclose(model.lm_head(hidden), model(input_ids=token_ids, use_cache=False).logits, atol=1e-3, rtol=1e-3):
        raise ModelLoadError(f"{kind}: the model changes its logits after its head, so that log-probabilities would be wrong")
    kinds = kinds_input_of(model)
    if kinds is not None:
        given = model.model(input_ids=token_ids, use_cache=False, **{kinds: torch.zeros_like(token_ids)}).last_hidden_state
        if not torch.allclose(hidden, given, atol=1e-3, rtol=1e-3):
            raise ModelLoadError(f"{kind}: prompt tokens attend to later ones (a prefix mask), so the last one cannot be decoded by itself")
    windows = tuple(None if w is None or w >= max_context else int(w) for w in (trial.windows[i] for i in range(num_layers)))
    if None not in windows:
        raise ModelLoadError(f"{kind}: every layer has a sliding window of {max(w or 0 for w in windows)}: there is no cache to budget")
    return windows


def kinds_input_of(model: Any) -> str | None:
    """The input that marks image tokens for the attention mask, where the model has one."""
    return "token_type_ids" if "token_type_ids" in inspect.signature(model.model.forward).parameters else None


def language_model_of(model: Any) -> torch.nn.Module:
    """The language model inside a multimodal one, without its head.

    Raises:
        ModelLoadError: it is not where transformers' classes keep it.
    """
    base = getattr(model, "model", None)
    for name in ("language_model", "text_model"):
        found = getattr(base, name, None)
        if isinstance(found, torch.nn.Module):
            return found
    raise ModelLoadError(f"{model.config.model_type}: expected a language model under `model.language_model` or `model.text_model`")


def _text_tokens(config: Any) -> list[int]:
    """Three token ids that stand for no picture, video or sound."""
    media = {getattr(config, name, None) for name in _MEDIA_TOKENS}
    return [token for token in range(3 + len(media)) if token not in media][:3]

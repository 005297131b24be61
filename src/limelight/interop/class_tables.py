"""Models of transformers that look their attention up in a table of classes: each table gets an entry of ours.

A class of ours is one of theirs with another attention: projections, positions and caches stay what they are. They are
made when `register()` is called, for the tables that this release of transformers has.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from limelight.masks import Mask, band

Attention = Callable[..., Any]
"""`interop.transformers.attention`."""
Table = dict[str, Any]
Maker = Callable[[Table, Attention], Any]


def fill_tables(name: str, attention: Attention) -> None:
    """Put an entry of that name, whose classes attend by `attention`, into every table."""
    for place, table_name, make in _TABLES:
        table: Table | None = getattr(importlib.import_module(f"transformers.models.{place}"), table_name, None)
        if table is not None and name not in table:
            made = table[name] = make(table, attention)
            # Found by its name when a model is unpickled, after `register()`.
            made.__module__, made.__qualname__ = __name__, f"{table_name}_ENTRY"
            globals()[made.__qualname__] = made


class _Rerouted(TorchFunctionMode):
    """Torch's attention is ours; `view` is that of the last call, if views are wanted."""

    def __init__(self, module: Any, attention: Attention, *, views: bool) -> None:
        super().__init__()
        self._module, self._attention, self._views = module, attention, views
        self.view: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        options = {"is_causal": is_causal, "output_attentions": self._views}
        output, self.view = self._attention(self._module, query, key, value, attn_mask, dropout_p, scale, **options)
        return output.transpose(1, 2)


def _without_attentions(base: Any, module: Any, args: Any, kwargs: Any) -> tuple[inspect.BoundArguments, bool]:
    """The arguments of a call of the class' `forward`, not asking for the weights, and whether they did."""
    bound = inspect.signature(base.forward).bind(module, *args, **kwargs)
    asked = bool(bound.arguments.get("output_attentions", False))
    if asked:
        bound.arguments["output_attentions"] = False
    return bound, asked


def _on_torchs(table: Table, attention: Attention) -> Any:
    """The class that calls torch's attention, with ours in its place."""
    base = table["sdpa"]

    class OnLimelight(base):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            bound, views = _without_attentions(base, self, args, kwargs)
            with _Rerouted(self, attention, views=views) as ours:
                output, *_ = super().forward(*bound.args[1:], **bound.kwargs)
            return output, ours.view

    return OnLimelight


def _falcon(table: Table, attention: Attention) -> Any:
    """Falcon's one class asks its configuration whether to call torch's attention."""

    class OnLimelight(_on_torchs(table, attention)):
        def __init__(self, config: Any, layer_idx: int | None = None) -> None:
            super().__init__(config, layer_idx)
            self.config = _OnSdpa(config)

    return OnLimelight


class _OnSdpa:
    """A configuration that says "sdpa"; all else it says is said by the one it stands for."""

    _attn_implementation = "sdpa"

    def __init__(self, config: Any) -> None:
        self.of = config

    def __getattr__(self, name: str) -> Any:
        if name == "of":  # of one that is being copied, and has nothing yet
            raise AttributeError(name)
        return getattr(self.of, name)


def _by_method(
    scale: Callable[[Any], float], hidden: Callable[[Any, int, int], Mask | None] = lambda *_: None
) -> Maker:
    """For a class whose method `_attn` is its attention; `hidden(module, T, S)` is what it hides besides the mask."""

    def make(table: Table, attention: Attention) -> Any:
        base = table["eager"]

        class OnLimelight(base):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                _, self._views = _without_attentions(base, self, args, kwargs)
                return super().forward(*args, **kwargs)

            def _attn(
                self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
            ) -> tuple[Tensor, Any]:
                dropout = self.attn_dropout.p if self.training else 0.0
                also = hidden(self, query.shape[-2], key.shape[-2])
                options = {"is_causal": False, "also": also, "output_attentions": self._views}
                output, view = attention(self, query, key, value, attention_mask, dropout, scale(self), **options)
                return output.transpose(1, 2), view

        return OnLimelight

    return make


def _gpt_neo_hides(module: Any, queries: int, keys: int) -> Mask:
    """The future, and in local layers what lies a window back; sequences end together."""
    ends = keys - queries
    before = module.config.window_size - 1 if module.attention_type == "local" else keys
    return band(ends - before, ends)


def _bark_hides(module: Any, queries: int, keys: int) -> Mask | None:
    return band(high=keys - queries) if module.is_causal else None


def _git(table: Table, attention: Attention) -> Any:
    base = table["eager"]

    class OnLimelight(base):
        def forward(
            self,
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            past_key_values: Any = None,
            **_: Any,
        ) -> tuple[Tensor, Any]:
            shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
            query, key, value = (
                layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            dropout = self.dropout.p if self.training else 0.0
            output, view = attention(self, query, key, value, attention_mask, dropout, is_causal=False)
            return output.flatten(-2), view

    return OnLimelight


_TABLES: tuple[tuple[str, str, Maker], ...] = (
    ("bark.modeling_bark", "BARK_ATTENTION_CLASSES", _by_method(lambda one: one.head_dim**-0.5, _bark_hides)),
    ("data2vec.modeling_data2vec_vision", "DATA2VEC_VISION_SELF_ATTENTION_CLASSES", _on_torchs),
    ("falcon.modeling_falcon", "FALCON_ATTENTION_CLASSES", _falcon),
    ("git.modeling_git", "GIT_SELF_ATTENTION_CLASSES", _git),
    ("gpt_neo.modeling_gpt_neo", "GPT_NEO_ATTENTION_CLASSES", _by_method(lambda _: 1.0, _gpt_neo_hides)),
    ("gptj.modeling_gptj", "GPTJ_ATTENTION_CLASSES", _by_method(lambda one: one.head_dim**-0.5)),
    ("sam.modeling_sam", "SAM_VISION_ATTENTION_CLASSES", _on_torchs),
    ("sam_hq.modeling_sam_hq", "SAM_HQ_VISION_ATTENTION_CLASSES", _on_torchs),
)

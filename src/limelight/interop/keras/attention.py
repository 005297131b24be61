"""keras.layers' Attention and AdditiveAttention, whose attention is ours."""

from __future__ import annotations

from typing import Any

import keras

from limelight.interop.keras import pairwise, shapes, told
from limelight.interop.keras.operations import ops
from limelight.interop.keras.scores import VIEW, changed, refuse_odd, refuse_overridden, refuse_symbolic, wanted

_OWN = ("_calculate_scores", "_apply_scores", "_calculate_score_mask")
"""What a subclass may have changed about Keras' computation."""


class _Ours:
    """How a call of either layer reaches `told.attention`."""

    _theirs: Any
    scale: Any
    dropout: float

    def call(
        self: Any,
        inputs: Any,
        mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        return_attention_view: bool = False,
    ) -> Any:
        """As Keras' layer; with `return_attention_view` (output, view)."""
        want = wanted(return_attention_scores, return_attention_view)
        self._validate_inputs(inputs=inputs, mask=mask)
        query, value = inputs[:2]
        key = inputs[2] if len(inputs) > 2 else value
        query_mask, value_mask = mask[:2] if mask else (None, None)
        home = next(one for one in type(self).__mro__ if one in (Attention, AdditiveAttention))
        own = changed(type(self), home, _OWN)
        odd = _odd(query, key, value, query_mask, value_mask, use_causal_mask)
        if training and self.dropout > 1:
            odd = odd or f"dropout must be in [0, 1]; it is {self.dropout}."
        if own:
            refuse_overridden(return_attention_view, type(self).__name__)
        if odd:
            refuse_odd(return_attention_view, odd)
        if own or odd or (want and want != VIEW):
            with shapes.left_to_keras(odd):
                return self._theirs.call(self, inputs, mask, training, bool(want), use_causal_mask)
        allowed = told.described(None, query_mask, value_mask, use_causal_mask=use_causal_mask)
        seed = self.seed_generator.next() if training and self.dropout > 0 else None
        query, key, value = _aligned(query, key, value)
        prepared, key, vector = self._prepared(query, key)
        flat = tuple(told.one_head(one) for one in (prepared, key, value))
        output, view = told.attention(1.0, self.dropout, flat, allowed, seed, want, vector)
        output = _as_matmul(ops.reshape(output, (*ops.shape(query)[:-1], value.shape[-1])))
        return (output, view) if want else output

    def compute_output_spec(self: Any, *args: Any, return_attention_view: bool = False, **kwargs: Any) -> Any:
        """What the result looks like."""
        refuse_symbolic(return_attention_view)
        return self._theirs.compute_output_spec(self, *args, **kwargs)

    def _calculate_scores(self: Any, query: Any, key: Any) -> Any:
        """Dense scores; of additive ones without Keras' tensor of B x Tq x Tv x width."""
        prepared, keys, vector = self._prepared(query, key)
        if (
            vector is None
            or shapes.odd_inputs(query, key, key)
            or not len(query.shape) == len(key.shape) == 3
            or query.shape[0] != key.shape[0]
            or 0 in (*query.shape, *key.shape)
        ):
            return self._theirs._calculate_scores(self, query, key)
        return pairwise.scores(prepared, keys, vector)

    def _prepared(self, query: Any, key: Any) -> tuple[Any, Any, Any]:
        """Query and key as the score takes them, and the vector of additive scores."""
        raise NotImplementedError


def _odd(query: Any, key: Any, value: Any, query_mask: Any, value_mask: Any, causal: bool) -> str | None:
    """What is odd about a call; None if it is for us."""
    odd = shapes.odd_inputs(query, key, value)
    if odd is not None or (query_mask is None and value_mask is None and not causal):
        return odd
    if len(query.shape) != 3 and not (len(query.shape) > 3 and query_mask is None and value_mask is None):
        return f"masks are for inputs of three axes; the shape of query is {list(query.shape)}."
    return shapes.odd_vector("the mask of query", query_mask, query.shape[1], query, value) or shapes.odd_vector(
        "the mask of value", value_mask, value.shape[1], query, value
    )


def _as_matmul(output: Any) -> Any:
    """The output in the dtype of Keras' `ops.matmul`, which on torch is float32 for float64 too."""
    dtype = keras.backend.standardize_dtype(output.dtype)
    narrow = keras.backend.backend() == "torch" and dtype == "float64"
    return ops.cast(output, "float32") if narrow else output


def _aligned(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """The three with the axes that they broadcast to."""
    lead = shapes.joined(*(one.shape[:-2] for one in (query, key, value)))
    if lead is None or None in lead:
        return query, key, value
    return tuple(shapes.widened(one, lead, 2) for one in (query, key, value))


@keras.saving.register_keras_serializable(package="limelight")
class Attention(_Ours, keras.layers.Attention):
    """`keras.layers.Attention` in linear memory, and with `return_attention_view=True` visible.

    softmax(scale q·k) v, or with `score_mode="concat"` softmax(c Σ tanh(scale (q + k))) v: Luong, Pham, Manning 2015
    (arXiv 1508.04025). Constructor, weights, masks, configuration and errors are those of Keras' layer, of which it is
    a subclass. It differs in this:

    - `call` also takes `return_attention_view`: the result is (output, `limelight.AttentionView` [B, 1, Tq, Tv]), in
      torch's tensors, with the weights before dropout; eager only;
    - a query that may attend to nothing gives 0, where Keras, which subtracts 1e9 from what is masked, gives it a mean
      of the values;
    - dropout drops other weights than Keras' does for the same seed, unless scores are returned.

    Dense scores, subclasses with scores of their own, and masks for inputs of more than three axes take Keras' own
    computation.

    Errors: those of Keras; ArgumentError (a ValueError) for a view inside of a graph, or together with scores.

    Example: `output, view = Attention()([query, value], return_attention_view=True)`.
    """

    _theirs = keras.layers.Attention

    def _prepared(self, query: Any, key: Any) -> tuple[Any, Any, Any]:
        if self.scale is not None:
            query = ops.multiply(query, self.scale)
        if self.score_mode == "dot":
            return query, key, None
        if self.scale is not None:
            key = ops.multiply(key, self.scale)
        ones = ops.ones((query.shape[-1],), dtype=query.dtype)
        return query, key, ops.multiply(ones, self.concat_score_weight)


@keras.saving.register_keras_serializable(package="limelight")
class AdditiveAttention(_Ours, keras.layers.AdditiveAttention):
    """`keras.layers.AdditiveAttention` in linear memory, and with `return_attention_view=True` visible.

    softmax(Σ scale · tanh(q + k)) v, the score of Bahdanau, Cho, Bengio 2014 (arXiv 1409.0473, appendix A.1.2) of what
    is projected already. Keras makes a tensor of B x Tq x Tv x width for it, here nothing is larger than the inputs. It
    differs from Keras' layer as `Attention` does.

    Errors: those of Keras; ArgumentError (a ValueError) for a view inside of a graph, or together with scores.

    Example: `output, view = AdditiveAttention()([query, value], return_attention_view=True)`.
    """

    _theirs = keras.layers.AdditiveAttention

    def _prepared(self, query: Any, key: Any) -> tuple[Any, Any, Any]:
        if self.scale is None:
            return query, key, ops.ones((query.shape[-1],), dtype=query.dtype)
        return query, key, ops.multiply(ops.ones((query.shape[-1],), dtype=query.dtype), self.scale)

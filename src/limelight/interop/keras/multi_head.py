"""keras.layers' MultiHeadAttention and GroupQueryAttention, whose attention is ours."""

from __future__ import annotations

from typing import Any

import keras

from limelight.interop.keras import shapes, told
from limelight.interop.keras.operations import ops
from limelight.interop.keras.problem import Allowed
from limelight.interop.keras.scores import VIEW, changed, refuse_odd, refuse_overridden, refuse_symbolic, wanted

_MASKS = ("_compute_causal_mask", "_compute_sliding_window_mask")
_OWN = ("_compute_attention", "_compute_attention_mask", "_masked_softmax", *_MASKS)
"""What a subclass may have changed about Keras' computation."""


class _WithoutFlash:
    """Keras refuses dropout and scores where it is to use flash attention, which means nothing here: it never is."""

    @property
    def _flash_attention(self) -> bool:
        return False

    @_flash_attention.setter
    def _flash_attention(self, value: Any) -> None:
        """Whatever the constructor was told."""


@keras.saving.register_keras_serializable(package="limelight")
class MultiHeadAttention(_WithoutFlash, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` in linear memory, and with `return_attention_view=True` visible.

    softmax(q k / sqrt(key_dim), over the keys that the masks allow) v, for each head (Vaswani et al. 2017, arXiv
    1706.03762, section 3.2). Constructor, weights, masks, configuration and errors are those of Keras' layer, of which
    it is a subclass. It differs in this:

    - `call` also takes `return_attention_view`: the result is (output, `limelight.AttentionView` [B, N, T, S]), in
      torch's tensors; eager only;
    - `return_attention_scores=True`, masks, `sliding_window` and dropout work whatever `flash_attention` says, which
      has no meaning here;
    - no (B, T, S) mask is made: a query that may attend to nothing gets 0 always, where Keras' fused path gives it the
      mean of the values;
    - dropout drops other weights than Keras' does for the same seed, unless scores are returned;
    - the symbolic shape of the scores is (B, N, T, S), where Keras has (B, N, T, T).

    Inputs of more than three axes with masks, and dense scores, take Keras' own computation.

    Errors: those of Keras; ArgumentError (a ValueError) for a view inside of a graph, or together with scores.

    Example: `output, view = MultiHeadAttention(8, 64)(x, x, use_causal_mask=True, return_attention_view=True)`.
    """

    def call(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        return_attention_view: bool = False,
    ) -> Any:
        """As Keras' layer; with `return_attention_view` (output, view)."""
        return super().call(
            query,
            value,
            key,
            query_mask,
            value_mask,
            key_mask,
            attention_mask,
            wanted(return_attention_scores, return_attention_view),
            training,
            use_causal_mask,
        )

    def compute_output_spec(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        return_attention_view: bool = False,
    ) -> Any:
        """What the result looks like; the scores are (B, N, T, S)."""
        refuse_symbolic(return_attention_view)
        output = super().compute_output_spec(query, value, key)
        if not return_attention_scores:
            return output
        shape = (query.shape[0], self._num_heads, query.shape[1], value.shape[1])
        return output, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def _compute_attention_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query: Any, value: Any, **masks: Any
    ) -> Any:
        own = changed(type(self), MultiHeadAttention, ("_compute_attention", "_masked_softmax", *_MASKS))
        if own or len(query.shape) != 3:
            return super()._compute_attention_mask(query, value, **masks)
        odd = told.odd_masks(query, value, **masks)
        return told.described(self._sliding_window, **masks) if odd is None else Allowed(odd=odd, masks=masks)

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: Any = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """As in Keras' layer; `attention_mask` may be a description instead of a tensor."""
        # A subclass may hand over arrays.
        query, key, value = (ops.convert_to_tensor(one) for one in (query, key, value))
        want, axes, given = return_attention_scores, tuple(self._attention_axes or ()), query
        flat = len(query.shape) == 4
        allowed = told.as_allowed(attention_mask, use_causal_mask)
        odd = allowed.odd or told.odd_heads(query, key, value, allowed.pairs, axes)
        own = changed(type(self), MultiHeadAttention, ("_masked_softmax",))
        if odd:
            refuse_odd(want == VIEW, odd)
        if own:
            refuse_overridden(want == VIEW, type(self).__name__)
        if own or odd or (want != VIEW and (want or (allowed.anything and not flat))):
            never = odd is not None and shapes.unequal(key, value)
            with shapes.left_to_keras(odd, never=never):
                mask = told.multiplied_out(super()._compute_attention_mask, query, value, attention_mask)
                return super()._compute_attention(query, key, value, mask, training, want, use_causal_mask)
        inputs = (query, key, value) if flat else tuple(told.folded(one, axes) for one in (query, key, value))
        seed = self._dropout_layer.seed_generator.next() if training and self._dropout > 0 else None
        output, view = told.attention(self._inverse_sqrt_key_dim, self._dropout, inputs, allowed, seed, want)
        return (output if flat else told.unfolded(output, given, axes)), view


@keras.saving.register_keras_serializable(package="limelight")
class GroupedQueryAttention(_WithoutFlash, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` in linear memory, and with `return_attention_view=True` visible.

    Query head u meets key head u // (num_query_heads / num_key_value_heads) (Ainslie et al. 2023, arXiv 2305.13245);
    the keys are not repeated. It differs from Keras' layer as `MultiHeadAttention` does.

    Errors: those of Keras; ArgumentError (a ValueError) for a view inside of a graph, or together with scores.

    Example: `GroupQueryAttention(64, 8, 2)(x, x, use_causal_mask=True)`.
    """

    def call(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        return_attention_view: bool = False,
    ) -> Any:
        """As Keras' layer; with `return_attention_view` (output, view)."""
        want = wanted(return_attention_scores, return_attention_view)
        theirs = keras.layers.GroupQueryAttention
        masks = {"query_mask": query_mask, "value_mask": value_mask, "key_mask": key_mask}
        masks |= {"attention_mask": attention_mask, "use_causal_mask": use_causal_mask}
        own = changed(type(self), theirs, _OWN)
        if own:
            refuse_overridden(return_attention_view, type(self).__name__)
        key = value if key is None else key
        odd = None if own else told.odd_grouped(query, key, value, self.num_query_heads, masks)
        if odd:
            refuse_odd(return_attention_view, odd)
        if own or odd or (want and want != VIEW):
            never = odd is not None and shapes.unequal(key, value)
            with shapes.left_to_keras(odd, never=never):
                return super().call(query, value, key, **masks, training=training, return_attention_scores=want)
        allowed = told.described(self.sliding_window, **masks)
        gate = self._gate_dense(query) if self.use_gate else None
        inputs = self._query_dense(query), self._key_dense(key), self._value_dense(value)
        seed = self._dropout_layer.seed_generator.next() if training and self.dropout > 0 else None
        output, view = told.attention(self._inverse_sqrt_head_dim, self.dropout, inputs, allowed, seed, want)
        output = self._output_dense(output if gate is None else ops.multiply(output, gate))
        return (output, view) if want else output

    def compute_output_spec(self, *args: Any, return_attention_view: bool = False, **kwargs: Any) -> Any:
        """What the result looks like."""
        refuse_symbolic(return_attention_view)
        return super().compute_output_spec(*args, **kwargs)


GroupQueryAttention = GroupedQueryAttention
"""As Keras exports it; the class keeps the name that Keras' files know it by."""

"""What a Keras layer was told about masks, in our words, without a tensor of T x S that the caller did not make."""

from __future__ import annotations

from functools import reduce
from operator import and_

import torch
from torch import Tensor

from limelight.interop.keras.problem import Settings, Tensors
from limelight.interop.torch_attention import padding_mask
from limelight.masks import Mask, band, causal, dense, segments


def mask_of(settings: Settings, tensors: Tensors) -> Mask | None:
    """The mask that settings and torch tensors stand for; None if they allow everything."""
    parts: list[Mask] = []
    if settings.causal:
        parts.append(causal("start"))
    if settings.window is not None:
        parts.append(band(1 - settings.window, settings.window - 1))
    query, key, pairs = tensors.query_mask, tensors.key_mask, tensors.pairs
    if query is not None and not bool(query.all()):
        # A query that is not there has an id that no key has.
        parts.append(segments(query.long(), query.new_ones(tensors.key.shape[:2], dtype=torch.int64)))
    if key is not None and not bool(key.all()):
        if pairs is None:
            parts.extend(one for one in (padding_mask(key),) if one is not None)
        else:
            pairs = _both(pairs, key)
    if pairs is not None:
        parts.append(dense(pairs))
    return reduce(and_, parts) if parts else None


def _both(pairs: Tensor, key: Tensor) -> Tensor:
    """A pattern of the caller's, less the keys that are not there: as large as his."""
    return pairs & key[:, None, None, :]

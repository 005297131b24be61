"""One attention problem of a Keras layer: what is fixed while a graph is traced, and the tensors, in Keras' layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Settings:
    """What is no tensor. scale: of dot scores (additive ones have a vector); window: keys j with |i - j| < w."""

    scale: float = 1.0
    causal: bool = False
    window: int | None = None
    dropout: float = 0.0


class Tensors(NamedTuple):
    """Tensors of whichever library Keras runs on; None for what is not there.

    query [B, T, H, D], key [B, S, G, D], value [B, S, G, E]; vector [D] for additive scores v·tanh(q + k). Allowed is
    what all of these allow: query_mask bool [B, T], key_mask bool [B, S], pairs bool, broadcasts to [B, H, T, S].
    seed: two integers, for dropout.
    """

    query: Any
    key: Any
    value: Any
    vector: Any = None
    query_mask: Any = None
    key_mask: Any = None
    pairs: Any = None
    seed: Any = None


DIFFERENTIABLE = 4
"""How many of `Tensors`, the first, gradients flow to."""


@dataclass(frozen=True)
class Allowed:
    """Who may attend to whom, as a layer was told: in place of the (B, T, S) mask that Keras would multiply out.

    odd: what is odd about the masks of a call, which are `masks` then, left to Keras.
    """

    query_mask: Any = None
    key_mask: Any = None
    pairs: Any = None
    causal: bool = False
    window: int | None = None
    odd: str | None = None
    masks: dict[str, Any] | None = None

    @property
    def anything(self) -> bool:
        """Whether there is any mask."""
        tensors = (self.query_mask, self.key_mask, self.pairs)
        return self.causal or self.window is not None or any(one is not None for one in tensors)

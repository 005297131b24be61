"""The attention layers of Keras 3 on our kernels: put `limelight.interop.keras` where `keras.layers` was.

`MultiHeadAttention`, `GroupQueryAttention`, `Attention` and `AdditiveAttention` are subclasses of Keras' layers, with
their constructors, calls, masks, weights and configurations; Keras may run on TensorFlow, JAX or torch. `convert`
exchanges the layers of a model that is there, `revert` puts Keras' own back, `computed` chooses how they compute.

Errors: ImportError where Keras is not installed (`pip install 'limelight[keras]'`).
"""

from limelight.interop.keras.attention import AdditiveAttention, Attention
from limelight.interop.keras.compute import computed
from limelight.interop.keras.multi_head import GroupedQueryAttention, GroupQueryAttention, MultiHeadAttention
from limelight.interop.keras.swap import convert, revert

__all__ = [
    "AdditiveAttention",
    "Attention",
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "MultiHeadAttention",
    "computed",
    "convert",
    "revert",
]

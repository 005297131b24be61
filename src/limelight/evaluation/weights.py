"""One check for every function that takes an attention matrix from a caller."""

from collections.abc import Sequence

import numpy as np
import torch

from limelight.errors import ArgumentError

# One attention matrix: a tensor of any float dtype on any device, an array, or nested sequences of numbers.
Weights = torch.Tensor | np.ndarray | Sequence[Sequence[float]]

# Rounding of half precision may push a sum of weights above 1 by this much; anything above is not a weight.
_TOLERANCE = 1e-2


def weight_matrix(weights: Weights) -> np.ndarray:
    """The attention matrix as float64 `[T, S]`: a row per target token, a column per source token, values in [0, 1].

    Values within rounding of the interval (1e-2, as in bfloat16) are clipped to it.

    Raises:
        ArgumentError: not two axes, an axis of length 0, or a value that is not a number in [0, 1].

    """
    if isinstance(weights, torch.Tensor):
        array = weights.detach().to(device="cpu", dtype=torch.float64).numpy()
    else:
        try:
            array = np.asarray(weights, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"weights: must be a matrix of numbers [target, source] ({error})") from None
    if array.ndim != 2:
        raise ArgumentError(
            f"weights: must have 2 axes [target, source], got shape {list(array.shape)}; "
            "take one sentence and one head, as in weights[0, 0], or the mean over heads"
        )
    if 0 in array.shape:
        raise ArgumentError(f"weights: needs at least one target and one source token, got shape {list(array.shape)}")
    wrong = ~((array >= -_TOLERANCE) & (array <= 1 + _TOLERANCE))
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise ArgumentError(
            f"weights: must lie in [0, 1], got {array[row, column]} at [{row}, {column}]; "
            "give weights after the softmax, not scores"
        )
    return np.clip(array, 0.0, 1.0)

"""NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

from limelight.errors import ArgumentError

Array = TypeVar("Array", torch.Tensor, np.ndarray)


def is_array(value: object) -> bool:
    """Whether it is a NumPy array."""
    return isinstance(value, np.ndarray)


def tensors_of(**arrays: Any) -> list[Any]:
    """The arrays as tensors that share their memory; a read-only one is copied, and what is None or no array stays.

    Errors: ArgumentError for a tensor among arrays, and for a dtype that torch does not have.
    """
    return [_tensor(name, array) for name, array in arrays.items()]


def _tensor(name: str, array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        raise ArgumentError(
            f"{name} must be a NumPy array where query is one; it is a torch.Tensor. "
            f"Use torch.from_numpy(query) for tensors throughout."
        )
    if not isinstance(array, np.ndarray):
        return array
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name}: torch cannot take an array of dtype {array.dtype} and strides {array.strides}: {error}. "
            f"Use numpy.ascontiguousarray({name}, numpy.float32)."
        ) from error

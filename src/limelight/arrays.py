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
    """The arrays as tensors that share their memory, also read-only ones; what is None or no array stays.

    Errors: ArgumentError for a tensor among arrays, and for a dtype that torch does not have.
    """
    return [_tensor(name, array) for name, array in arrays.items()]


def as_tensor(value: Any) -> Any:
    """An array as a tensor that shares its memory; anything else, and an array that torch does not take, stays."""
    if not is_array(value):
        return value
    try:
        return shared(value)
    except (TypeError, ValueError):
        return value


def shared(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the memory of the array, which nobody writes into. Errors: those of `torch.from_numpy`."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))


class _Writeable:
    """A read-only array, passed off as one that may be written, which torch insists on."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _tensor(name: str, array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        raise ArgumentError(
            f"{name} must be a NumPy array where query is one; it is a torch.Tensor. "
            f"Use torch.from_numpy(query) for tensors throughout."
        )
    if not isinstance(array, np.ndarray):
        return array
    try:
        return shared(array)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name}: torch cannot take an array of dtype {array.dtype} and strides {array.strides}: {error}. "
            f"Use numpy.ascontiguousarray({name}, numpy.float32)."
        ) from error

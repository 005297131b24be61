"""What NumPy and torch ask of an array, for arrays that are computed when they are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor


class VirtualArray(ABC):
    """Interface of the views: `np.asarray(view)` and `torch.as_tensor(view)` give `dense()`, under its guard."""

    __slots__ = ()

    # NumPy leaves `array @ view` to the view instead of making an array of it first.
    __array_ufunc__ = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the view computes."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @abstractmethod
    def dense(self) -> Tensor:
        """The whole array; DenseSizeError above 1 GiB."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("copy=False: a view is computed when it is asked for, so that the array is always new")
        return np.asarray(self.dense().detach().cpu().numpy(), dtype=dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self.dense().detach().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return torch.empty(0, device=self.device).__dlpack_device__()

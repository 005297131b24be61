"""keras.ops, untyped: their annotations say that any result may be None."""

from typing import Any

import keras

ops: Any = keras.ops

"""What others warn of, which is an error elsewhere."""

import keras


def pytest_configure(config):
    for ignored in (
        # Keras' variables under NumPy 2, on torch.
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
        # Keras' GroupQueryAttention leaves masks on what it projects.
        "ignore:Layer '.*' .of type EinsumDense. was passed an input with a mask:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)


# JAX compiles every case for a second or two: there it is the widest cases, which the other backends take apart.
_NARROW = (
    *("causal", "lengths", "gaps", "two vectors", "pattern", "pattern for all", "keys"),
    *("scaled", "concat", "unscaled additive", "options0", "options1", "None", "axes1", "-2"),
)


def pytest_collection_modifyitems(config, items):
    if keras.backend.backend() != "jax":
        return
    left = [item for item in items if _narrow(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _narrow(item):
    words = item.name.partition("[")[2].rstrip("]").split("-")
    both = item.name.startswith("test_scores_and_view") and "none" in words
    return both or any(word in _NARROW for word in words)

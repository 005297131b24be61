"""What others warn of, which is an error elsewhere."""

import os
from pathlib import Path


def pytest_configure(config):
    for ignored in (
        # Keras' variables under NumPy 2, on torch.
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
        # Keras' GroupQueryAttention leaves masks on what it projects.
        "ignore:Layer '.*' .of type EinsumDense. was passed an input with a mask:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)


# torch takes every case. TensorFlow and JAX, which compile each for a second or two, take the widest: what torch takes
# apart means the same there.
_NARROW = (
    *("causal", "lengths", "gaps", "two vectors", "pattern", "pattern for all", "keys"),
    *("scaled", "concat", "unscaled additive", "options0", "options1", "None", "axes1"),
)
_LEFT_TO_OTHERS = {
    "tensorflow": ("test_masks_of_a_subclass", "test_a_dropout_of_1", "test_scores_read_a_mask"),
    "jax": (
        *("test_scores_and_view[GroupQuery", "test_scores_and_view[dot", "test_scores_and_view[scaled"),
        *("test_two_inputs", "none]", "test_options", "test_attention_axes", "test_nan_behind"),
        *("test_a_sequence_without_keys_gives_nothing[dot", "test_a_sequence_without_keys_gives_nothing[scaled"),
        *("test_value_and_output_widths", "test_own_computation", "test_own_scores", "test_conversion", "test_weight"),
        *("test_dtypes[GroupQueryAttention", "float16", "test_rows_without_keys_give_nothing[Group"),
        *("test_dropout[Group", "test_masks_of_keras_are_found[Group", "test_scores_and_dropout"),
        *("test_masks_of_a_subclass", "test_a_dropout_of_1", "test_scores_read_a_mask", "test_a_saved_model_goes_on"),
        *("test_nothing_of_queries_times_keys[AdditiveAttention-blocks", "test_symbolic", "test_configurations"),
    ),
}


def pytest_collection_modifyitems(config, items):
    # As test_keras.py sets it; Keras is not to be imported where these files are only passed by.
    others = _LEFT_TO_OTHERS.get(os.environ.get("KERAS_BACKEND", ""))
    if others is None or config.getoption("--all-cases", False):
        return
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    left = [item for item in here if _narrow(item) or any(one in item.name for one in others)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _narrow(item):
    words = item.name.partition("[")[2].rstrip("]").split("-")
    return any(word in _NARROW for word in words)


def pytest_addoption(parser):
    parser.addoption("--all-cases", action="store_true", help="take every case on TensorFlow and JAX too")

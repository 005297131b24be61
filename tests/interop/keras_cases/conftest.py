"""What others warn of, which is an error elsewhere."""


def pytest_configure(config):
    for ignored in (
        # Keras' variables under NumPy 2, on torch.
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
        # Keras' GroupQueryAttention leaves masks on what it projects.
        "ignore:Layer '.*' .of type EinsumDense. was passed an input with a mask:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)

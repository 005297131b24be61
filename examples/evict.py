"""A cache of keys and values of bounded size: what may be evicted, told by the attention that each entry received.

    python examples/evict.py [TEXT] [UPDATES] [CONTEXT]

Trains a small Llama on characters (TEXT: a UTF-8 file; "-" or nothing: phrases made here), then reads held-out text
step by step with a cache that is cut to a size after each step, or once after the prompt, and prints the bits per
character that this costs. Which entries go is decided for each layer and head by

- mass: half the places for the newest entries, the others for those that received most attention so far, from prompt
  and steps: the heavy hitters of H2O (Zhang et al. 2023, arXiv:2306.14048). Once after the prompt: what its last
  queries gave, summed over neighbours: SnapKV (Li et al. 2024, arXiv:2404.14469);
- random: the same newest entries, the others by lot;
- window: the newest entries alone.

Fused attention kernels do not tell what a key received; `limelight.watch` hears of it from the kernel that computes the
output, in the prompt and in every step.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from limelight import watch
from limelight.data.phrases import generate
from limelight.interop.transformers import register

SEQUENCES = 32  # of held-out text, read side by side
LAST = 16  # queries of the prompt that SnapKV asks
POOL = 5  # neighbours over which it sums


def train(text: Tensor, characters: int, context: int, updates: int) -> LlamaForCausalLM:
    """A Llama that predicts characters, trained on random pieces of `context` characters."""
    register()
    config = LlamaConfig(
        vocab_size=characters,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        attn_implementation="limelight",
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates + 1)
    for update in range(updates):
        pieces = torch.stack([text[i : i + context] for i in torch.randint(len(text) - context, (16,)).tolist()])
        loss = model(pieces, labels=pieces).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 100 == 0 or update == updates - 1:
            print(f"update {update + 1} of {updates}: {loss.item() / math.log(2):.3f} bits per character", flush=True)
    return model.eval()


def read(model: LlamaForCausalLM, cache: DynamicCache, tokens: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
    """Read tokens [B, T] that stand at `start`; logits [B, T, V], and what each key received in each layer, [B, G, S].

    Query heads that share a key head are summed. The cache keeps rotated keys, so that an entry stays at its place
    whatever is evicted before it; only the new tokens have to be told theirs.
    """
    places = torch.arange(start, start + tokens.shape[1])[None]
    with watch(model, layers="model.layers.*.self_attn", observe="received", keep="stats") as seen:
        logits = model(tokens, past_key_values=cache, position_ids=places, use_cache=True).logits
    groups = model.config.num_key_value_heads
    return logits, [calls[0].received().unflatten(1, (groups, -1)).sum(2) for calls in seen.values()]


def newest_and(ranked: Tensor, size: int, newest: int) -> Tensor:
    """The places [B, G, size] of the newest entries, and of the others with the highest rank; in order."""
    ranked = ranked.clone()
    ranked[..., ranked.shape[-1] - newest :] = math.inf
    return ranked.topk(size, -1).indices.sort(-1).values


POLICIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mass": lambda mass, size: newest_and(mass, size, size // 2),
    "random": lambda mass, size: newest_and(torch.rand_like(mass), size, size // 2),
    "window": lambda mass, size: newest_and(mass, size, size),
}


def evict(cache: DynamicCache, mass: list[Tensor], choose: Callable[[Tensor, int], Tensor], size: int) -> None:
    """Cut the cache of each layer to `size` entries, and what is known of them with it."""
    for number, layer in enumerate(cache.layers):
        if mass[number].shape[-1] <= size:
            continue
        kept = choose(mass[number], size)
        mass[number] = mass[number].gather(-1, kept)
        for name in ("keys", "values"):
            have = getattr(layer, name)
            setattr(layer, name, have.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, have.shape[-1])))


def added(mass: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """What entries have received so far: the new ones stand behind the old ones."""
    return [now + F.pad(before, (0, now.shape[-1] - before.shape[-1])) for before, now in zip(mass, new, strict=True)]


@torch.inference_mode()
def bits(model: LlamaForCausalLM, text: Tensor, *, policy: str = "window", size: int = 1 << 30, once: bool = False):
    """Bits per character of the second half of each row of `text` [B, context], the first half being the prompt.

    Arguments:
        model: what predicts.
        text: [B, context].
        policy: one of `POLICIES`.
        size: of the cache, in entries for each layer and head.
        once: evict after the prompt alone; what comes after it is added. Else after every step.
    """
    torch.manual_seed(1)
    prompt, last = text.shape[1] // 2, min(LAST, text.shape[1] // 8)
    cache, choose = DynamicCache(config=model.config), POLICIES[policy]
    _, early = read(model, cache, text[:, : prompt - last], 0)
    logits, late = read(model, cache, text[:, prompt - last : prompt], prompt - last)
    mass = added(early, late)
    if once and policy == "mass":
        mass = [F.avg_pool1d(one, POOL, 1, POOL // 2) for one in late]
    evict(cache, mass, choose, size)
    losses = []
    for place in range(prompt, text.shape[1]):
        losses.append(F.cross_entropy(logits[:, -1], text[:, place]))
        logits, new = read(model, cache, text[:, place : place + 1], place)
        mass = added(mass, new)
        if not once:
            evict(cache, mass, choose, size)
    return torch.stack(losses).mean().item() / math.log(2)


def main(path: str = "-", updates: int = 300, context: int = 256) -> None:
    torch.manual_seed(1)
    if path == "-":
        words = "".join(f"{one.source} = {one.target}\n" for one in generate("en", "de", size=4000))
    else:
        words = Path(path).read_text(encoding="utf-8")
    alphabet = sorted(set(words))
    number = {character: i for i, character in enumerate(alphabet)}
    text = torch.tensor([number[character] for character in words])
    held_out = len(text) // 10
    model = train(text[:-held_out], len(alphabet), context, updates)
    rows = min(SEQUENCES, held_out // context)
    test = text[-held_out:][: rows * context].view(rows, context)

    print(f"\nbits per character of {rows} x {context - context // 2} characters after prompts of {context // 2}")
    print(f"full cache: {bits(model, test):.3f}\n")
    print("           evicted after every step        evicted once, after the prompt")
    print("entries " + "".join(f"{policy:>9}" for policy in POLICIES) * 2)
    for size in (context // 32, context // 16, context // 8, context // 4):
        costs = [
            bits(model, test, policy=policy, size=size, once=once) for once in (False, True) for policy in POLICIES
        ]
        print(f"{size:7} " + "".join(f"{cost:9.3f}" for cost in costs), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))

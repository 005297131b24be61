"""Attention over many positions with its strongest links, entropy and received mass, in a few megabytes.

    python examples/long_sequence.py [positions]

The weights of one head at 16,384 positions would take 1 GiB.
"""

import sys

import torch

from limelight import causal, look, top


def main(positions: int) -> None:
    torch.manual_seed(1)
    # Queries that look for the key some 100 places back, among noise.
    key = torch.randn(1, 1, positions, 64)
    query = 3 * key.roll(100, dims=2) + torch.randn_like(key)
    value = torch.randn(1, 1, positions, 64)

    _, view = look(query, key, value, mask=causal(), observe=("entropy", top(1)))
    print(view)
    place = torch.arange(positions)
    distance = (place - view.top(1).indices[0, 0, :, 0])[100:]
    print(f"the strongest link is 100 places back for {float((distance == 100).float().mean()):.1%} of the queries")
    alike = torch.tensor(positions / 2).log()
    print(f"mean entropy {float(view.entropy()[..., 100:].mean()):.2f} nats; about {alike:.2f} if all keys were alike")
    print(f"rows {positions - 3} to {positions - 1}, last 4 keys:\n{view[0, 0, -3:, -4:]}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16_384)

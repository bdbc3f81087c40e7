"""Random streams: every random number is a function of (seed, purpose, epoch, step).

So a resumed run draws what an uninterrupted one does, and two processes what a single one would.
"""

import numpy as np
import torch

# Purposes of a training; VIEWS are those of a taught one.
ORDER, AUGMENT, DROPOUT, BLOCK, BLOCK_NOISE, WIDEN, SYMMETRY, VIEWS = range(8)
RANDOM_MAPS = 8  # a control of 2.6


def mixed_seed(*key: int) -> int:
    """A seed of 63 bits for integers of 0 or more, such as (seed, purpose, epoch, step).

    Keys of one purpose have one length: zeros at the end make no difference, (1, 2) is (1, 2, 0).
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device for a key, as in `mixed_seed`."""
    return torch.Generator(device).manual_seed(mixed_seed(*key))

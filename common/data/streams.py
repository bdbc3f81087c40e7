"""Random streams: every random number is a function of (seed, purpose, epoch, step).

So a resumed run draws the same numbers as an uninterrupted one, and two processes the same as one.
"""

import numpy as np
import torch

ORDER, AUGMENT, DROPOUT, BLOCK, BLOCK_NOISE, WIDEN, SYMMETRY = range(7)  # purposes in a training
RANDOM_MAPS = 8  # for a control in part 2.6


def mixed_seed(*key: int) -> int:
    """A seed of 63 bits from integers of 0 or more, such as (seed, purpose, epoch, step).

    Keys of one purpose must have one length: zeros at the end are ignored, (1, 2) equals (1, 2, 0).
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device, seeded with the `mixed_seed` of a key."""
    return torch.Generator(device).manual_seed(mixed_seed(*key))

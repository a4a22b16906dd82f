"""State of the random number generators of a process, as plain data."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from acmix.errors import CheckpointError


def random_state() -> dict:
    """State of the generators of Python, NumPy, torch and every GPU, as numbers and tensors."""
    version, words, gauss = random.getstate()
    numbers: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = numbers
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Any, source: str) -> None:
    """Put the generators into a state that ``random_state`` gave.

    Args:
        state: From a checkpoint, so of unknown origin.
        source: File name for messages.

    Raises:
        CheckpointError: It is no such state.
    """
    try:
        version, words, gauss = state["python"]
        keys, position, has_gauss, cached = state["numpy"]
        if not 0 <= position <= 624:  # NumPy doesn't check
            raise ValueError("numpy's position")
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(
            ("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached)
        )
        torch.set_rng_state(state["torch"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: its random state can't be restored; resume from a checkpoint of this run"
        ) from error


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Random numbers that depend on the key alone, within; those of the process go on after it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # Not torch.manual_seed, which also seeds every GPU.
    torch.default_generator.manual_seed((int(words[2]) << 32) + int(words[3]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])

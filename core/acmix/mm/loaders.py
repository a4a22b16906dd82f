"""Data loaders whose every sample is a function of the seed and its place in the run.

An augmentation draws its random numbers from a generator seeded by (seed, process, epoch, batch,
place in the batch). So a sample is the same whatever worker makes it, however many there are, and
whether the run was stopped before it.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, IterableDataset

from acmix.errors import InputError
from acmix.mm.explain import undecodable
from acmix.mm.randomness import seeded


class Place(int):
    """Index of a sample, with the key of its random numbers."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> "Place":
        """An index with a key."""
        place = super().__new__(cls, index)
        place.key = key
        return place

    def __reduce__(self) -> tuple:
        return Place, (int(self), self.key)


class SeededDataset(Dataset):
    """Draws the random numbers of a sample by its place, and names the file of one that fails.

    All other attributes are those of the data set.

    Args:
        dataset: The data set.
    """

    # The fetcher of torch prefers such a method, which the data set may have.
    __getitems__ = None

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, place: int) -> Any:
        index = int(place)
        with seeded(*getattr(place, "key", (index,))):
            try:
                return self.dataset[index]
            except (cv2.error, OSError) as error:
                if (path := self._path(index)) is None:
                    raise
                raise InputError(undecodable(path, error)) from error

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _path(self, index: int) -> str | None:
        describe = getattr(self.dataset, "get_data_info", None)
        return None if describe is None else describe(index).get("img_path")


class SeededBatches:
    """The batches of a sampler with the key of every sample, from any place of the run on.

    Attributes:
        epoch: Epoch of the next pass over the sampler; it goes up by itself after a whole one.
        skip: Batches that the next pass leaves out at its start, without loading them.
    """

    def __init__(self, batches: Any, seed: int, rank: int) -> None:
        self.batches, self.seed, self.rank = batches, seed, rank
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Place]]:
        skip, self.skip = self.skip, 0
        sampler = self.sampler
        if isinstance(sampler, InfiniteSampler):  # its one pass begins anew with each of ours
            sampler.indices = sampler._indices_of_rank()
        for number, batch in enumerate(self.batches):
            if number < skip:
                continue
            key = (self.seed, self.rank, self.epoch, number)
            yield [Place(index, (*key, place)) for place, index in enumerate(batch)]
        self.epoch += 1

    @property
    def sampler(self) -> Any:
        """The sampler of indices below the batches."""
        return self.batches.sampler


def repeatable(loader: DataLoader, seed: int | None) -> DataLoader:
    """Make every sample of a loader a function of the seed and its place, in place.

    Args:
        loader: Any loader of a data set with indices; others are left as they are.
        seed: Seed of the run, the same in all of its processes.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return loader
    batches = SeededBatches(loader.batch_sampler, seed or 0, get_rank())
    # DataLoader refuses ordinary assignment, as its attributes should fit each other: they do.
    vars(loader).update(dataset=SeededDataset(loader.dataset), batch_sampler=batches)
    # Without one of its own it would draw a number of the model's at the start of some epochs.
    loader.generator = torch.Generator().manual_seed(seed or 0)
    return loader


def start_pass(loader: DataLoader, epoch: int, skip: int = 0) -> None:
    """Let the next pass over a repeatable loader be that of an epoch, without its first batches."""
    if isinstance(loader.batch_sampler, SeededBatches):
        loader.batch_sampler.epoch, loader.batch_sampler.skip = epoch, skip

"""A sample depends on the seed and its place in the run, and on nothing else."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, Dataset

from acmix.mm.loaders import repeatable, start_pass


class Noise(Dataset):
    """Random numbers of every generator that augmentations use."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        numbers = [float(index), random.random(), np.random.rand(), torch.rand(1).item()]
        return torch.tensor(numbers, dtype=torch.float64)


def epoch(number=0, skip=0, seed=0, workers=0):
    dataset = Noise()
    sampler = DefaultSampler(dataset, shuffle=False)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
    start_pass(repeatable(loader, seed), number, skip)
    return torch.cat(list(loader))


def test_the_same_place_has_the_same_sample():
    assert torch.equal(epoch(), epoch())
    assert torch.equal(epoch(1, skip=1), epoch(1)[2:])


@pytest.mark.parametrize("change", [dict(number=1), dict(seed=1)])
def test_other_epochs_and_seeds_have_others(change):
    same = epoch(**change)[:, 1:] == epoch()[:, 1:]
    assert not same.any()


def test_samples_of_one_epoch_differ():
    assert len(epoch()[:, 1:].unique()) == 18


def test_workers_change_nothing():
    assert torch.equal(epoch(workers=2), epoch())


def test_the_numbers_of_the_process_go_on_as_without_it():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    epoch()
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])

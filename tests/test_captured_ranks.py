"""Steps captured on several ranks, on stand-ins for CuPy and NCCL."""

from functools import partial

import numpy as np
import pytest
from gpu_ranks import passed, run

import minidl as md
from minidl import nn, optim
from minidl.array.random import default_generator
from minidl.distributed import DataParallel, ShardedAdam
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step

# of 33 and 34 one rank's share is the same and another's is not: those of 34 stay apart
COUNTS = [33] * 6 + [34] * 6 + [33, 34] * 4 + [20] * 6


def share(c, count):
    """This rank's part of a batch, of which some labels do not count."""
    rng = np.random.default_rng(count)
    images = rng.normal(size=(count, 6)).astype("f4")
    labels = rng.integers(0, 4, count)
    labels[rng.permutation(count)[: rng.integers(9)]] = -100
    mine = slice(c.rank * count // c.size, (c.rank + 1) * count // c.size)
    return md.Tensor(images[mine]), md.Tensor(labels[mine])


def trained(c, step, layers=(), sharded=False):
    """Losses and weights, random draws, and what the steps have waited for."""
    import stand_in

    md.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), *layers, nn.Linear(8, 4))
    model = DataParallel(network.to(c.place("auto")), c, bucket_cap_mb=1e-4)
    rule = partial(ShardedAdam, model=model) if sharded else optim.Adam
    optimizer = rule(model.parameters(), lr=0.02)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, len(COUNTS))
    scaler = optim.GradScaler(init_scale=2.0**100, growth_interval=2)  # overflows
    losses, syncs, replayed = [], [], 0
    for count in COUNTS:
        batch = share(c, count)
        if step is train_step:
            batch = [x.to("cuda") for x in batch]
        stand_in.reset()
        loss = step(model, F.cross_entropy, optimizer, *batch, scaler)
        replayed += stand_in.launches.count("graph")
        syncs += stand_in.syncs if "graph" in stand_in.launches else []
        schedule.step()
        losses.append(loss.total.item())
    weights = [p.numpy().tobytes() for p in model.parameters()]
    assert replayed == (0 if step is train_step or step.why_not else 10)
    return losses, weights, (*default_generator().state, scaler.get_scale()), syncs


def captured_as_uncaptured(c):
    for sharded in (False, True):
        step = CapturedStep()
        plain = trained(c, train_step, sharded=sharded)
        captured = trained(c, step, sharded=sharded)
        assert captured == plain and not captured[3]
        assert len(step.graphs) == 2, step.why_not
        assert len({tuple(w) for w in c.all_gather_object(captured[1])}) == 1


class Looking(nn.Module):
    """Waits for the device, on the last rank alone."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, x):
        if self.last:
            x.sum().item()
        return x


def one_rank_that_cannot(c):
    step, layer = CapturedStep(), Looking(c.rank == c.size - 1)
    import minidl.train.captured as module

    said = []
    module.say = said.append
    assert trained(c, step, [layer])[:3] == trained(c, train_step, [layer])[:3]
    assert not step.graphs and len(said) == 1 and "Looking.forward" in said[0]


def over_mpi(c):
    step = CapturedStep(required=True)
    with pytest.raises(md.array.errors.UsageError, match="with mpi the gradients of 2"):
        trained(c, step)


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_replay_together():
    passed(run(3, captured_as_uncaptured), 3)


@pytest.mark.mpi
@pytest.mark.slow
def test_one_rank_that_cannot_speaks_for_all():
    passed(run(2, one_rank_that_cannot, "nccl"), 2)


@pytest.mark.mpi
@pytest.mark.slow
def test_what_meets_on_the_host_is_not_captured():
    passed(run(2, over_mpi, "mpi"), 2)

"""Trainings by `minidl train`'s recipe, and what they leave behind."""

import json
from pathlib import Path

import numpy as np

from minidl.distributed import Alone, Simulated
from minidl.train.checkpoint import load_model
from minidl.train.recipe import Settings, train


def run(settings: Settings, ranks: int = 1) -> None:
    """`train` on one rank, or on several simulated ones."""
    if ranks == 1:
        train(settings, Alone())
    else:
        Simulated(ranks).run(lambda communicator: train(settings, communicator))


def weights(out: Path) -> dict:
    return load_model(out / "model.safetensors")[0]


def metrics(out: Path) -> list[dict]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)

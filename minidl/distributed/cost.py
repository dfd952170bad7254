"""What an all-reduce costs: the alpha-beta-gamma model.

    time = messages * alpha + bytes * beta + reduced * gamma

alpha is the latency of a message in seconds, beta the seconds to send a byte, gamma
those to add one. Counts are those of the rank that is busiest, for `size` ranks and
`nbytes` bytes. Thakur, Rabenseifner and Gropp, "Optimization of Collective
Communication Operations in MPICH", 2005.
"""

from math import ceil, floor, log2
from typing import NamedTuple

import numpy as np


class Link(NamedTuple):
    """What connects the ranks: seconds a message, a byte sent, a byte added."""

    alpha: float
    beta: float
    gamma: float = 0.0


class Cost(NamedTuple):
    """How many messages, bytes sent and bytes added, one after another."""

    messages: float
    bytes: float
    reduced: float

    def seconds(self, link: Link) -> float:
        """The time that this takes on a link."""
        return float(np.dot(self, link))


def ring(size: int, nbytes: float) -> Cost:
    """2 (p - 1) messages of n / p bytes, half of which are added."""
    share = nbytes * (size - 1) / size
    return Cost(2 * (size - 1), 2 * share, share)


def tree(size: int, nbytes: float) -> Cost:
    """ceil(log2 p) messages up, each added, and as many down."""
    rounds = ceil(log2(size))
    return Cost(2 * rounds, 2 * rounds * nbytes, rounds * nbytes)


def recursive_doubling(size: int, nbytes: float) -> Cost:
    """log2 p messages, each added; two more, one added, if p is no power of two."""
    rounds = floor(log2(size))
    odd = size != 1 << rounds
    return Cost(rounds + 2 * odd, (rounds + 2 * odd) * nbytes, (rounds + odd) * nbytes)


def rabenseifner(size: int, nbytes: float) -> Cost:
    """Halving, then doubling: 2 log2 p messages, and the bytes of a ring.

    If p is no power of two, two messages of the whole array, one added, come on top.
    """
    rounds = floor(log2(size))
    share = nbytes * (1 - 0.5**rounds)
    odd = (size != 1 << rounds) * nbytes
    return Cost(2 * rounds + 2 * bool(odd), 2 * share + 2 * odd, share + odd)


MODELS = {"ring": ring, "tree": tree, "recursive doubling": recursive_doubling}


def best(size: int, nbytes: float, link: Link) -> float:
    """The seconds of the quickest: what an MPI library should reach."""
    models = (*MODELS.values(), rabenseifner)
    return min(model(size, nbytes).seconds(link) for model in models)


def fit(nbytes, seconds) -> tuple[float, float]:
    """(alpha, beta) of messages: the line alpha + beta n that has the least errors.

    min sum log((alpha + beta n_i) / t_i)^2, so that a time that is twice too long and
    one that is half too short weigh alike; by Gauss and Newton, in log alpha and log
    beta, which keeps both above 0.
    """
    n, t = np.asarray(nbytes, float), np.asarray(seconds, float)
    terms = np.log([t[n.argmin()], t[n.argmax()] / n.max()])
    for _ in range(50):
        parts = np.stack([np.full(len(n), np.exp(terms[0])), np.exp(terms[1]) * n])
        line = parts.sum(axis=0)
        step, *_ = np.linalg.lstsq((parts / line).T, np.log(t / line), rcond=None)
        terms += np.clip(step, -1, 1)
    alpha, beta = np.exp(terms)
    return float(alpha), float(beta)


def step_seconds(
    size: int, nbytes: float, link: Link, seconds: float
) -> tuple[float, float]:
    """The time of a step on `size` ranks, communication behind backward and after it.

    `seconds` is a step of one rank, two thirds of which are backward; all ranks
    have as many samples each as that one had.
    """
    communication = best(size, nbytes, link)
    return seconds + max(0.0, communication - seconds * 2 / 3), seconds + communication

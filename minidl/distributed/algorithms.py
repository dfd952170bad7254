"""All-reduce written out over send and receive: three ways to add up what ranks hold.

Each leaves in `array` of every rank the sum over all ranks, in the same bits on all,
for any number of ranks. What each costs is in `cost.py`; the backends' own
`all_reduce` is what trains. Thakur, Rabenseifner and Gropp, "Optimization of
Collective Communication Operations in MPICH", 2005.
"""

from minidl.array.device import array_module
from minidl.distributed.communicator import Communicator


def ring_all_reduce(communicator: Communicator, array):
    """Each rank sends to the next, n / p elements at a time, twice round the ring.

    First partial sums travel, until each rank holds one piece of the whole sum; then
    the pieces do. A rank sends 2 (p - 1) / p of the array, the least possible, but
    in 2 (p - 1) messages: for long arrays.
    """
    rank, size = communicator.rank, communicator.size
    after, before = (rank + 1) % size, (rank - 1) % size
    flat = array.reshape(-1)
    bounds = [flat.size * k // size for k in range(size + 1)]
    pieces = [flat[bounds[k] : bounds[k + 1]] for k in range(size)]

    for step in range(size - 1):
        mine = pieces[(rank - step) % size]
        sum_of_others = array_module(flat).empty_like(pieces[(rank - step - 1) % size])
        communicator.send_receive(mine, after, sum_of_others, before)
        pieces[(rank - step - 1) % size] += sum_of_others
    for step in range(size - 1):
        whole = pieces[(rank + 1 - step) % size]
        communicator.send_receive(whole, after, pieces[(rank - step) % size], before)
    return array


def tree_all_reduce(communicator: Communicator, array):
    """Sums climb a binary (binomial) tree to rank 0, and the whole sum comes down.

    At height h, rank k 2^h with odd k is the child of rank (k - 1) 2^h: 2 log2 p
    rounds, in each of which some ranks send all of the array and most are idle.
    """
    rank, size = communicator.rank, communicator.size
    part = array_module(array).empty_like(array)
    heights = [1 << h for h in range((size - 1).bit_length())]
    for height in heights:
        if rank % (2 * height) == height:
            communicator.send(array, rank - height)
        elif rank % (2 * height) == 0 and rank + height < size:
            array += communicator.recv(part, rank + height)
    for height in reversed(heights):
        if rank % (2 * height) == height:
            communicator.recv(array, rank - height)
        elif rank % (2 * height) == 0 and rank + height < size:
            communicator.send(array, rank + height)
    return array


def recursive_doubling_all_reduce(communicator: Communicator, array):
    """Pairs at distance 1, 2, 4, ... swap all they have and add: log2 p messages.

    For short arrays. A power of two of ranks takes part; of the others, each gives
    its array to a neighbour first and gets the sum from it in the end.
    """
    rank, size = communicator.rank, communicator.size
    power = 1 << (size.bit_length() - 1)
    extra = size - power  # of the first 2 * extra ranks, the odd ones sit out
    part = array_module(array).empty_like(array)
    if rank < 2 * extra and rank % 2:
        communicator.send(array, rank - 1)
        return communicator.recv(array, rank - 1)
    if rank < 2 * extra:
        array += communicator.recv(part, rank + 1)

    place = rank // 2 if rank < 2 * extra else rank - extra
    distance = 1
    while distance < power:
        other = place ^ distance
        partner = 2 * other if other < extra else other + extra
        communicator.send_receive(array, partner, part, partner)
        array += part
        distance *= 2

    if rank < 2 * extra:
        communicator.send(array, rank + 1)
    return array


ALGORITHMS = {
    "ring": ring_all_reduce,
    "tree": tree_all_reduce,
    "recursive doubling": recursive_doubling_all_reduce,
}

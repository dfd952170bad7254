"""One switch: only ways of computing whose result depends on the arguments alone."""

from itertools import pairwise

from minidl.array.threads import claim_blas, get_num_threads

PARTS = 4  # that a product or a sum is cut into for threads, however many there are
_deterministic = False


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Whether the same arguments must give the same bits on any number of threads.

    Work is then cut into as many parts whatever the number of threads, BLAS uses one
    thread, and convolutions leave out Winograd's tiles, which round otherwise than a
    sum of products. `warn_only` changes nothing: all that minidl computes has such a
    way. Raises TypeError for a mode that is not True or False.
    """
    global _deterministic
    if not isinstance(mode, bool):
        raise TypeError(
            "use_deterministic_algorithms expects True or False, got "
            f"{type(mode).__name__}"
        )
    if mode:
        claim_blas()
    _deterministic = mode


def are_deterministic_algorithms_enabled() -> bool:
    """What `use_deterministic_algorithms` was last told; False to begin with."""
    return _deterministic


def parts() -> int:
    """How many parts to cut work into, where that may change how results round."""
    return PARTS if _deterministic else get_num_threads()


def cut(total: int, count: int) -> list[slice]:
    """Slices of 0 to total, as equal as can be, `count` at most."""
    cuts = [total * part // count for part in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(cuts) if a < b]

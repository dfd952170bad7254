"""How exactly float32 is multiplied on a GPU: one switch for every product there."""

_PRECISIONS = ("highest", "high", "medium")
_current = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """Set how float32 operands of matrix products and convolutions are multiplied.

    "highest" keeps all 24 bits of them; "high" and "medium" let a GPU round them to
    TF32, 11 bits, for its tensor cores. Sums are float32 either way, and a CPU is
    always exact. Unlike in PyTorch the switch governs convolutions too, and "medium"
    is no less than "high". Raises RuntimeError for another word.
    """
    global _current
    if precision not in _PRECISIONS:
        raise RuntimeError(
            f"precision must be one of {', '.join(map(repr, _PRECISIONS))}, "
            f"got {precision!r}"
        )
    _current = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` was last given; at first, "highest"."""
    return _current


def tf32() -> bool:
    """Whether float32 operands may be rounded to TF32."""
    return _current != "highest"

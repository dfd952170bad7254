"""Stochastic gradient descent, with momentum."""

from minidl.array.kernel import Kernel
from minidl.optim.optimizer import Optimizer

sgd = Kernel(
    "sgd",
    inputs="g",
    outputs="p",
    scalars="lr decay sign",
    body="p -= lr * (sign * g + decay * p);",
)
# first is 1 in a parameter's first step, when the buffer takes the gradient as it is
sgd_momentum = Kernel(
    "sgd_momentum",
    inputs="g",
    outputs="p buffer",
    scalars="lr decay sign momentum damped first nesterov",
    body="""
        auto d = sign * g + decay * p;
        buffer = where(first > 0, d, momentum * buffer + damped * d);
        p -= lr * where(nesterov > 0, d + momentum * buffer, buffer);
    """,
)


class SGD(Optimizer):
    """p -= lr (g + weight_decay p), or with momentum u = momentum u + (1 - dampening) g:
    p -= lr u, Nesterov's form p -= lr (g + momentum u).

    Sutskever et al., "On the importance of initialization and momentum in deep
    learning", 2013.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: dict) -> None:
        super().check(group)
        if not group["momentum"] >= 0:
            raise ValueError(f"momentum must be 0 or more, got {group['momentum']}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum and no dampening")

    def buffers_of(self, group: dict) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(self, group, step, p, g, momentum_buffer=None) -> None:
        shared = {
            "lr": group["lr"],
            "decay": group["weight_decay"],
            "sign": -1.0 if group["maximize"] else 1.0,
        }
        if momentum_buffer is None:
            sgd(g, out=p, **shared)
            return
        sgd_momentum(
            g,
            out=(p, momentum_buffer),
            **shared,
            momentum=group["momentum"],
            damped=1 - group["dampening"],
            first=step == 1,
            nesterov=group["nesterov"],
        )

"""Stochastic gradient descent, with momentum."""

from minidl.optim.optimizer import Optimizer
from minidl.optim.rule import Rule

sgd = Rule("sgd", "", "lr", "p -= lr * d;")
# first is 1 in a parameter's first step, when the buffer takes the gradient as it is
sgd_momentum = Rule(
    "sgd_momentum",
    "momentum_buffer",
    "lr momentum damped first nesterov",
    """
    momentum_buffer = where(first > 0, d, momentum * momentum_buffer + damped * d);
    p -= lr * where(nesterov > 0, d + momentum * momentum_buffer, momentum_buffer);
    """,
    "damped = 1 - dampening; first = step == 1;",
    "momentum dampening nesterov",
)


class SGD(Optimizer):
    """p -= lr (g + weight_decay p); with momentum p -= lr u, where u begins as g and
    goes on as momentum u + (1 - dampening) g. Nesterov's: p -= lr (g + momentum u).

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
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
                maximize=maximize,
            ),
        )

    def check(self, group: dict) -> None:
        super().check(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum and no dampening")

    def rule(self, group):
        return sgd_momentum if group["momentum"] else sgd

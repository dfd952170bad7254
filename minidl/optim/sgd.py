"""Stochastic gradient descent, with momentum."""

from minidl.optim.optimizer import Optimizer, rule

sgd = rule("sgd", "", "lr", "p -= lr * d;")
# first is 1 in a parameter's first step, when the buffer takes the gradient as it is
sgd_momentum = rule(
    "sgd_momentum",
    "momentum_buffer",
    "lr momentum damped first nesterov",
    """
    momentum_buffer = where(first > 0, d, momentum * momentum_buffer + damped * d);
    p -= lr * where(nesterov > 0, d + momentum * momentum_buffer, momentum_buffer);
    """,
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

    def kernel(self, group):
        return sgd_momentum if group["momentum"] else sgd

    def scalars(self, group, state):
        if not group["momentum"]:
            return super().scalars(group, state)
        return {
            "lr": float(group["lr"]),
            "momentum": group["momentum"],
            "damped": 1 - group["dampening"],
            "first": state["step"] == 1,
            "nesterov": group["nesterov"],
        }

"""RMSprop, Adagrad and Adadelta: steps divided by a mean of squared gradients."""

from math import sqrt

from minidl.optim.optimizer import Optimizer
from minidl.optim.rule import Rule


def rmsprop(centered: bool, momentum: bool):
    """The rule for these settings."""
    root = "square_avg - grad_avg * grad_avg" if centered else "square_avg"
    return Rule(
        "rmsprop" + "_centered" * centered + "_momentum" * momentum,
        "square_avg" + " grad_avg" * centered + " momentum_buffer" * momentum,
        "lr rate eps" + " momentum" * momentum,
        "square_avg += (d * d - square_avg) * rate;"
        + "grad_avg += (d - grad_avg) * rate;" * centered
        + f"auto scaled = d / (sqrt({root}) + eps);"
        + (
            "momentum_buffer = momentum * momentum_buffer + scaled;"
            "p -= lr * momentum_buffer;"
            if momentum
            else "p -= lr * scaled;"
        ),
        "rate = 1 - alpha;",
        "alpha eps" + " momentum" * momentum,
    )


RMSPROP = {(c, m): rmsprop(c, m) for c in (False, True) for m in (False, True)}
adagrad = Rule(
    "adagrad",
    "sum",
    "slowed eps",
    "sum += d * d; p -= slowed * d / (sqrt(sum) + eps);",
    "slowed = lr / (1 + (step - 1) * lr_decay);",
    "lr_decay eps",
)
adadelta = Rule(
    "adadelta",
    "square_avg acc_delta",
    "lr rate eps",
    """
    square_avg += (d * d - square_avg) * rate;
    auto delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * d;
    acc_delta += (delta * delta - acc_delta) * rate;
    p -= lr * delta;
    """,
    "rate = 1 - rho;",
    "rho eps",
)


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2, p -= lr g / (sqrt(v) + eps).

    `centered` divides by sqrt(v - a^2), with a the mean of g that v is of g^2;
    `momentum` adds up the steps: u = momentum u + step, p -= lr u.
    Tieleman and Hinton, "Lecture 6.5, rmsprop", 2012; Graves, "Generating Sequences
    With Recurrent Neural Networks", 2013, for the centered form.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                alpha=alpha,
                eps=eps,
                weight_decay=weight_decay,
                momentum=momentum,
                centered=centered,
                maximize=maximize,
            ),
        )

    def rule(self, group):
        return RMSPROP[bool(group["centered"]), group["momentum"] > 0]

    def explain(self, group, state, values):
        variance = values["square_avg"] - values.get("grad_avg", 0.0) ** 2
        return {**values, "denominator": sqrt(max(variance, 0.0)) + group["eps"]}


class Adagrad(Optimizer):
    """s = s + g^2, p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization", 2011.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                lr_decay=lr_decay,
                weight_decay=weight_decay,
                initial_accumulator_value=initial_accumulator_value,
                eps=eps,
                maximize=maximize,
            ),
        )

    def rule(self, group):
        return adagrad

    def initial(self, group, name):
        return group["initial_accumulator_value"]

    def explain(self, group, state, values):
        return {**values, "denominator": sqrt(values["sum"]) + group["eps"]}


class Adadelta(Optimizer):
    """v = rho v + (1 - rho) g^2, x = g sqrt(w + eps) / sqrt(v + eps),
    w = rho w + (1 - rho) x^2, p -= lr x.

    Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012.
    """

    def __init__(
        self,
        params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize),
        )

    def check(self, group):
        super().check(group)
        if not 0 <= group["rho"] <= 1:
            raise ValueError(f"rho must lie in [0, 1], got {group['rho']}")

    def rule(self, group):
        return adadelta

    def explain(self, group, state, values):
        return {**values, "denominator": sqrt(values["square_avg"] + group["eps"])}

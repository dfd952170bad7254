"""Adam and AdamW: one kernel launch over all parameters of a group."""

from math import sqrt

from minidl.array.kernel import Kernel
from minidl.optim.optimizer import Optimizer

SCALARS = "step_size rate1 rate2 correction eps decay shrink sign"
# rate = 1 - beta, computed in float64: 1 - 0.999 in float32 is wrong in its fifth digit
MOMENTS = """
    auto d = sign * g + decay * p;
    m += (d - m) * rate1;
    v += (d * d - v) * rate2;
"""
adam = Kernel(
    "adam",
    inputs="g",
    outputs="p m v",
    scalars=SCALARS,
    body=MOMENTS + "p = p * shrink - step_size * m / (sqrt(v) * correction + eps);",
)
amsgrad = Kernel(
    "amsgrad",
    inputs="g",
    outputs="p m v largest",
    scalars=SCALARS,
    body=MOMENTS
    + """
    largest = max(largest, v);
    p = p * shrink - step_size * m / (sqrt(largest) * correction + eps);
    """,
)


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    `weight_decay` adds weight_decay p to g; `amsgrad` divides by the largest v so far.
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1;
    Reddi et al., "On the Convergence of Adam and Beyond", 2018.
    """

    decoupled = False

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: dict) -> None:
        super().check(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
        if not group["eps"] >= 0:
            raise ValueError(f"eps must be 0 or more, got {group['eps']}")

    def buffers_of(self, group: dict) -> tuple[str, ...]:
        moments = ("exp_avg", "exp_avg_sq")
        return (*moments, "max_exp_avg_sq") if group["amsgrad"] else moments

    def update(
        self, group, step, p, g, exp_avg, exp_avg_sq, max_exp_avg_sq=None
    ) -> None:
        beta1, beta2 = group["betas"]
        lr, decay = group["lr"], group["weight_decay"]
        kernel = adam if max_exp_avg_sq is None else amsgrad
        moments = (p, exp_avg, exp_avg_sq, max_exp_avg_sq)
        kernel(
            g,
            out=moments[: len(kernel.outputs)],
            step_size=lr / (1 - beta1**step),
            rate1=1 - beta1,
            rate2=1 - beta2,
            correction=1 / sqrt(1 - beta2**step),
            eps=group["eps"],
            decay=0.0 if self.decoupled else decay,
            shrink=1 - lr * decay if self.decoupled else 1.0,
            sign=-1.0 if group["maximize"] else 1.0,
        )


class AdamW(Adam):
    """Adam whose weight decay is applied to the weights, not to the gradient:
    p -= lr weight_decay p.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    """

    decoupled = True

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize
        )

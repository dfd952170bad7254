"""Adam and AdamW: one kernel launch over all parameters of a group."""

from math import sqrt

from minidl.optim.optimizer import Optimizer
from minidl.optim.rule import Rule

# rate = 1 - beta, computed in float64: 1 - 0.999 in float32 is wrong in its fifth digit
FIRST = "exp_avg += (d - exp_avg) * rate1;"
MOMENTS = FIRST + "exp_avg_sq += (d * d - exp_avg_sq) * rate2;"
SECOND = "exp_avg exp_avg_sq"
CORRECTED = """
rate1 = 1 - beta1;
rate2 = 1 - beta2;
step_size = lr / (1 - pow(beta1, step));
correction = 1 / sqrt(1 - pow(beta2, step));
"""

adam = Rule(
    "adam",
    SECOND,
    "rate1 rate2 step_size correction eps",
    MOMENTS + "p -= step_size * exp_avg / (sqrt(exp_avg_sq) * correction + eps);",
    CORRECTED,
    "beta1 beta2 eps",
)
amsgrad = Rule(
    "amsgrad",
    SECOND + " max_exp_avg_sq",
    "rate1 rate2 step_size correction eps",
    MOMENTS
    + """
    max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq);
    p -= step_size * exp_avg / (sqrt(max_exp_avg_sq) * correction + eps);
    """,
    CORRECTED,
    "beta1 beta2 eps",
)


class Moments(Optimizer):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, corrected by 1 - b^t."""

    def explain(self, group, state, values):
        (beta1, beta2), step = group["betas"], state["step"]
        m, v, *largest = values.values()
        v_hat = max([v, *largest]) / (1 - beta2**step)
        return {
            "m": m,
            "v": v,
            **({"largest_v": largest[0]} if largest else {}),
            "m_hat": m / (1 - beta1**step),
            "v_hat": v_hat,
            "denominator": sqrt(v_hat) + group["eps"],
        }


class Adam(Moments):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    `weight_decay` adds weight_decay p to g, or, decoupled, takes lr weight_decay p from
    p; `amsgrad` divides by the largest v so far.
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1;
    Reddi et al., "On the Convergence of Adam and Beyond", 2018.
    """

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
        decoupled_weight_decay: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
                decoupled_weight_decay=decoupled_weight_decay,
            ),
        )

    def rule(self, group):
        return amsgrad if group["amsgrad"] else adam


class AdamW(Adam):
    """Adam whose weight decay is applied to the weights, not to the gradient:
    p -= lr weight_decay p.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    """

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
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
        )

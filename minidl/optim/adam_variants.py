"""NAdam, RAdam and Adamax: Adam with another momentum, start, or norm."""

from math import sqrt

from minidl.optim.adam import CORRECTED, FIRST, MOMENTS, SECOND, Moments
from minidl.optim.optimizer import Optimizer
from minidl.optim.rule import Rule

nadam = Rule(
    "nadam",
    SECOND,
    "rate1 rate2 step_size ahead correction eps",
    MOMENTS
    + """
    p -= (step_size * d + ahead * exp_avg) / (sqrt(exp_avg_sq) * correction + eps);
    """,
    CORRECTED
    + """
    auto mu = beta1 * (1 - pow(0.96, step * momentum_decay) / 2);
    auto after = beta1 * (1 - pow(0.96, (step + 1) * momentum_decay) / 2);
    mu_product = where(skip > 0, mu_product, mu_product * mu);
    step_size = lr * (1 - mu) / (1 - mu_product);
    ahead = lr * after / (1 - mu_product * after);
    """,
    "beta1 beta2 eps momentum_decay",
    counters="step mu_product",
)
# n_t > 5 only where n is, too: the bounds keep the roots and quotients real
radam = Rule(
    "radam",
    SECOND,
    "rate1 rate2 step_size rectified eps",
    MOMENTS
    + """
    auto slowed = where(rectified > 0, rectified / (sqrt(exp_avg_sq) + eps), 1);
    p -= step_size * exp_avg * slowed;
    """,
    """
    rate1 = 1 - beta1;
    rate2 = 1 - beta2;
    step_size = lr / (1 - pow(beta1, step));
    auto known = 1 - pow(beta2, step);
    auto n = 2 / (1 - beta2) - 1;
    auto n_t = n - 2 * step * pow(beta2, step) / known;
    auto a = max(n, 5);
    auto b = max(n_t, 5);
    rectified = sqrt((b - 4) * (b - 2) * a / ((a - 4) * (a - 2) * b) * known);
    rectified = where(n_t > 5, rectified, 0);
    """,
    "beta1 beta2 eps",
)
adamax = Rule(
    "adamax",
    "exp_avg exp_inf",
    "rate1 beta2 step_size eps",
    FIRST + "exp_inf = max(beta2 * exp_inf, abs(d) + eps);"
    "p -= step_size * exp_avg / exp_inf;",
    "rate1 = 1 - beta1; step_size = lr / (1 - pow(beta1, step));",
    "beta1 beta2 eps",
)


class NAdam(Moments):
    """Adam with Nesterov's momentum: mu_t = b1 (1 - 0.96^(t momentum_decay) / 2),
    p -= lr ((1 - mu_t) g / (1 - mu_1 ... mu_t) + mu_t+1 m / (1 - mu_1 ... mu_t+1))
    / (sqrt(v / (1 - b2^t)) + eps).

    Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
    """

    counters = {"step": 0, "mu_product": 1.0}

    def __init__(
        self,
        params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                momentum_decay=momentum_decay,
                decoupled_weight_decay=decoupled_weight_decay,
                maximize=maximize,
            ),
        )

    def rule(self, group):
        return nadam

    def explain(self, group, state, values):
        decay = group["momentum_decay"]
        after = group["betas"][0] * (1 - 0.96 ** ((state["step"] + 1) * decay) / 2)
        m_hat = after * values["exp_avg"] / (1 - state["mu_product"] * after)
        return {**super().explain(group, state, values), "m_hat": m_hat}


class RAdam(Moments):
    """Adam whose step is rectified while v is known from few gradients:
    p -= lr m_hat r / (sqrt(v_hat) + eps), and p -= lr m_hat until r is defined.

    With n = 2 / (1 - b2) - 1 and n_t = n - 2 t b2^t / (1 - b2^t), defined for n_t > 5:
    r^2 = (n_t - 4) (n_t - 2) n / ((n - 4) (n - 2) n_t). As in PyTorch, eps is added to
    the root of v before its correction.
    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                decoupled_weight_decay=decoupled_weight_decay,
                maximize=maximize,
            ),
        )

    def rule(self, group):
        return radam

    def explain(self, group, state, values):
        rectified = state["rectified"]
        root = sqrt(values["exp_avg_sq"]) + group["eps"]
        return {
            **super().explain(group, state, values),
            "denominator": root / rectified if rectified else 1.0,
        }


class Adamax(Optimizer):
    """m = b1 m + (1 - b1) g, u = max(b2 u, |g| + eps), p -= lr / (1 - b1^t) m / u.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 2.
    """

    def __init__(
        self,
        params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                maximize=maximize,
            ),
        )

    def rule(self, group):
        return adamax

    def explain(self, group, state, values):
        m, u = values.values()
        m_hat = m / (1 - group["betas"][0] ** state["step"])
        return {"m": m, "u": u, "m_hat": m_hat, "denominator": u}

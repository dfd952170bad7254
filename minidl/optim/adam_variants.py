"""NAdam, RAdam and Adamax: Adam with another momentum, start, or norm."""

from math import sqrt

from minidl.optim.adam import FIRST, MOMENTS, SECOND, Moments
from minidl.optim.optimizer import Optimizer, rule

nadam = rule(
    "nadam",
    SECOND,
    "rate1 rate2 step_size ahead correction eps",
    MOMENTS
    + """
    p -= (step_size * d + ahead * exp_avg) / (sqrt(exp_avg_sq) * correction + eps);
    """,
)
radam = rule(
    "radam",
    SECOND,
    "rate1 rate2 step_size rectified eps",
    MOMENTS
    + """
    auto factor = where(rectified > 0, rectified / (sqrt(exp_avg_sq) + eps), 1);
    p -= step_size * exp_avg * factor;
    """,
)
adamax = rule(
    "adamax",
    "exp_avg exp_inf",
    "rate1 beta2 step_size eps",
    FIRST + "exp_inf = max(beta2 * exp_inf, abs(d) + eps);"
    "p -= step_size * exp_avg / exp_inf;",
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

    def kernel(self, group):
        return nadam

    @staticmethod
    def mu(group: dict, step: int) -> float:
        """The momentum of a step."""
        return group["betas"][0] * (1 - 0.96 ** (step * group["momentum_decay"]) / 2)

    def advance(self, group, state):
        state["step"] += 1
        state["mu_product"] *= self.mu(group, state["step"])

    def scalars(self, group, state):
        lr, step, product = float(group["lr"]), state["step"], state["mu_product"]
        mu, after = self.mu(group, step), self.mu(group, step + 1)
        return {
            **super().scalars(group, state),
            "step_size": lr * (1 - mu) / (1 - product),
            "ahead": lr * after / (1 - product * after),
        }

    def explain(self, group, state, values):
        after = self.mu(group, state["step"] + 1)
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

    def kernel(self, group):
        return radam

    def scalars(self, group, state):
        (_, beta2), step = group["betas"], state["step"]
        shared = super().scalars(group, state)
        known = 1 - beta2**step
        n = 2 / (1 - beta2) - 1
        n_t = n - 2 * step * beta2**step / known
        rectified = 0.0
        if n_t > 5:
            r = sqrt((n_t - 4) * (n_t - 2) * n / ((n - 4) * (n - 2) * n_t))
            rectified = r * sqrt(known)
        del shared["correction"]
        return {**shared, "rectified": rectified}

    def explain(self, group, state, values):
        rectified = self.scalars(group, state)["rectified"]
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

    def kernel(self, group):
        return adamax

    def scalars(self, group, state):
        beta1, beta2 = group["betas"]
        return {
            "rate1": 1 - beta1,
            "beta2": beta2,
            "step_size": float(group["lr"]) / (1 - beta1 ** state["step"]),
            "eps": group["eps"],
        }

    def explain(self, group, state, values):
        m, u = values.values()
        m_hat = m / (1 - group["betas"][0] ** state["step"])
        return {"m": m, "u": u, "m_hat": m_hat, "denominator": u}

"""Adam in plain NumPy, beside minidl's kernel: the same gradients, the same weights.

Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.
"""

import numpy as np

import minidl as md
from minidl import nn, optim

STEPS, LR, BETA1, BETA2, EPS = 1000, 1e-3, 0.9, 0.999, 1e-8

rng = np.random.default_rng(seed=0)
start = rng.normal(size=(300, 100))

# By hand: the weights, and the running means of the gradient and of its square.
p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)

# With minidl: the same weights, once in float32 and once in float64.
single = nn.Parameter(md.tensor(start, dtype=md.float32))
double = nn.Parameter(md.tensor(start, dtype=md.float64))
adam = optim.Adam([single, double], lr=LR, betas=(BETA1, BETA2), eps=EPS)

print("         largest difference of any of the 30,000 weights from those by hand")
print("  step       float32       float64")
for step in range(1, STEPS + 1):
    g = p + rng.normal(size=p.shape)  # the gradient of |p|^2 / 2, with noise

    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    m_corrected = m / (1 - BETA1**step)  # without these two, the first steps would be
    v_corrected = v / (1 - BETA2**step)  # too short: both means begin at zero
    p = p - LR * m_corrected / (np.sqrt(v_corrected) + EPS)

    single.grad = md.tensor(g, dtype=md.float32)
    double.grad = md.tensor(g)
    adam.step()  # one kernel for all weights of a type: reads g, p, m, v once

    if step in (1, 10, 100, 1000):
        differences = [abs(weights.data - p).max() for weights in (single, double)]
        print("{:6d}    {:10.1e}    {:10.1e}".format(step, *differences))

from math import cos, pi


class CosineAnnealingLR:
    def __init__(self, optimizer, T_max):
        self.o, self.T, self.t = optimizer, T_max, 0
        self.base = [g["lr"] for g in optimizer.param_groups]

    def step(self):
        self.t += 1
        for g, b in zip(self.o.param_groups, self.base):
            g["lr"] = b * (1 + cos(pi * self.t / self.T)) / 2

"""A torchdeq model switched to this package's solvers by its configuration alone, and made certifiable.

python examples/switch_solver.py
"""

import torch
from torch import nn
from torchdeq import get_deq
from torchdeq.norm import apply_norm

import subdeq_plugin as sd


class Model(nn.Module):
    """An ordinary torchdeq model: nothing in it knows this package."""

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__()
        self.inject = nn.Linear(8, 32)
        self.recur = nn.Linear(32, 32, bias=False)
        nn.init.uniform_(self.recur.weight, -0.05, 0.05)
        self.deq = get_deq(config)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = torch.relu(self.inject(x))
        states, info = self.deq(lambda z: torch.tanh(self.recur(z)) + 0.1 + y, torch.ones_like(y))
        return states[-1], info


def main() -> None:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    for solvers in (("anderson", "fixed_point_iter"), ("subdeq:anderson?memory=4", "subdeq:gmres")):
        torch.manual_seed(0)
        keys = [sd.solver(key) if key.startswith("subdeq:") else key for key in solvers]
        config = {"f_solver": keys[0], "b_solver": keys[1], "f_tol": 1e-5, "ift": True}
        model = Model(config)
        z, info = model(x)
        z.sum().backward()
        answers.append((z.detach(), model.recur.weight.grad))
        print(f"{keys}: largest residual {float(info['abs_lowest'].max()):.1e}")
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)

    # Nonnegative weights turn the same formula into a map that the theory covers.
    apply_norm(model, "nonneg", filter_out=["inject"])
    bound = sd.BoundMap.from_spec(
        sd.MapSpec(
            {"weight": model.recur.weight, "outer": torch.relu(model.inject(x))},
            {"kind": "dense", "activation": "tanh", "shift": 0.1},
        )
    )
    certificate = sd.certify(bound)
    print(certificate)
    assert certificate.unique


if __name__ == "__main__":
    main()

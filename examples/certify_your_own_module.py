"""A map of your own, an image model in plain torch modules: proven, solved, its error bounded; and two that are not.

python examples/certify_your_own_module.py
"""

import torch
from torch import nn

import subdeq_plugin as sd


def nonnegative(module: nn.Linear | nn.Conv2d) -> nn.Module:
    """The module with a parametrized weight and a bias of zero."""
    sd.layers.make_nonneg(module, "weight", "softplus")
    nn.init.zeros_(module.bias)
    return module


def main() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 8, 8)
    embed = nn.Conv2d(1, 4, 3, padding=1)
    f = nn.Sequential(
        nonnegative(nn.Conv2d(4, 8, 3, padding=1)),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1, padding=1),
        nonnegative(nn.Conv2d(8, 4, 1)),
        sd.Inject(torch.relu(embed(image)).detach()),
        sd.Pointwise("tanh", shift=0.1),
    )
    start = torch.ones(2, 4, 8, 8)
    certificate = sd.certify(f, start)
    print(certificate)
    assert certificate.unique

    z = start
    with torch.no_grad():
        for _ in range(certificate.iterations_for(1e-5)):
            z = f(z)
    print("guaranteed errors:", certificate.error_bound(z).tolist())

    refused = sd.certify(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Tanh()), torch.ones(1, 3))
    print("\nrefused:", *refused.reasons, sep="\n  ")
    assert not refused.unique

    def opaque(z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(6 * z - 5) + 1.05

    print("\nopaque:", *sd.certify(opaque, torch.ones(1, 1)).reasons, sep="\n  ")
    evidence = sd.falsify(opaque, torch.ones(1, 1, dtype=torch.float64))
    print("its fixed points:", evidence.solutions.flatten().tolist())
    assert evidence.refuted


if __name__ == "__main__":
    main()

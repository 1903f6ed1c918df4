"""Three layers that look subhomogeneous and have three equilibria each; every one is refused.

The first two have signed weights, as published examples do; the third has a negative bias inside its activation. Run:

    python examples/counterexamples.py
"""

import torch

import subdeq_plugin as sd

SIGNED = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
SCALAR = torch.tensor([[6.0]], dtype=torch.float64)

CASES = {
    "tanh(W z) + 1.2, W = [[1, -1], [-1, 1]]": (
        {"weight": SIGNED},
        {"shift": 1.2},
        [(1.2, 1.2), (2.15750402, 0.24249598), (0.24249598, 2.15750402)],
    ),
    "the same with W doubled, shift 1.603, divided by its largest entry": (
        {"weight": 2 * SIGNED},
        {"shift": 1.603, "normalize": "inf"},
        [(1.0, 1.0), (1.0, 0.28517961), (0.28517961, 1.0)],
    ),
    "tanh(6 z - 5) + 1.05": (
        {"weight": SCALAR, "inner": torch.tensor([[-5.0]], dtype=torch.float64)},
        {"shift": 1.05},
        [(0.0502,), (0.7888,), (2.05,)],
    ),
}


def polish(f: sd.BoundMap, guess: torch.Tensor) -> torch.Tensor:
    """Newton's method from a guess: it finds repelling fixed points as well."""
    z = guess
    for _ in range(20):
        jacobian = torch.stack([f.jvp(z, unit[None])[0] for unit in torch.eye(z.shape[1], dtype=z.dtype)], dim=1)
        step = torch.linalg.lstsq(torch.eye(z.shape[1], dtype=z.dtype) - jacobian, (f(z) - z)[0, :, None]).solution
        z = z + step.T
    return z


def main() -> None:
    for name, (arrays, options, guesses) in CASES.items():
        f = sd.BoundMap.from_spec(sd.MapSpec(arrays, {"kind": "dense", "activation": "tanh", **options}))
        print(name)
        for guess in guesses:
            z = polish(f, torch.tensor([guess], dtype=torch.float64))
            residual = float((f(z) - z).abs().max())
            print(f"  fixed point {[round(value, 8) for value in z[0].tolist()]}, residual {residual:.1e}")
            assert residual < 1e-12
        certificate = sd.certify(f)
        assert not certificate.unique
        print(f"  refused: {'; '.join(certificate.reasons)}\n")


if __name__ == "__main__":
    main()

"""Signed weights: which equilibria can be proven unique, how accurate they and their gradients are, and how robust.

    python examples/signed_weights.py

A layer with signed weights is certified input by input. Some inputs are proven, others may not be; every bound is
compared with what really happens.
"""

import torch

import subdeq_plugin as sd


def main() -> None:
    torch.manual_seed(0)
    layer = sd.SubhomLinear(8, 12, weight="signed", shift=1.2)
    with torch.no_grad():
        layer.weight.copy_(0.7 * torch.randn(12, 12) / 12**0.5)
    x = torch.randn(16, 8)

    everything = sd.certify(layer)
    print(f"every input at once: {'proven' if everything.unique else 'not proven'} ({everything.theorem})")
    for condition in ("enclosure", "interval newton", "monotone"):
        certificate = sd.certify(layer, x, conditions=condition)
        print(f"  {condition} alone: {int(certificate.proven.sum())} of {len(x)} inputs proven")

    certificate = sd.certify(layer, x)
    assert certificate.unique
    model = sd.SubDEQ(layer, f_tol=1e-6)
    z = model(x)
    error = certificate.error_bound(z)
    print(f"proven by {certificate.theorem}; guaranteed error of the answers <= {float(error.max()):.1e}")

    # The same state found to fifteen digits lies within the bounds of every entry.
    exact = layer.bind(x).detach().to("cpu", torch.float64)
    better = sd.solve(exact, z.detach().double(), certified_tol=1e-11, max_iter=500).value
    lo, hi = certificate.error_interval(z)
    assert bool(((lo <= better + 1e-6) & (better - 1e-6 <= hi)).all())
    print(f"entrywise bounds at most {float((hi - lo).max()):.1e} apart")

    cotangent = torch.ones_like(z)
    gradients = certificate.gradient_bound(z, cotangent)
    width = gradients.tensors[0].hi - gradients.tensors[0].lo
    print(f"gradient with respect to the weight known to {float(width.max()):.1e}")

    head = torch.nn.Linear(12, 3)
    robust = sd.robust_radius(layer, x, z, head, "l2", solver_error=1e-6)
    step = torch.randn_like(x)
    moved = x + 0.999 * robust.radius.unsqueeze(1).float() * step / step.norm(dim=1, keepdim=True)
    assert bool((head(model(moved)).argmax(dim=1) == robust.predicted).all())
    print(f"certified l2 radii: median {float(robust.radius.median()):.3f}, largest {float(robust.radius.max()):.3f}")


if __name__ == "__main__":
    main()

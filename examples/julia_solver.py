"""Hand a hard equilibrium to Julia, forward and backward. Needs a Julia: see docs/julia.md, or `subdeq doctor`.

    python examples/julia_solver.py

The layer contracts by nearly 0.999 a step, so plain iteration would need thousands of steps for this accuracy; Newton's
method in Julia needs a few. The certificate bounds the error of the answer, whoever computed it.
"""

import torch

import subdeq_plugin as sd

torch.manual_seed(0)
layer = sd.SubhomLinear(8, 64, activation="relu", shift=1e-3, power=0.999).double()
with torch.no_grad():
    layer.weight = torch.softmax(torch.randn(64, 64, dtype=torch.float64), dim=1)  # row sums of one
    layer.injection.weight.mul_(1e-3)
    layer.injection.bias.fill_(1e-3)
x = torch.rand(16, 8, dtype=torch.float64)

# Inside Julia: a layer bound to its input, each sample by itself, until its error is guaranteed.
bound = layer.bind(x).detach()
for key in ("julia:newton_krylov", "subdeq:picard"):
    found = sd.solve(bound, bound.start(), sd.parse_solver(key), certified_tol=1e-8, max_iter=500)
    print(f"{key}: {found.evaluations} evaluations, guaranteed error {float(found.error_bound.max()):.1e}")

# In a model, with the gradient by Julia's GMRES.
model = sd.SubDEQ(layer, f_solver="julia:newton_krylov", b_solver="julia:auto", f_tol=1e-8, b_tol=1e-8)
model(x).sum().backward()
print(f"backward: {model.stats.backward.linear_evaluations} Jacobian products for the whole batch")

# In any torchdeq model, with a map of your own: torch evaluates it whenever Julia asks.
found = sd.solve(torch.cos, torch.ones(3, 5), sd.parse_solver("julia:broyden"), tol=1e-6)
print(f"cos(z) = z at {float(found.value[0, 0]):.6f}")

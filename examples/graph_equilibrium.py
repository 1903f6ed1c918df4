"""An equilibrium on a graph, with its certificate and a guaranteed error.

python examples/graph_equilibrium.py
"""

import torch

import subdeq_plugin as sd


def ring_with_chords(nodes: int) -> torch.Tensor:
    """An `edge_index (2, m)`: a ring in both directions, and a chord from every fifth node."""
    here = torch.arange(nodes)
    chord = here[::5]
    source = torch.cat([here, (here + 1) % nodes, chord])
    target = torch.cat([(here + 1) % nodes, here, (chord + nodes // 2) % nodes])
    return torch.stack([source, target])


def main() -> None:
    torch.manual_seed(0)
    nodes = 200
    x = (torch.randn(nodes, 16), ring_with_chords(nodes))
    layer = sd.SubhomGraph(16, 8, teleport=0.1, normalize="inf", normalize_over="node", shift=1.2)
    model = sd.SubDEQ(layer, f_tol=1e-5)
    z = model(x)
    z.square().sum().backward()
    certificate = model.certify(x)
    print(certificate)
    error = float(certificate.error_bound(z))
    print(f"applications of the map: {model.stats.forward.evaluations}")
    print(f"relative error of every node's state is at most {error:.2e}, proven")
    assert certificate.unique
    assert error < 1e-4


if __name__ == "__main__":
    main()

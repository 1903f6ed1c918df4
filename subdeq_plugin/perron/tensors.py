"""H- and Z-eigenvectors of nonnegative tensors and hypergraphs, and node-edge centrality.

An H-eigenpair of a tensor of order `m` is `T x^(m-1) = lambda x^[m-1]`, powers of a vector being taken entrywise
(L. Qi, J. Symb. Comput. 40, 2005, doi:10.1016/j.jsc.2005.05.007). So `x` is an eigenvector of the homogeneous map
`(T x^(m-1)) ** (1 / (m - 1))`, with eigenvalue `lambda ** (1 / (m - 1))`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DomainError, ShapeError
from .base import Jacobian, Product
from .birkhoff import birkhoff_ratio
from .chain import Chain
from .multi import Multihomogeneous
from .pieces import Piece, Powers, matrix_piece, nonnegative

__all__ = ["Hyperedges", "TensorForm", "by_autograd", "h_eigen", "node_edge", "z_eigen"]

_LARGEST_EDGE = 100  # nodes; 170! is the last factorial that is a double, and squares of them occur


def by_autograd(function: Product, z: Tensor) -> Jacobian:
    """The derivative of a smooth function; tangents go through the derivative of the transposed product."""

    def vjp(u: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            return torch.autograd.grad(function(at), at, u)[0]

    def jvp(v: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            image = function(at)
            u = torch.zeros_like(image, requires_grad=True)
            (pulled,) = torch.autograd.grad(image, at, u, create_graph=True)
            return torch.autograd.grad(pulled, u, v)[0]

    return Jacobian(jvp, vjp)


@dataclass(frozen=True)
class TensorForm(Piece):
    """`z -> T z^(m-1)` for a dense nonnegative tensor with `m >= 2` dimensions of size `N`; the first is left."""

    tensor: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("tensor",)

    @property
    def degree(self) -> float:  # type: ignore[override]
        return float(self.tensor.dim() - 1)

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.tensor.shape[0]

    @property
    def order(self) -> int:
        return self.tensor.dim() - 1

    def __call__(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1])
        value = self.tensor.to(z.dtype).expand(len(flat), *self.tensor.shape)
        while value.dim() > 2:
            value = (value.flatten(1, -2) @ flat[:, :, None])[..., 0].reshape(value.shape[:-1])
        return value.reshape(z.shape)

    def linearize(self, z: Tensor) -> Jacobian:
        return by_autograd(self, z)

    def rate(self) -> float:
        """One argument after another changes, and each by Birkhoff's ratio of the tensor as a matrix, at most."""
        rows = self.tensor.detach().to(torch.float64).flatten(1)
        return self.degree * float(birkhoff_ratio(rows[None])[0]) * (1 + 2.0**-40)

    def roundings(self, before: int) -> int:
        return (self.tensor.dim() - 1) * (before + self.tensor.shape[0])

    @property
    def defect(self) -> str:
        values = self.tensor.detach()
        if not nonnegative(values):
            return "a tensor must have nonnegative finite entries"
        positive = (values > 0).flatten(1).any(dim=1)
        return "" if bool(positive.all()) else f"row {int((~positive).nonzero()[0])} of the tensor is zero"


@dataclass(frozen=True)
class Hyperedges(Piece):
    """`z -> T z^(r-1)` for the adjacency tensor of order `r` of a hypergraph, without forming it.

    An edge of `k < r` nodes stands for all index tuples of length `r` that have just its nodes, with equal entries that
    add up to `k` (A. Banerjee, A. Char, B. Mondal, Linear Algebra Appl. 518, 2017, doi:10.1016/j.laa.2016.12.022). Row
    `i` of the product is, for every edge with `i`, a coefficient of `exp(z_i t)` times `exp(z_j t) - 1` for its other
    nodes `j` (S. Aksoy, I. Amburg, S. Young, SIAM J. Math. Data Sci. 6, 2024, doi:10.1137/23M1584472).

    Attributes:
        edges: one tensor `(E, k)` of node numbers for every size `k` of edges.
        weights: one tensor `(E,)` for each of them.
        nodes: `N`.
        rank: `r`, at least the size of the largest edge.
    """

    edges: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    nodes: int
    rank: int

    @property
    def order(self) -> int:
        return self.rank - 1

    @property
    def degree(self) -> float:  # type: ignore[override]
        return float(self.order)

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.nodes

    def __call__(self, z: Tensor) -> Tensor:
        result = z.new_zeros(z.shape)
        for nodes, weights in zip(self.edges, self.weights, strict=True):
            edges = nodes.to(z.device)
            terms = self._terms(z[..., edges]) * weights.to(z.dtype)[:, None]
            result = result.index_add(-1, edges.flatten(), terms.flatten(-2))
        return result

    def _terms(self, x: Tensor) -> Tensor:
        """For entries `(..., E, k)` of the nodes of edges, what each edge adds to each of its nodes."""
        size, length = x.shape[-1], self.rank
        factorials = [float(math.factorial(p)) for p in range(length)]
        powers = torch.stack([x**p / factorials[p] for p in range(length)], dim=-1)  # of exp(x t), up to t^(r-1)
        below = powers * torch.tensor([0.0] + [1.0] * (length - 1), dtype=x.dtype, device=x.device)  # exp(x t) - 1
        one = torch.zeros_like(powers[..., 0, :])
        one[..., 0] = 1
        before, after = [one], [one]
        for j in range(size - 1):
            before.append(_times(before[-1], below[..., j, :]))
            after.append(_times(after[-1], below[..., size - 1 - j, :]))
        scale = factorials[length - 1] * size / _blowups(size, length)
        parts = [
            _times(_times(before[j], after[size - 1 - j]), powers[..., j, :])[..., length - 1] for j in range(size)
        ]
        return scale * torch.stack(parts, dim=-1)

    def linearize(self, z: Tensor) -> Jacobian:
        return by_autograd(self, z)

    def roundings(self, before: int) -> int:
        counts = torch.zeros(self.nodes, dtype=torch.int64)
        for edges in self.edges:
            counts += torch.bincount(edges.flatten().cpu(), minlength=self.nodes)
        largest = max(edges.shape[1] for edges in self.edges)
        return self.order * before + (largest + 2) * (2 * self.rank + 50) + int(counts.max())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.weights

    def with_tensors(self, tensors: Sequence[Tensor]) -> Hyperedges:
        return replace(self, weights=tuple(tensors))

    @property
    def defect(self) -> str:
        if not all(bool((part > 0).all()) and bool(part.isfinite().all()) for part in self.weights):
            return "the weights of edges must be positive and finite"
        met = torch.zeros(self.nodes, dtype=torch.bool)
        for edges in self.edges:
            met[edges.flatten().cpu()] = True
        return "" if bool(met.all()) else f"node {int((~met).nonzero()[0])} is in no edge, so its entry would be 0"


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of polynomials with coefficients `(..., r)`, cut at degree `r - 1`."""
    length = a.shape[-1]
    return torch.stack([(a[..., : p + 1] * b[..., : p + 1].flip(-1)).sum(dim=-1) for p in range(length)], dim=-1)


def _blowups(size: int, order: int) -> int:
    """The number of index tuples of length `order` that have just `size` given nodes."""
    return sum((-1) ** j * math.comb(size, j) * (size - j) ** order for j in range(size + 1))


def h_eigen(
    target: Tensor | Iterable[Sequence[int]], nodes: int | None = None, weights: Sequence[float] | None = None
) -> Chain:
    """The map whose Perron pair is the H-eigenpair of a nonnegative tensor or of a hypergraph.

    Args:
        target: a dense tensor `(N, ..., N)`; or the edges of a hypergraph, each the numbers of its nodes from 0.
        nodes: of the hypergraph; the largest number and one more, if left out.
        weights: of its edges; 1 if left out.

    Raises:
        ShapeError: the tensor's dimensions differ, or an edge has fewer than two nodes, a node twice, or one too large.
        DomainError: an entry or weight is negative or not finite, or a node is in no edge.
    """
    form = _form(target, nodes, weights)
    return Chain((form, Powers(1 / form.degree)), exponent=form.degree)


def z_eigen(
    target: Tensor | Iterable[Sequence[int]], nodes: int | None = None, weights: Sequence[float] | None = None
) -> Multihomogeneous:
    """The map `T z^(m-1)`, whose eigenpairs `T x^(m-1) = lambda x` with `|x| = 1` are the Z-eigenpairs.

    Those of Qi have 2-norm 1 (`normalize=2`); another norm scales the eigenvalue. There may be several positive ones.
    That the pair found is the only one is proven where `rate` is below 1, which needs a tensor with entries of similar
    size (A. Gautier, F. Tudisco, The contractivity of cone-preserving multilinear mappings, arXiv:1808.04180);
    otherwise bounds are about a pair that is proven to be near the vector.

    Args and errors as for `h_eigen`.
    """
    form = _form(target, nodes, weights)
    return Multihomogeneous((form,), (form.inputs,))


def _form(
    target: Tensor | Iterable[Sequence[int]], nodes: int | None, weights: Sequence[float] | None
) -> TensorForm | Hyperedges:
    if isinstance(target, Tensor):
        if target.dim() < 2 or len(set(target.shape)) != 1:
            raise ShapeError(f"target must have two or more dimensions of one size, got shape {tuple(target.shape)}.")
        return TensorForm(target)
    edges = [tuple(int(node) for node in edge) for edge in target]
    if not edges:
        raise ShapeError("target has no edges.")
    count = nodes if nodes is not None else 1 + max(max(edge, default=0) for edge in edges)
    for edge in edges:
        if len(set(edge)) != len(edge) or len(edge) < 2 or min(edge) < 0 or max(edge) >= count:
            raise ShapeError(f"edge {edge} must have two or more different nodes, numbered from 0 to {count - 1}.")
    if max(map(len, edges)) > _LARGEST_EDGE:
        raise ShapeError(f"an edge has {max(map(len, edges))} nodes; factorials allow up to {_LARGEST_EDGE}.")
    values = [1.0] * len(edges) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(edges):
        raise ShapeError(f"weights must have one entry for each of the {len(edges)} edges, got {len(values)}.")
    sizes = sorted({len(edge) for edge in edges})
    groups = [[index for index, edge in enumerate(edges) if len(edge) == size] for size in sizes]
    return Hyperedges(
        tuple(torch.tensor([edges[index] for index in group]) for group in groups),
        tuple(torch.tensor([values[index] for index in group], dtype=torch.float64) for group in groups),
        count,
        sizes[-1],
    )


def node_edge(
    incidence: Tensor, f: float = 2.0, g: float = 0.5, phi: float = 2.0, psi: float = 0.5
) -> tuple[Chain, Chain]:
    """The maps whose Perron vectors are node and edge centralities of a hypergraph.

    `x ~ (B y ** f) ** g` for the nodes and `y ~ (B^T x ** phi) ** psi` for the edges, for the powers given; each of the
    two is put into the other (F. Tudisco, D. Higham, Commun. Phys. 4, 2021, doi:10.1038/s42005-021-00704-2). Their
    theorem asks for `rho(M) <= 1`, `M` the homogeneity matrix `[[0, f g], [phi psi, 0]]`; the degree of each of the
    compositions is `f g phi psi = rho(M) ** 2`.

    Args:
        incidence: `B (nodes, edges)`, nonnegative, `b_ie > 0` where node `i` is in edge `e`.
        f, g, phi, psi: the powers.

    Raises:
        DomainError: a node is in no edge, an edge has no node, an entry is negative, or the degree exceeds 1.
    """
    if incidence.dim() != 2:
        raise ShapeError(f"incidence must be a matrix (nodes, edges), got shape {tuple(incidence.shape)}.")
    piece = matrix_piece(incidence)
    if piece.transposed().defect:
        raise DomainError("incidence has a zero column: an edge has no node; leave it out.")
    to_nodes = (Powers(f), piece, Powers(g))
    to_edges = (Powers(phi), piece.transposed(), Powers(psi))
    return Chain((*to_edges, *to_nodes)), Chain((*to_nodes, *to_edges))

"""The graph layer: propagation with teleport over a sparse nonnegative adjacency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DomainError, OptionError, ShapeError, unknown_name
from .base import Structure, SubhomLayer
from .linear import check_size
from .operators import DenseOperator, GraphOperator, Propagation, csr

__all__ = ["SubhomGraph", "propagation_matrix"]

_ADJACENCY_NORMS = ("sym", "row", "none")


def _entries(graph: Tensor, nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of an `edge_index (2, m)` or a sparse `(n, n)` adjacency.

    PyG's convention is kept: `edge_index[0]` are sources and `edge_index[1]` targets, so row `i` of the matrix
    gathers from the sources of the edges that end in `i`.
    """
    if graph.layout == torch.strided:
        if graph.dim() != 2 or graph.shape[0] != 2 or graph.dtype not in (torch.int32, torch.int64):
            raise ShapeError(
                "the graph must be an int32 or int64 edge_index of shape (2, m), or a torch sparse (n, n) tensor, "
                f"got a dense {graph.dtype} tensor of shape {tuple(graph.shape)}."
            )
        if graph.numel() and (int(graph.min()) < 0 or int(graph.max()) >= nodes):
            raise ShapeError(
                f"edge_index must hold node numbers from 0 to {nodes - 1} (x has {nodes} nodes), got values from "
                f"{int(graph.min())} to {int(graph.max())}."
            )
        return graph[1], graph[0], torch.ones(graph.shape[1], dtype=dtype, device=graph.device)
    if tuple(graph.shape) != (nodes, nodes):
        raise ShapeError(f"the adjacency must have shape {(nodes, nodes)}, got {tuple(graph.shape)}.")
    coo = (graph if graph.layout == torch.sparse_coo else graph.to_sparse_coo()).coalesce()
    return coo.indices()[0], coo.indices()[1], coo.values().to(dtype)


def propagation_matrix(
    graph: Tensor, nodes: int, dtype: torch.dtype, *, teleport: float, self_loops: bool, adjacency_norm: str
) -> Tensor:
    """`(1 - teleport) * A_hat` as sparse CSR `(n, n)`.

    Args:
        graph: integer `edge_index (2, m)` as in PyG, or a torch sparse `(n, n)` adjacency (COO or CSR).
        nodes: `n`.
        dtype: of the result.
        teleport: in `[0, 1)`.
        self_loops: whether to add the identity to the adjacency.
        adjacency_norm: "sym" for `D^-1/2 A D^-1/2`, "row" for `D^-1 A`, "none"; `D` holds the row sums of `|A|`.
    """
    rows, columns, values = _entries(graph, nodes, dtype)
    if self_loops:
        loop = torch.arange(nodes, device=rows.device)
        rows, columns = torch.cat([rows, loop]), torch.cat([columns, loop])
        values = torch.cat([values, torch.ones(nodes, dtype=dtype, device=values.device)])
    if adjacency_norm != "none":
        degree = torch.zeros(nodes, dtype=torch.float64, device=values.device)
        degree.index_add_(0, rows, values.double().abs())
        scale = torch.where(degree > 0, degree, torch.ones_like(degree))
        exponent = -0.5 if adjacency_norm == "sym" else -1.0
        factor = scale[rows] ** exponent
        if adjacency_norm == "sym":
            factor = factor * scale[columns] ** exponent
        values = (values.double() * factor).to(dtype)
    return csr(rows, columns, values * (1 - teleport), nodes)


class SubhomGraph(SubhomLayer):
    """`f(Z) = N(a((1 - alpha) A_hat Z [W^T] + b) + y)`: APPNP's propagation made subhomogeneous.

    `alpha * (X U^T + c)`, made nonnegative, is injected as `b` (inside, the default: the form of the SubDEQ paper) or
    as `y`.

    Args:
        in_features: features of a node in `x`.
        state_features: features `d` of a node in the state.
        teleport: `alpha`, `0 < alpha < 1`.
        activation, shift, power, normalize, normalize_over, weight, nonneg, injection, injection_map: see
            `SubhomLayer`; groupings: "state", "channel" (one norm per feature), "node" (one norm per node).
            With `weight="nonneg"` a negative entry in the adjacency is refused.
        mix_features: whether a nonnegative `(d, d)` weight mixes the features, as in an implicit graph network; APPNP
            itself does not.
        self_loops: whether to add the identity to the adjacency.
        adjacency_norm: "sym", "row" or "none"; see `propagation_matrix`.
        bias: whether the injection has the constant term `c`.
        device, dtype: of the parameters.

    Input: `x = (features, graph)` with features `(n, in_features)` or `(B, n, in_features)` and the graph an integer
    `edge_index (2, m)` (PyG), a torch sparse `(n, n)` adjacency, or what `prepare` made of one. The state is
    `(n, d)` or `(B, n, d)`; the nodes of one graph are coupled and count as one sample.

    Sources: J. Gasteiger, A. Bojchevski, S. Guennemann, *Predict then Propagate*, ICLR 2019 (arXiv:1810.05997);
    Sittoni and Tudisco, ICML 2024 (arXiv:2403.00720), section 6.
    """

    operator_kind = GraphOperator

    def __init__(
        self,
        in_features: int,
        state_features: int,
        teleport: float = 0.1,
        activation: str = "tanh",
        shift: float = 0.1,
        power: float = 1.0,
        normalize: float | str | None = None,
        weight: str = "nonneg",
        *,
        normalize_over: str = "state",
        nonneg: str = "abs",
        injection: str = "inside",
        injection_map: str = "relu",
        mix_features: bool = False,
        self_loops: bool = True,
        adjacency_norm: str = "sym",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            activation=activation,
            shift=shift,
            power=power,
            normalize=normalize,
            normalize_over=normalize_over,
            weight=weight,
            nonneg=nonneg,
            injection=injection,
            injection_map=injection_map,
        )
        if not (isinstance(teleport, float) and 0 < teleport < 1):
            raise OptionError(f"teleport must be a float between 0 and 1, exclusive, got {teleport!r}.")
        if adjacency_norm not in _ADJACENCY_NORMS:
            raise unknown_name("adjacency_norm", adjacency_norm, _ADJACENCY_NORMS)
        self.in_features = check_size("in_features", in_features)
        self.state_features = check_size("state_features", state_features)
        self.teleport = teleport
        self.self_loops = self_loops
        self.adjacency_norm = adjacency_norm
        self.mix_features = mix_features
        self.injection = nn.Linear(in_features, state_features, bias=bias, device=device, dtype=dtype)
        if mix_features:
            self.weight = nn.Parameter(torch.empty(state_features, state_features, device=device, dtype=dtype))
            self._finish_weight(state_features)

    def prepare(self, graph: Tensor, nodes: int) -> Propagation:
        """The propagation of a graph, to be passed in its place where the same graph is used again and again.

        Args:
            graph: integer `edge_index (2, m)` or a torch sparse `(n, n)` adjacency.
            nodes: `n`.

        Raises:
            ShapeError: the graph does not fit `nodes`.
            DomainError: an edge weight is negative and the layer's weights are not signed.
        """
        if self.weight_kind == "nonneg" and graph.layout != torch.strided:
            # Before the self-loops are added: these could cancel a negative entry and leave a row of zeros.
            edges = _entries(graph, nodes, graph.dtype)[2].to(self.injection.weight.dtype)
            if not bool(edges.isfinite().all()):
                raise DomainError(
                    "the adjacency has NaN or infinite entries; drop those edges or repair their weights."
                )
            if bool((edges < 0).any()):
                raise DomainError(
                    f"the adjacency has negative entries, the smallest {float(edges.min()):g}; pass nonnegative edge "
                    'weights, or build the layer with weight="signed".'
                )
        matrix = propagation_matrix(
            graph,
            nodes,
            self.injection.weight.dtype,
            teleport=self.teleport,
            self_loops=self.self_loops,
            adjacency_norm=self.adjacency_norm,
        )
        return Propagation.of(matrix, self._settings)

    @property
    def _settings(self) -> tuple[float | bool | str, ...]:
        return self.teleport, self.self_loops, self.adjacency_norm, self.weight_kind

    def _split(self, x: Any) -> tuple[Tensor, Tensor | Propagation]:
        if not (isinstance(x, tuple | list) and len(x) == 2 and isinstance(x[1], Tensor | Propagation)):
            raise ShapeError(f"x must be a pair (features, edge_index or adjacency), got {type(x).__name__}.")
        return x[0], x[1]

    def _features(self, x: Any) -> Tensor:
        return self._check_input("features", self._split(x)[0], self.in_features, -1, (2, 3))

    @property
    def injection_scale(self) -> float:
        return self.teleport

    def _operator(self, x: Any) -> GraphOperator:
        features, graph = self._split(x)
        nodes = features.shape[-2]
        propagation = graph if isinstance(graph, Propagation) else self.prepare(graph, nodes)
        if propagation.settings != self._settings:
            raise OptionError(
                f"the graph was prepared by a layer with {propagation.settings}, this one has {self._settings} "
                "(teleport, self_loops, adjacency_norm, weight); call prepare of this layer."
            )
        weight = self.injection.weight
        if propagation.matrix.dtype != weight.dtype or propagation.matrix.device != weight.device:
            raise ShapeError(
                f"the graph was prepared in {propagation.matrix.dtype} on {propagation.matrix.device}, the layer is "
                f"now in {weight.dtype} on {weight.device}; call prepare again."
            )
        if propagation.matrix.shape[0] != nodes:
            raise ShapeError(f"the graph has {propagation.matrix.shape[0]} nodes, the features have {nodes}.")
        return GraphOperator(propagation, self.weight if self.mix_features else None)

    def operator_without_input(self) -> None:
        """None: the graph is part of the input."""
        return

    def structure(self) -> Structure:
        """For every graph: `bind` refuses negative edges, and self-loops leave no row empty."""
        mixing = DenseOperator(self.weight) if self.mix_features else None
        unknown = "" if self.self_loops else "a node without neighbours (self_loops=False; certify with the graph)"
        return Structure(
            () if mixing is None else mixing.coefficients(),
            unknown or ("" if mixing is None else mixing.zero_row(None)),
            None,
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.state_features}, teleport={self.teleport}, {super().extra_repr()}"

"""The linear part `z -> A z` of a layer, matrix-free: apply, transpose, and the facts a certificate checks.

A new kind is one file with a frozen dataclass, and one entry here.
"""

from ..sparse import Propagation, csr
from .base import Operator, Product
from .conv import ConvOperator
from .dense import DenseOperator
from .graph import GraphOperator

__all__ = ["OPERATORS", "ConvOperator", "DenseOperator", "GraphOperator", "Operator", "Product", "Propagation", "csr"]

OPERATORS: dict[str, type[DenseOperator] | type[ConvOperator] | type[GraphOperator]] = {
    operator.kind: operator for operator in (DenseOperator, ConvOperator, GraphOperator)
}

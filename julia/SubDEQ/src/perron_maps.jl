# Eigenproblems `F(z) = λ z`: nonnegative matrices and layers, one sample at a time, and their Jacobians.

# Positive vectors to positive vectors, order-preserving, of degree at most 1. Methods: `product!(y, m, x)` for
# `y = F(x)`; `linearize!(m, y, x)` at a vector of unit norm and its image; then `tangent!(y, m, v)` for `y = J v`,
# `cotangent!(y, m, u)` for `y = Jᵀ u` and, where `has_entries(m)`, `scaled!(B, m, l, r)` for `B = diag(l) J diag(r)`;
# `terms(m)`, about so many positive terms are summed in an entry. `J z = F(z)`: where `F` is not homogeneous, `J` is
# the derivative of `‖z‖ F(z / ‖z‖)`, which is, has the same eigenvectors of unit norm, and a derivative that is not
# negative since `F'(z) z <= F(z)`.
abstract type EigenMap{T} end

has_entries(::EigenMap) = true
linearize!(m::EigenMap, image, point) = m
tangent!(y, m::EigenMap, v) = product!(y, m, v)

const _DENSE_JACOBIAN = 2000  # entries up to which a layer's Jacobian is worth its memory

struct DenseEigen{T,M<:AbstractMatrix{T}} <: EigenMap{T}
    matrix::M
end
Base.length(m::DenseEigen) = size(m.matrix, 1)
terms(m::DenseEigen) = length(m)
LinearAlgebra.issymmetric(m::DenseEigen) = issymmetric(m.matrix)
product!(y, m::DenseEigen, x) = mul!(y, m.matrix, x)
cotangent!(y, m::DenseEigen, u) = mul!(y, transpose(m.matrix), u)
scaled!(B, m::DenseEigen, left, right) = (B .= left .* (m.matrix .* transpose(right)))

# Columns of `rows` are the rows of the matrix: a product goes through them one after another.
struct SparseEigen{T,I<:Integer} <: EigenMap{T}
    rows::SparseMatrixCSC{T,I}
end
Base.length(m::SparseEigen) = size(m.rows, 1)
terms(m::SparseEigen) = maximum(diff(SparseArrays.getcolptr(m.rows)))
LinearAlgebra.issymmetric(m::SparseEigen) = issymmetric(m.rows)
cotangent!(y, m::SparseEigen, u) = mul!(y, m.rows, u)

function product!(y, m::SparseEigen, x)
    starts, columns, values = SparseArrays.getcolptr(m.rows), rowvals(m.rows), nonzeros(m.rows)
    _each_part(length(y), _parts(length(values))) do range
        @inbounds for i in range
            sum = zero(eltype(y))
            for e in starts[i]:(starts[i + 1] - 1)
                sum = muladd(values[e], x[columns[e]], sum)
            end
            y[i] = sum
        end
    end
    return y
end

struct LayerEigen{T,S<:LayerServer{T}} <: EigenMap{T}
    server::S
    matrix::Union{Nothing,Matrix{T}}  # of the operator
    p::Float64
    image::Matrix{T}
    defect::Vector{T}    # F(z) - F'(z) z, which is not negative
    gradient::Vector{T}  # of the norm
end

# One column of `map`; `matrix` is that of its operator, which the columns share.
function LayerEigen(map::LayerMap{T}, matrix, p) where {T}
    n = prod(sample_shape(map.operator))
    return LayerEigen(LayerServer(map, zeros(T, n, 1)), matrix, p, zeros(T, n, 1), zeros(T, n), zeros(T, n))
end

function operator_matrix(map::LayerMap{T}) where {T}
    n = prod(sample_shape(map.operator))
    return n > _DENSE_JACOBIAN ? nothing : multiply!(zeros(T, n, n), map.operator, Matrix{T}(I, n, n))
end

Base.length(m::LayerEigen) = length(m.image)
terms(m::LayerEigen) = length(m) + 40
has_entries(m::LayerEigen) = !isnothing(m.matrix)
product!(y, m::LayerEigen, x) = copyto!(y, evaluate!(m.image, m.server, reshape(x, :, 1), 1:1))

function linearize!(m::LayerEigen, image, point)
    product!(image, m, point)  # another state may have been evaluated last
    linearize!(m.server, m.image, 1:1)
    pushforward!(reshape(m.defect, :, 1), m.server, reshape(point, :, 1), 1:1)
    m.defect .= max.(image .- m.defect, 0)
    norm_gradient!(m.gradient, point, m.p)
    return m
end

# At a vector of unit norm. One of the largest entries stands for `p = Inf`.
function norm_gradient!(g, z, p)
    p == Inf ? (g .= 0; g[argmax(z)] = 1) : (g .= z .^ (p - 1))
    return g
end

function tangent!(y, m::LayerEigen, v)
    pushforward!(reshape(y, :, 1), m.server, reshape(v, :, 1), 1:1)
    y .+= dot(m.gradient, v) .* m.defect
    return y
end

function cotangent!(y, m::LayerEigen, u)
    pullback!(reshape(y, :, 1), m.server, reshape(u, :, 1), 1:1)
    y .+= dot(m.defect, u) .* m.gradient
    return y
end

scaled!(B, m::LayerEigen, left, right) = (B .= (left .* vec(m.server.slopes)) .* m.matrix .* transpose(right) .+
    (left .* m.defect) .* transpose(right .* m.gradient))

# Sparse systems ------------------------------------------------------------------------------------------------------

# The pattern of `A + I` with the values of `A` where they belong; bordered by a column of `-1` and a row with a 1 at
# `fixed`, if that is not 0.
struct SparsePattern{T}
    matrix::SparseMatrixCSC{T,Int}
    values::Vector{T}
    entries::Int
end

function SparsePattern(m::SparseEigen{T}; fixed = 0) where {T}
    n = length(m)
    columns, rows, values = SparseArrays.findnz(m.rows)
    border = fixed > 0 ? n : 0
    append!(rows, 1:n, 1:border, fill(n + 1, border > 0))
    append!(columns, 1:n, fill(n + 1, border), fill(fixed, border > 0))
    append!(values, zeros(n), fill(-1, border), fill(1, border > 0))
    matrix = SparseArrays.sparse(Int.(rows), Int.(columns), values, n + (border > 0), n + (border > 0))
    return SparsePattern(matrix, copy(nonzeros(matrix)), n)
end

# `sign diag(left) A diag(right) + diagonal I`; the border, if there is one, is left alone.
function assemble!(pattern::SparsePattern, left, right, sign, diagonal)
    S, n = pattern.matrix, pattern.entries
    rows, into = rowvals(S), nonzeros(S)
    for j in 1:n, e in SparseArrays.nzrange(S, j)
        i = rows[e]
        i <= n && (into[e] = sign * (pattern.values[e] * right[j]) * left[i] + (i == j) * diagonal)
    end
    return S
end

const _MOST_OPERATIONS = 2e10     # a few seconds
const _OPERATIONS_PER_ENTRY = 2e4  # beyond which GMRES is faster

"""
    factorizable(m::EigenMap)

Whether the linear systems of `m` are solved by a factorisation. Of a sparse matrix the operations of elimination level
by level are counted, levels being the nodes at the same distance from one at the rim of the graph: few for banded
matrices and meshes in the plane, about `n^3` for random matrices.
"""
factorizable(m::EigenMap) = has_entries(m)
factorizable(m::SparseEigen) = length(m) <= _SMALL ||
    _elimination(m) <= min(_MOST_OPERATIONS, _OPERATIONS_PER_ENTRY * length(nonzeros(m.rows)))

function _elimination(m::SparseEigen)
    forward = m.rows
    backward = SparseMatrixCSC(transpose(forward))
    n = length(m)
    seen, queue = zeros(Int8, n), Int[]
    total = 0.0
    for first in 1:n
        seen[first] == 0 || continue
        _levels!(seen, queue, forward, backward, first, Int8(1))
        total += _levels!(seen, queue, forward, backward, queue[end], Int8(2))
    end
    return total
end

# Breadth first from `root` through what is not yet marked: the sum of the cubes of the numbers of nodes in each level.
function _levels!(seen, queue, forward, backward, root, mark)
    empty!(queue)
    push!(queue, root)
    seen[root] = mark
    total, from = 0.0, 1
    while from <= length(queue)
        to = length(queue)
        for at in from:to, A in (forward, backward), e in SparseArrays.nzrange(A, queue[at])
            node = rowvals(A)[e]
            seen[node] == mark || (seen[node] = mark; push!(queue, node))
        end
        total += Float64(to - from + 1)^3
        from = to + 1
    end
    return total
end

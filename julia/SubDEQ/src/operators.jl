# The linear part of a layer on blocks of columns: a block is `(N, k)`, one flattened sample a column.
#
# PyTorch stores rows first and Julia columns first, so a contiguous tensor `(B, ..., b, a)` of PyTorch is, without any
# copy, an array `(a, b, ..., B)` of Julia. Shapes below are Julia's.

"""
    Operator{T}

A linear map of samples. A new kind is a subtype with the methods `multiply!`, `multiply_transposed!` and
`sample_shape`.
"""
abstract type Operator{T} end

"""
    multiply!(y, A::Operator, x)

`y .= A x` for a block `x` of `(N, k)`.
"""
function multiply! end

"""
    multiply_transposed!(y, A::Operator, x)

`y .= Aᵀ x` for a block `x` of `(N, k)`.
"""
function multiply_transposed! end

"""
    sample_shape(A::Operator)

The shape of one sample; a block of `k` of them is `(shape..., k)`.
"""
function sample_shape end

"""
    coefficients(A::Operator)

The arrays of numbers that make up `A`.
"""
function coefficients end

block(A::Operator, x) = reshape(x, sample_shape(A)..., size(x, 2))

"""
    Dense(transposed)

`z -> W z`, given the transpose of `W`: a weight of PyTorch read column by column.
"""
struct Dense{T,M<:AbstractMatrix{T}} <: Operator{T}
    transposed::M
end

sample_shape(A::Dense) = (size(A.transposed, 1),)
coefficients(A::Dense) = (A.transposed,)
multiply!(y, A::Dense, x) = mul!(y, transpose(A.transposed), x)
multiply_transposed!(y, A::Dense, x) = mul!(y, A.transposed, x)

"""
    Conv(weight, width, height; dilation = (1, 1))

Zero-padded cross-correlation that keeps the image size. `weight` is `(kw, kh, C, C)`, input channels before output
channels; a sample is `(width, height, C)`.
"""
struct Conv{T,A<:AbstractArray{T,4}} <: Operator{T}
    weight::A
    width::Int
    height::Int
    dilation::NTuple{2,Int}
end
Conv(weight, width, height; dilation = (1, 1)) = Conv(weight, width, height, dilation)

sample_shape(A::Conv) = (A.width, A.height, size(A.weight, 3))
coefficients(A::Conv) = (A.weight,)

function _dims(A::Conv, x)
    padding = A.dilation .* (size(A.weight)[1:2] .- 1) .÷ 2
    # NNlib means a true convolution unless told not to flip the kernel.
    return DenseConvDims(size(x), size(A.weight); padding, dilation = A.dilation, flipkernel = true)
end

function multiply!(y, A::Conv, x)
    images = block(A, x)
    NNlib.conv!(block(A, y), images, A.weight, _dims(A, images))
    return y
end

function multiply_transposed!(y, A::Conv, x)
    images = block(A, y)
    NNlib.∇conv_data!(images, block(A, x), A.weight, _dims(A, images))
    return y
end

"""
    Graph(propagation, transposed, features; weight = nothing)

`Z -> W Z Pᵀ` for states `(features, nodes)`; without `weight` the identity takes the place of `W`.

`propagation` and `transposed` are sparse matrices whose columns are the rows of `P` and of `Pᵀ`; `weight` is the
transpose of `W`, as for [`Dense`](@ref).
"""
struct Graph{T,W<:Union{Nothing,AbstractMatrix{T}}} <: Operator{T}
    propagation::SparseMatrixCSC{T,Int}
    transposed::SparseMatrixCSC{T,Int}
    features::Int
    weight::W
end
Graph(propagation, transposed, features; weight = nothing) = Graph(propagation, transposed, features, weight)

sample_shape(A::Graph) = (A.features, size(A.propagation, 2))
coefficients(A::Graph) = (nonzeros(A.propagation), A.weight)

function multiply!(y, A::Graph, x)
    isnothing(A.weight) && return _spread!(y, A.propagation, x, A.features)
    mixed = mul!(similar(x, A.features, length(x) ÷ A.features), transpose(A.weight), reshape(x, A.features, :))
    return _spread!(y, A.propagation, reshape(mixed, size(x)), A.features)
end

function multiply_transposed!(y, A::Graph, x)
    isnothing(A.weight) && return _spread!(y, A.transposed, x, A.features)
    spread = _spread!(similar(x), A.transposed, x, A.features)
    mul!(reshape(y, A.features, :), A.weight, reshape(spread, A.features, :))
    return y
end

# Node `j` of the result sums the states of its neighbours. Nodes are shared out among the threads.
function _spread!(y, P, x, features)
    starts, rows, values = SparseArrays.getcolptr(P), rowvals(P), nonzeros(P)
    nodes = size(P, 2)
    for sample in axes(x, 2)
        before = (sample - 1) * nodes * features  # entries of the samples before
        _each_part(nodes, _parts(length(values) * features)) do range
            for j in range
                _gather!(y, before + (j - 1) * features, x, before, features, starts[j]:(starts[j + 1] - 1), rows, values)
            end
        end
    end
    return y
end

# The features of one node, contiguous after `at`, from those of its neighbours in the sample that begins after `before`:
# in tiles whose sums stay in registers, for what this takes is waiting for memory.
function _gather!(y, at, x, before, features, entries, rows, values)
    done = _tiles!(Val(16), 0, y, at, x, before, features, entries, rows, values)
    done = _tiles!(Val(4), done, y, at, x, before, features, entries, rows, values)
    _tiles!(Val(1), done, y, at, x, before, features, entries, rows, values)
end

function _tiles!(width::Val{W}, done, y, at, x, before, features, entries, rows, values) where {W}
    while done + W <= features
        sums = ntuple(_ -> zero(eltype(y)), width)
        @inbounds for e in entries
            sums = _add_scaled(sums, values[e], x, before + (rows[e] - 1) * features + done)
        end
        @inbounds for i in 1:W
            y[at + done + i] = sums[i]
        end
        done += W
    end
    return done
end

@inline _add_scaled(sums::NTuple{W}, value, x, from) where {W} =
    ntuple(i -> (@inbounds muladd(value, x[from + i], sums[i])), Val(W))

const _WORK_PER_THREAD = 100_000  # multiplications below which starting a thread costs more than it saves

_parts(work) = clamp(work ÷ _WORK_PER_THREAD, 1, Threads.nthreads())

function _each_part(f::F, n, parts) where {F}
    parts == 1 && return f(1:n)
    width = cld(n, parts)
    Threads.@threads for part in 1:parts
        f(((part - 1) * width + 1):min(part * width, n))
    end
    return nothing
end

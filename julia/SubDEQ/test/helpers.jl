using LinearAlgebra, Random, SparseArrays, SubDEQ, Test
using SubDEQ: block, evaluate!, linearize!, multiply!, multiply_transposed!, pullback!, pushforward!, sample_shape

const KINDS = (:dense, :conv, :graph, :mixed)

# The matrix of an operator, column by column.
function matrix(A, T = Float64)
    n = prod(sample_shape(A))
    return multiply!(zeros(T, n, n), A, Matrix{T}(I, n, n))
end

function operator(kind, T; scale = 0.3, rng = Xoshiro(1))
    if kind == :dense
        return Dense(T.(scale .* rand(rng, 6, 6) ./ 3))
    elseif kind == :conv
        return Conv(T.(scale .* rand(rng, 3, 3, 2, 2) ./ 9), 4, 3)
    end
    P = sprand(rng, T, 5, 5, 0.5) + I
    P ./= sum(P; dims = 2) ./ T(scale)
    weight = kind == :mixed ? T.(rand(rng, 3, 3) ./ 2) : nothing
    return Graph(sparse(P'), P, 3; weight)
end

function layer(kind, T = Float64; activation = "tanh", shift = 0.1, power = 1, p = 0, samples = 4, outer = false, scale = 0.3)
    A = operator(kind, T; scale)
    n = prod(sample_shape(A))
    rng = Xoshiro(2)
    normalizer = p == 0 ? nothing : Normalizer(p, Tuple(1:length(sample_shape(A))))
    inner = T.(rand(rng, n, samples))
    return LayerMap(A, Activation{T}(activation; shift, power); normalizer,
        inner = outer ? nothing : inner, outer = outer ? inner .+ T(0.2) : nothing)
end

entries(map) = prod(sample_shape(map.operator))
samples(map) = size(something(map.inner, map.outer), 2)

# f(Z), written down again from its definition.
function apply(map, Z)
    a = map.activation
    s = SubDEQ.ACTIVATIONS[a.name].value
    t = matrix(map.operator, eltype(Z)) * Z
    isnothing(map.inner) || (t = t + map.inner)
    y = (s.(t) .+ a.shift) .^ a.power
    isnothing(map.outer) || (y = y + map.outer)
    isnothing(map.normalizer) && return y
    p = map.normalizer.p
    shaped = reshape(y, sample_shape(map.operator)..., size(y, 2))
    dims = map.normalizer.dims
    φ = p == Inf ? maximum(abs, shaped; dims) : sum(abs.(shaped) .^ p; dims) .^ (1 / p)
    return reshape(shaped ./ φ, size(y))
end

residual(map, Z) = maximum(norm.(eachcol(apply(map, Z) .- Z)) ./ norm.(eachcol(Z)))
goal(T = Float64; tol = T == Float64 ? 1e-11 : 1.0f-5, limit = 500, positive = true) = Goal{T}(tol, limit, RELATIVE, positive)

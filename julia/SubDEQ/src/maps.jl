# Who evaluates `f` and its Jacobian products on the columns that ask for it.
#
# A server is given matrices `(N, B)` whose columns are samples, and the list of columns to work on; other columns are
# left alone. It remembers the state at which each column was evaluated and linearized last.

"""
    Server{T}

Evaluates a map on columns. Methods: `evaluate!(F, server, Z, columns)` for `F = f(Z)`; `linearize!(server, F, columns)`
at the states evaluated last; then `pushforward!(P, server, V, columns)` for `P = J V` and `pullback!(P, server, U,
columns)` for `P = Jᵀ U`.
"""
abstract type Server{T} end

"""
    LayerMap(operator, activation; inner = nothing, outer = nothing, normalizer = nothing)

The map `f(z) = N(a(A z + inner) + outer)` of a subhomogeneous layer with its input fixed. `inner` and `outer` are
`(N, B)`, one column a sample.
"""
struct LayerMap{T,O<:Operator{T},I,U,N}
    operator::O
    activation::Activation{T}
    inner::I
    outer::U
    normalizer::N
end
LayerMap(operator::Operator{T}, activation; inner = nothing, outer = nothing, normalizer = nothing) where {T} =
    LayerMap{T,typeof(operator),typeof(inner),typeof(outer),typeof(normalizer)}(
        operator, activation, inner, outer, normalizer)

"""
    LayerServer(map::LayerMap, prototype)

Serves `map` for blocks of the type and size of `prototype`, `(N, B)`.
"""
mutable struct LayerServer{T,L<:LayerMap{T},A<:AbstractMatrix{T}} <: Server{T}
    const map::L
    const arguments::A  # A z + inner
    const slopes::A
    const values::A     # f(z), where the map is normalised
    const gradients::A  # of the norms
    const norms::A      # one column of norms a sample
    const scratch::NTuple{2,A}
end

function LayerServer(map::LayerMap{T}, prototype::AbstractMatrix{T}) where {T}
    fresh() = similar(prototype)
    none() = similar(prototype, 0, size(prototype, 2))
    normalized = !isnothing(map.normalizer)
    groups = normalized ? prod(_norms_shape(map)) : 0
    return LayerServer(
        map, fresh(), fresh(), normalized ? fresh() : none(), normalized ? fresh() : none(),
        similar(prototype, groups, size(prototype, 2)), (fresh(), fresh()))
end

# All columns of a block need no copy; a few are brought together, so that one matrix product serves them all.
everything(m, columns) = length(columns) == size(m, 2)

scratch(s::LayerServer, i, columns) = _leading(s.scratch[i], length(columns))
_leading(m::Matrix, k) = k == size(m, 2) ? m : unsafe_wrap(Array, pointer(m), (size(m, 1), k))  # `m` outlives the block
_leading(m, k) = k == size(m, 2) ? m : similar(m, size(m, 1), k)

function gather(m, columns, into)
    everything(m, columns) && return m
    for (k, column) in enumerate(columns)
        copyto!(view(into, :, k), view(m, :, column))
    end
    return into
end

function scatter!(m, columns, from)
    m === from && return m
    for (k, column) in enumerate(columns)
        copyto!(view(m, :, column), view(from, :, k))
    end
    return m
end

_add!(y, ::Nothing, columns) = y
function _add!(y, injection, columns)
    everything(injection, columns) && return y .+= injection
    for (k, column) in enumerate(columns)
        view(y, :, k) .+= view(injection, :, column)
    end
    return y
end

function _scale!(y, slopes, columns)
    everything(slopes, columns) && return y .*= slopes
    for (k, column) in enumerate(columns)
        view(y, :, k) .*= view(slopes, :, column)
    end
    return y
end

function evaluate!(F, s::LayerServer, Z, columns)
    map = s.map
    t = everything(Z, columns) ? s.arguments : scratch(s, 2, columns)
    multiply!(t, map.operator, gather(Z, columns, scratch(s, 1, columns)))
    _add!(t, map.inner, columns)
    scatter!(s.arguments, columns, t)
    y = everything(F, columns) ? F : t
    activate!(y, map.activation, t)
    _add!(y, map.outer, columns)
    isnothing(map.normalizer) || normalize!(map.normalizer, block(map.operator, y))
    scatter!(F, columns, y)
    return F
end

function linearize!(s::LayerServer, F, columns)
    map = s.map
    t = gather(s.arguments, columns, scratch(s, 1, columns))
    y = everything(F, columns) ? s.slopes : scratch(s, 2, columns)
    isnothing(map.normalizer) || _linearize_norm!(s, t, y, F, columns)
    slope!(y, map.activation, t)
    scatter!(s.slopes, columns, y)
    return s
end

function _linearize_norm!(s, t, y, F, columns)
    map = s.map
    activate!(y, map.activation, t)
    _add!(y, map.outer, columns)
    unnormalized = block(map.operator, y)
    φ = norms(map.normalizer, unnormalized)
    w = similar(unnormalized)
    weights!(w, map.normalizer, unnormalized, φ)
    scatter!(s.gradients, columns, reshape(w, size(y)))
    scatter!(s.norms, columns, reshape(φ, :, length(columns)))
    for column in columns
        copyto!(view(s.values, :, column), view(F, :, column))
    end
    return s
end

# `G`, `w` and `φ` of the columns, each in the shape of a block.
function _norm_parts(s, columns)
    pick(m) = everything(m, columns) ? m : m[:, columns]
    φ = pick(s.norms)
    return block(s.map.operator, pick(s.values)), block(s.map.operator, pick(s.gradients)),
           reshape(φ, _norms_shape(s.map)..., length(columns))
end

_norms_shape(map) = Tuple(d in map.normalizer.dims ? 1 : n for (d, n) in enumerate(sample_shape(map.operator)))

function pushforward!(P, s::LayerServer, V, columns)
    map = s.map
    y = everything(P, columns) ? P : scratch(s, 2, columns)
    multiply!(y, map.operator, gather(V, columns, scratch(s, 1, columns)))
    _scale!(y, s.slopes, columns)
    isnothing(map.normalizer) ||
        normalized_pushforward!(block(map.operator, y), map.normalizer, _norm_parts(s, columns)...)
    scatter!(P, columns, y)
    return P
end

function pullback!(P, s::LayerServer, U, columns)
    map = s.map
    u = scratch(s, 1, columns)
    everything(U, columns) ? copyto!(u, U) : gather(U, columns, u)
    isnothing(map.normalizer) ||
        normalized_pullback!(block(map.operator, u), map.normalizer, _norm_parts(s, columns)...)
    _scale!(u, s.slopes, columns)
    y = everything(P, columns) ? P : scratch(s, 2, columns)
    multiply_transposed!(y, map.operator, u)
    scatter!(P, columns, y)
    return P
end

"""
    AdjointServer(primal::Server, g)

Serves the affine map `u -> g + Jᵀ u`, where `J` is the Jacobian at the states at which `primal` was linearized last and
`g` is `(N, B)`.
"""
struct AdjointServer{T,S<:Server{T},A<:AbstractMatrix{T}} <: Server{T}
    primal::S
    g::A
end

function evaluate!(F, s::AdjointServer, Z, columns)
    pullback!(F, s.primal, Z, columns)
    for column in columns
        view(F, :, column) .+= view(s.g, :, column)
    end
    return F
end
linearize!(s::AdjointServer, F, columns) = s
pushforward!(P, s::AdjointServer, V, columns) = pullback!(P, s.primal, V, columns)

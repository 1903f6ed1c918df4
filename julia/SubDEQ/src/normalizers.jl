# Normalisation `G = F / φ(F)` with a p-norm over groups of the entries of a sample.

"""
    Normalizer(p, dims)

Division by the p-norm over the dimensions `dims` of a sample (Julia's numbering), for positive states and
`1 ≤ p ≤ Inf`.
"""
struct Normalizer{D}
    p::Float64
    dims::D
    Normalizer(p, dims::D) where {D} = new{D}(p, dims)
end

"""
    norms(N::Normalizer, F)

`φ` of every group of the block `F`, with the grouped dimensions kept at size 1.
"""
function norms(N::Normalizer, F)
    N.p == 1 && return sum(abs, F; dims = N.dims)
    N.p == 2 && return sqrt.(sum(abs2, F; dims = N.dims))
    top = maximum(F; dims = N.dims)
    N.p == Inf && return top
    # Scaled, or the powers of small entries underflow.
    p = eltype(F)(N.p)
    return top .* sum(abs.(F ./ top) .^ p; dims = N.dims) .^ inv(p)
end

"""
    normalize!(N::Normalizer, F)

Divide every group of the block `F` by its norm.
"""
normalize!(N::Normalizer, F) = F ./= norms(N, F)

"""
    weights!(w, N::Normalizer, F, φ)

The gradient of the norms `φ` of the block `F`, entrywise, into `w`. For `p = Inf` it spreads evenly over the largest
entries: an element of Clarke's subdifferential.
"""
function weights!(w, N::Normalizer, F, φ)
    if N.p == 1
        w .= sign.(F)
    elseif N.p == 2
        w .= F ./ φ
    elseif N.p == Inf
        w .= F .== φ
        w ./= sum(w; dims = N.dims)
    else
        w .= sign.(F) .* (abs.(F) ./ φ) .^ (eltype(F)(N.p) - 1)
    end
    return w
end

"""
    normalized_pushforward!(v, N, G, w, φ)

`(v - G <w, v>) / φ` in place: the derivative of `F / φ(F)` applied to tangents of `F`.
"""
function normalized_pushforward!(v, N::Normalizer, G, w, φ)
    inner = sum(w .* v; dims = N.dims)
    v .= (v .- G .* inner) ./ φ
    return v
end

"""
    normalized_pullback!(u, N, G, w, φ)

`(u - w <G, u>) / φ` in place: the transposed derivative applied to cotangents.
"""
function normalized_pullback!(u, N::Normalizer, G, w, φ)
    inner = sum(G .* u; dims = N.dims)
    u .= (u .- w .* inner) ./ φ
    return u
end

# Perron pairs `F(z) = λ z`, `z > 0`, of nonnegative matrices and of order-preserving layers, with brackets.
#
# Any positive `z` brackets the eigenvalue by the smallest and the largest quotient `F(z)_i / z_i`: for matrices L.
# Collatz 1942 and H. Wielandt 1950; for maps of degree at most 1 the same holds on vectors of one norm. The quotients
# here are those of rounded arithmetic.

"""
    PerronPair

`value` and positive `vector`, of unit norm, with `F(vector) ≈ value * vector`. The eigenvalue lies in
`[lower, upper]`, up to rounding; `iterations`, the number of evaluations of `F`; and whether the bracket that `vector`
itself gives got as narrow as asked.
"""
struct PerronPair{T}
    value::T
    vector::Vector{T}
    lower::T
    upper::T
    iterations::Int
    converged::Bool
end

"""
    collatz_wielandt(A, x)

The smallest and the largest of `(A x)_i / x_i` for a positive `x`.
"""
collatz_wielandt(A, x) = extrema(_apply(A, x) ./ x)

_apply(A::AbstractMatrix, x) = A * x
_apply(A, x) = A(x)

# The search for one vector -------------------------------------------------------------------------------------------

const _SMALL = 600       # entries up to which Noda's iteration is the fastest
const _GIVE_UP = 100     # observations without progress after which a method will not make any

# Of the largest entry of a vector, what the others are raised to.
_least(::Type{T}) where {T} = ldexp(one(T), max(-600, exponent(floatmin(T)) ÷ 5 * 3))

# Not parametrised by the map: the packages compile their solvers once, not for every kind of map.
mutable struct Search{T}
    const map::EigenMap{T}
    const p::Float64        # the vectors' norm
    const tol::T
    const limit::Int
    const cancelled::Any
    const floor::T          # a bracket so narrow may be as narrow as rounding allows
    const point::Vector{T}  # observed last,
    const image::Vector{T}  # and F of it
    const best::Vector{T}
    width::T                # relative, of the best point's bracket
    value::T
    low::T                  # the bracket of the last point,
    high::T
    lower::T                # and what all of them have in common
    upper::T
    evaluations::Int
    stalled::Int
    spread::T               # of power steps: the width before the last,
    lazy::Bool              # and whether that was a step with F + λI
end

function Search(map::EigenMap{T}, start, p, tol, limit, cancelled) where {T}
    fresh() = zeros(T, length(map))
    search = Search{T}(map, p, tol, limit, cancelled, 8 * (terms(map) + 8) * eps(T), fresh(), fresh(), fresh(),
        T(Inf), T(NaN), zero(T), T(Inf), zero(T), T(Inf), 0, 0, T(Inf), true)
    normalise!(search.best, start, p)
    return search
end

# To unit norm, entries raised to the floor. False, and nothing done, where there is no largest entry.
function normalise!(into, z, p)
    largest = maximum(z)
    largest > 0 && isfinite(largest) && all(!isnan, z) || return false
    into .= max.(z ./ largest, _least(eltype(into)))
    p == Inf || (into ./= norm(into, p))
    return true
end

"""
    count!(search)

One more evaluation: throws where there are none left, and an `InterruptException` when cancelled.
"""
function count!(s::Search)
    s.cancelled() && throw(InterruptException())
    s.evaluations < s.limit || throw(Decided(MAX_ITERATIONS))
    s.evaluations += 1
    return s
end

remaining(s::Search) = s.limit - s.evaluations

"""
    observe!(search, z)

Evaluate at `z`, scaled to unit norm, and remember it if its bracket is the narrowest so far. Throws `Decided` where the
search is over; nothing is done where `z` cannot be scaled.
"""
function observe!(s::Search, z)
    normalise!(s.point, z, s.p) || return s
    count!(s)
    product!(s.image, s.map, s.point)
    low, high = _extrema(s.image, s.point)
    isfinite(high) || throw(Decided(NONFINITE))
    s.low, s.high = low, high
    s.lower, s.upper = max(s.lower, low), min(s.upper, high)
    width = high > 0 ? 1 - low / high : zero(high)
    if width < s.width
        s.width, s.stalled = width, 0
        s.value = norm(s.image, s.p) / norm(s.point, s.p)
        copyto!(s.best, s.point)
    else
        s.stalled += 1
    end
    s.width <= s.tol && throw(Decided(CONVERGED))
    s.stalled >= _PATIENCE && s.width <= s.floor && throw(Decided(ROUNDING_FLOOR))
    return s
end

function _extrema(image, point)
    low, high = typemax(eltype(image)), zero(eltype(image))
    @inbounds @simd for i in eachindex(image, point)
        quotient = image[i] / point[i]
        low, high = min(low, quotient), max(high, quotient)  # NaN wins
    end
    return low, high
end

# The whole of one sample's work.
function search!(map::EigenMap{T}, start, method, p, tol, limit, cancelled; krylovdim = 30) where {T}
    known(_METHODS, "method", method)
    search = Search(map, start, p, T(tol), limit, cancelled)
    try
        observe!(search, copy(search.best))
        _METHODS[method](search, krylovdim)
    catch error
        error isa Decided || rethrow()
    end
    return search
end

PerronPair(s::Search) = PerronPair(
    clamp(s.value, s.lower, max(s.lower, s.upper)), s.best, s.lower, s.upper, s.evaluations, s.width <= s.tol)

# Targets -------------------------------------------------------------------------------------------------------------

_eigen(A::AbstractMatrix) = DenseEigen(_floating(A))
_eigen(A::SparseMatrixCSC) = SparseEigen(SparseMatrixCSC(transpose(_floating(A))))
_eigen(A::Union{Transpose{<:Real,<:SparseMatrixCSC},Adjoint{<:Real,<:SparseMatrixCSC}}) =
    SparseEigen(_floating(parent(A)))
_floating(A) = convert(AbstractMatrix{promote_type(Float64, eltype(A))}, A)

_entries(A::AbstractMatrix) = A
_entries(A::SparseMatrixCSC) = nonzeros(A)
_entries(A::Union{Transpose{<:Real,<:SparseMatrixCSC},Adjoint{<:Real,<:SparseMatrixCSC}}) = nonzeros(parent(A))

function _check(entries, what)
    all(a -> a >= 0 && isfinite(a), entries) ||
        throw(DomainError(what, "a Perron pair needs nonnegative finite entries"))
    return nothing
end

_check(map::LayerMap) = foreach(part -> isnothing(part) || _check(part, "the layer's tensors"),
    (coefficients(map.operator)..., map.inner, map.outer))

# The problem of each sample, by its number.
_eigen_columns(A::AbstractMatrix, method, p) = _ -> _eigen(A)

# The columns of a layer as eigenproblems, sharing the matrix of its operator; `map` must be kept alive.
function _eigen_columns(map::LayerMap, method, p)
    method == "krylov" && throw(ArgumentError("method \"krylov\" is for matrices"))
    isnothing(map.normalizer) || throw(ArgumentError("a normalised layer has the eigenvalue 1"))
    matrix = method == "power" ? nothing : operator_matrix(map)
    return column -> LayerEigen(columns_of(map, column:column), matrix, p)
end

# `work(i)` for every sample, shared out among the threads.
function each_sample(work::F, samples) where {F}
    (samples == 1 || Threads.nthreads() == 1) && return map(work, 1:samples)
    results = Vector{Any}(nothing, samples)
    Threads.@threads :static for i in 1:samples
        results[i] = try
            work(i)
        catch error
            CapturedException(error, catch_backtrace())
        end
    end
    for result in results
        result isa CapturedException && throw(result.ex)
    end
    return map(identity, results)
end

"""
    perron(target; method = "auto", tol = 1e-12, maxiters = 1000, x0 = ones, p = 1, cancelled = () -> false,
           krylovdim = 30)

The Perron pair `F(z) = λ z`, `z > 0`, as a [`PerronPair`](@ref). `target` is a square nonnegative matrix, irreducible,
dense or sparse; or an array `(n, n, B)` of such matrices, or a [`LayerMap`](@ref) that is order-preserving and of
degree at most 1, whose pairs come as a vector, one for each sample.

`tol` is the relative width of the bracket to reach, `maxiters` the largest number of evaluations, Jacobian products
among them; `p` is the exponent of the vectors' norm, on which the eigenvalue depends where the map is not homogeneous.

- `"power"`: plain iteration, with a shift where that does not contract.
- `"noda"`: inverse iteration from above (T. Noda, Numer. Math. 17, 1971, doi:10.1007/BF01436080); for layers with the
  Jacobian of the homogeneous map `‖z‖ F(z / ‖z‖)` (C. Liu, C. Guo, W. Lin, Numer. Math. 137, 2017,
  doi:10.1007/s00211-017-0869-7).
- `"newton"`: a trust region of NonlinearSolve.jl in the logarithms of the entries.
- `"krylov"`: Arnoldi's or Lanczos' iteration of KrylovKit.jl with subspaces of `krylovdim` vectors, then again in
  variables in which the eigenvector is constant, where small entries are inaccurate; matrices only.
- `"auto"`: a few power steps, then `"krylov"` for large matrices that are costly to factorise, then `"noda"`.

The linear systems of `noda` and `newton` are solved by LinearSolve.jl where a factorisation is affordable, else by
GMRES.

Throws a `DomainError` for a negative or nonfinite entry, a `DimensionMismatch` for what is not square, an
`ArgumentError` for an unknown method or one that is not for the target, an `InterruptException` when `cancelled()`.
"""
function perron(A::AbstractMatrix; method = "auto", tol = 1e-12, maxiters = 1000, x0 = nothing, p = 1,
        cancelled = () -> false, krylovdim = 30)
    n = LinearAlgebra.checksquare(A)
    _check(_entries(A), "the matrix")
    map = _eigen(A)
    return PerronPair(search!(map, _start(x0, n), method, Float64(p), tol, maxiters, cancelled; krylovdim))
end

function perron(A::AbstractArray{<:Real,3}; x0 = nothing, options...)
    starts = _start(x0, size(A, 1), size(A, 3))
    return each_sample(i -> perron(view(A, :, :, i); x0 = view(starts, :, i), options...), size(A, 3))
end

function perron(map::LayerMap{T}; method = "auto", tol = 1e-12, maxiters = 1000, x0 = nothing, p = 1,
        cancelled = () -> false) where {T}
    _check(map)
    n, samples = prod(sample_shape(map.operator)), _samples(map, x0)
    starts, column = _start(x0, n, samples), _eigen_columns(map, method, Float64(p))
    GC.@preserve map each_sample(samples) do i
        PerronPair(search!(column(i), view(starts, :, i), method, Float64(p), tol, maxiters, cancelled))
    end
end

_samples(map::LayerMap, x0) = size(something(map.inner, map.outer, x0, zeros(0, 1)), 2)

function _start(x0, shape...)
    isnothing(x0) && return ones(shape...)
    size(x0) == shape || throw(DimensionMismatch("starts of size $(size(x0)) where $shape is needed"))
    all(x -> x > 0 && isfinite(x), x0) || throw(DomainError("x0", "starts must be positive and finite"))
    return x0
end

"""
    noda(A; tol = 1e-10, maxiters = 100, x0 = ones)

[`perron`](@ref) by Noda's inverse iteration (T. Noda, Numer. Math. 17, 1971, doi:10.1007/BF01436080): every iterate is
positive and every step narrows the bracket, at last quadratically.
"""
noda(A; tol = 1e-10, maxiters = 100, options...) = perron(A; method = "noda", tol, maxiters, options...)

"""
    perron_krylov(A, x0; tol = 1e-10, krylovdim = 30, maxiters = 1000)

[`perron`](@ref) by KrylovKit's Arnoldi or Lanczos iteration, for a matrix or a function `x -> A x`. The bracket of a
function's pair is computed from the vector's absolute value where that is positive; it is `[0, Inf]` where it is not.
"""
perron_krylov(A::AbstractMatrix, x0::AbstractVector; tol = 1e-10, krylovdim = 30, maxiters = 1000) =
    perron(A; method = "krylov", tol, maxiters, x0, krylovdim)

function perron_krylov(A, x0::AbstractVector; tol = 1e-10, krylovdim = 30, maxiters = 1000)
    values, vectors, info = eigsolve(A, x0, 1, :LR; tol, krylovdim, maxiter = cld(maxiters, krylovdim), verbosity = 0)
    x = abs.(vectors[1])
    x ./= sum(x)
    lower, upper = all(>(0), x) ? collatz_wielandt(A, x) : (zero(eltype(x)), typemax(eltype(x)))
    return PerronPair(abs(values[1]), x, lower, upper, info.numops, info.converged >= 1)
end

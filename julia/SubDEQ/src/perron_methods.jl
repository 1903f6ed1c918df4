# The methods of `perron`, but for Newton's. Each goes on until `observe!` or `count!` throws, or returns when it gives
# up.

const _FEW = 30     # steps of plain iteration after which other methods are faster
const _POLISH = 12  # after a Krylov method, whose small entries are inaccurate
const _BALANCED = 2 # further passes of a Krylov method

function auto!(s::Search, krylovdim)
    power!(s, _FEW)
    s.map isa LayerEigen || length(s.map) <= _SMALL || s.map isa SparseEigen && factorizable(s.map) ||
        krylov!(s, krylovdim)
    noda!(s)
    return power!(s)
end

# Power ---------------------------------------------------------------------------------------------------------------

"""
    power!(search, steps = typemax(Int))

`z <- F(z)`, or the mean of both where the bracket does not get narrower: a step with `F + λI`, which has the same
eigenvectors and is primitive where `F` is periodic.
"""
function power!(s::Search, steps = typemax(Int))
    next = similar(s.point)
    s.spread, s.lazy = typemax(s.spread), true
    for _ in 1:steps
        observe!(s, power_step!(next, s))
    end
    return s
end

function power_step!(next, s::Search)
    spread = 1 - s.low / s.high
    s.lazy = !s.lazy && spread > 0.95 * s.spread
    s.spread = spread
    s.lazy ? (next .= s.image ./ s.high .+ s.point) : copyto!(next, s.image)
    return next
end

# Noda ----------------------------------------------------------------------------------------------------------------

"""
    noda!(search)

`z <- (upper I - J(z))⁻¹ z`. A step that is not positive is replaced by one of the power method. Another one follows
each: sums of positive terms restore digits that a factorisation loses.
"""
function noda!(s::Search{T}) where {T}
    system = shifted_system(s)
    w, next = similar(s.point), similar(s.point)
    while s.stalled < _GIVE_UP
        linearize!(s.map, s.image, s.point)
        good = shifted_solve!(w, system, s) && all(isfinite, w)
        good && all(<(0), w) && (w .*= -1)  # a shift below the eigenvalue by its last digit
        if good && all(>(0), w)
            next .= s.point .* (w ./ maximum(w))
        else
            power_step!(next, s)
        end
        observe!(s, next)
        observe!(s, s.image)
    end
    return s
end

# `(high I - J)⁻¹ z` in the variables `w` of `D w`, `D = diag(z)`: near an eigenvector all entries of `w` are of one
# size, so that a factorisation does not lose the small entries of `z`.
struct DenseShift{T}
    matrix::Matrix{T}
    cache::LinearCache
end

struct SparseShift{T}
    pattern::SparsePattern{T}
    cache::LinearCache
end

function shifted_system(s::Search{T}) where {T}
    n = length(s.map)
    factorizable(s.map) || return KrylovShift{T}(s, similar(s.point), similar(s.point), ones(T, n),
        GmresWorkspace(n, n, Vector{T}; memory = min(_KRYLOV, n)))
    if s.map isa SparseEigen
        pattern = SparsePattern(s.map)
        return SparseShift(pattern, init(LinearProblem(pattern.matrix, ones(T, n)), _SPARSE_LU; verbose = false))
    end
    matrix = zeros(T, n, n)
    return DenseShift(matrix, init(LinearProblem(matrix, ones(T, n)), LUFactorization(); verbose = false))
end

const _SPARSE_LU = UMFPACKFactorization()

function shifted_solve!(w, system::DenseShift, s::Search)
    matrix = scaled!(system.matrix, s.map, inv.(s.point), s.point)
    matrix .*= -1
    for i in axes(matrix, 1)
        matrix[i, i] += s.high
    end
    return _solve!(w, system.cache, matrix)
end

shifted_solve!(w, system::SparseShift, s::Search) =
    _solve!(w, system.cache, assemble!(system.pattern, inv.(s.point), s.point, -1, s.high))

function _solve!(w, cache, matrix)
    cache.A = matrix
    cache.b = fill!(similar(w), 1)
    solution = try
        SciMLBase.solve!(cache)
    catch error
        error isa Union{SingularException,LAPACKException} || rethrow()
        return false
    end
    copyto!(w, solution.u)
    return SciMLBase.successful_retcode(solution.retcode)
end

# Without a factorisation: `I - D⁻¹ J D / high` by GMRES.
const _KRYLOV = 60

struct KrylovShift{T}
    search::Search{T}
    tangent::Vector{T}
    point::Vector{T}
    right::Vector{T}
    workspace::Any
end
Base.size(A::KrylovShift) = (length(A.right), length(A.right))
Base.size(A::KrylovShift, d::Integer) = d <= 2 ? length(A.right) : 1
Base.eltype(::KrylovShift{T}) where {T} = T

function LinearAlgebra.mul!(y::AbstractVector, A::KrylovShift, x::AbstractVector)
    s = A.search
    count!(s)
    A.point .= s.point .* x
    tangent!(A.tangent, s.map, A.point)
    y .= x .- A.tangent ./ s.point ./ s.high
    return y
end

# As exact as the outer iteration can use: its error becomes the larger of its square and the linear system's.
function shifted_solve!(w, system::KrylovShift{T}, s::Search{T}) where {T}
    rtol = clamp(1 - s.low / s.high, T(1e-10), T(1e-1))
    itmax = min(_KRYLOV, length(w), remaining(s) - 2)
    itmax > 0 || return false
    gmres!(system.workspace, system, system.right; restart = false, atol = zero(T), rtol, itmax)
    copyto!(w, system.workspace.x)
    return true
end

# Krylov --------------------------------------------------------------------------------------------------------------

"""
    krylov!(search, krylovdim)

An eigenvector of `D⁻¹ A D` for the eigenvalue with the largest real part, which for a nonnegative matrix is the
spectral radius; first with `D = I`, then with the vector so far. The errors of the iteration are of the size of the largest
entry, and in the second variables all entries are of one size.
"""
function krylov!(s::Search{T}, krylovdim) where {T}
    s.map isa LayerEigen && throw(ArgumentError("method \"krylov\" is for matrices"))
    scale = ones(T, length(s.map))
    for pass in 0:_BALANCED
        balanced = Balanced(s, pass == 0 ? scale : copyto!(scale, s.best), similar(s.point))
        hermitian = pass == 0 && issymmetric(s.map)
        vector = dominant(balanced, s.best ./ scale, hermitian, min(krylovdim, length(s.map)))
        isnothing(vector) || observe!(s, scale .* vector)
        power!(s, _POLISH)
    end
    return s
end

# `x -> D⁻¹ A D x`.
struct Balanced{T}
    search::Search{T}
    scale::Vector{T}
    scaled::Vector{T}
end

function (A::Balanced)(x::AbstractVector)
    count!(A.search)
    A.scaled .= A.scale .* x
    y = product!(similar(x), A.search.map, A.scaled)
    y ./= A.scale
    return y
end

function dominant(A::Balanced{T}, start, ishermitian, krylovdim) where {T}
    s = A.search
    # A cycle after the first keeps three fifths of the subspace. Half of what is left is for what follows.
    cycles = 1 + (remaining(s) ÷ 2 - krylovdim) ÷ max(1, cld(2krylovdim, 5))
    cycles >= 1 || return nothing
    # Entries of the unit vector are about `1 / sqrt(n)`, once they are of one size.
    tol = s.high * max(s.tol / (4 * sqrt(T(length(start)))), 4 * eps(T))
    _, vectors, _ = eigsolve(A, start, 1, :LR;
        ishermitian, tol, krylovdim, maxiter = cycles, eager = true, verbosity = 0)
    return isempty(vectors) ? nothing : abs.(vectors[1])
end

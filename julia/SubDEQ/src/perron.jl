# Perron pairs of nonnegative matrices, with brackets.
#
# For a nonnegative irreducible `A` and any positive `x` the spectral radius lies between the smallest and the largest
# quotient `(A x)_i / x_i` (L. Collatz 1942, H. Wielandt 1950); the brackets below are computed from the result itself.

"""
    PerronPair

`value` and positive `vector` of unit 1-norm with `A vector ≈ value * vector`; the spectral radius lies in
`[lower, upper]`, up to rounding; `iterations`, and whether the bracket got as narrow as asked.
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

"""
    noda(A; tol = 1e-10, maxiters = 50, x0 = ones)

Noda's inverse iteration (T. Noda, Numer. Math. 17, 1971, doi:10.1007/BF01436080) for a nonnegative irreducible matrix:
every iterate is positive and every step narrows the bracket, at last quadratically.

Throws a `DomainError` for a negative or nonfinite entry and a `DimensionMismatch` for a matrix that is not square.
"""
function noda(A::AbstractMatrix; tol = 1e-10, maxiters = 50, x0 = ones(float(eltype(A)), size(A, 2)))
    LinearAlgebra.checksquare(A)
    all(a -> a >= 0 && isfinite(a), A isa SparseMatrixCSC ? nonzeros(A) : A) ||
        throw(DomainError(A, "a Perron pair needs nonnegative finite entries"))
    x = x0 ./ sum(x0)
    lower, upper = collatz_wielandt(A, x)
    iterations = 0
    while upper - lower > tol * upper && iterations < maxiters
        iterations += 1
        y = try
            (upper * I - A) \ x
        catch error
            error isa Union{SingularException,LAPACKException} || rethrow()
            break  # `upper` is the spectral radius to the last digit
        end
        all(>(0), y) && all(isfinite, y) || break
        x = y ./ sum(y)
        l, u = collatz_wielandt(A, x)
        lower, upper = max(lower, l), min(upper, u)
    end
    return PerronPair((lower + upper) / 2, x, lower, upper, iterations, upper - lower <= tol * upper)
end

"""
    perron_krylov(A, x0; tol = 1e-10, krylovdim = 30, maxiters = 100)

The dominant pair by KrylovKit's Arnoldi iteration, for a matrix or a function `x -> A x`. The bracket is computed from
the vector's absolute value where that is positive; it is `[0, Inf]` where it is not.
"""
function perron_krylov(A, x0::AbstractVector; tol = 1e-10, krylovdim = 30, maxiters = 100)
    values, vectors, info = eigsolve(A, x0, 1, :LM; tol, krylovdim, maxiter = maxiters)
    x = abs.(vectors[1])
    x ./= sum(x)
    lower, upper = all(>(0), x) ? collatz_wielandt(A, x) : (zero(eltype(x)), typemax(eltype(x)))
    return PerronPair(abs(values[1]), x, lower, upper, info.numops, info.converged >= 1)
end

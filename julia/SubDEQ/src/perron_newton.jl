# Newton's method for Perron pairs, in logarithms: positivity comes by itself.
#
# Unknowns `u` and `s = log λ`; equations `log F(z)_i - log z_i - s = 0` at `z = exp(u) / ‖exp(u)‖`, and `c'u` stays.
# The Jacobian is `P - I`, bordered by `-1` and `c'`, with the stochastic matrix `P = diag(1 / F) J diag(z)`. For a matrix
# `log F` is convex in `u`, and Newton's method is R. Howard's policy iteration for `s`, the largest mean reward of a
# chain `P`. With the norm as an equation, which is curved, only short steps would lessen the residual of a nearly
# reducible matrix.

# Not parametrised by the map, as the search.
mutable struct LogSystem{T}
    const search::Search{T}
    const pattern::Union{Nothing,SparsePattern{T}}
    const gauge::Vector{T}     # c: the mean, or a single entry where the Jacobian is to be sparse
    const level::T
    const point::Vector{T}     # z of the unknowns evaluated last,
    const image::Vector{T}     # and F of it
    const unknowns::Vector{T}
    const tangent::Vector{T}
    linearized::Bool
end

function LogSystem(s::Search{T}, pattern, gauge, start) where {T}
    n = length(s.map)
    level = dot(gauge, view(start, 1:n))
    return LogSystem{T}(s, pattern, gauge, level, zeros(T, n), zeros(T, n), fill(T(NaN), n + 1), zeros(T, n), false)
end

Base.copy(system::LogSystem) = system  # LinearSolve copies the operators it is given together with their parameters

function evaluate!(system::LogSystem, x)
    x == system.unknowns && return system
    u = view(x, 1:(length(x) - 1))
    all(isfinite, u) || throw(Inadmissible())
    copyto!(system.unknowns, x)
    system.linearized = false
    system.point .= exp.(u .- maximum(u))
    s = system.search
    observe!(s, system.point)
    copyto!(system.point, s.point)
    copyto!(system.image, s.image)
    all(>(0), system.image) || throw(Inadmissible())
    return system
end

function linearize!(system::LogSystem, x)
    evaluate!(system, x)
    system.linearized && return system
    s = system.search
    linearize!(s.map, system.image, system.point)
    system.linearized = true
    return system
end

function log_residual!(r, x, system::LogSystem)
    evaluate!(system, x)
    n = length(system.point)
    @views r[1:n] .= log.(system.image ./ system.point) .- x[n + 1]
    r[n + 1] = dot(system.gauge, view(x, 1:n)) - system.level
    return nothing
end

function log_jvp!(r, v, x, system::LogSystem)
    linearize!(system, x)
    n = length(system.point)
    count!(system.search)
    inner = view(v, 1:n)
    tangent!(system.tangent, system.search.map, system.point .* inner)
    @views r[1:n] .= system.tangent ./ system.image .- inner .- v[n + 1]
    r[n + 1] = dot(system.gauge, inner)
    return nothing
end

function log_vjp!(r, v, x, system::LogSystem)
    linearize!(system, x)
    n = length(system.point)
    count!(system.search)
    inner = view(v, 1:n)
    cotangent!(system.tangent, system.search.map, inner ./ system.image)
    @views r[1:n] .= system.point .* system.tangent .- inner .+ v[n + 1] .* system.gauge
    r[n + 1] = -sum(inner)
    return nothing
end

function log_jacobian!(J::Matrix, x, system::LogSystem)
    linearize!(system, x)
    n = length(system.point)
    scaled!(view(J, 1:n, 1:n), system.search.map, inv.(system.image), system.point)
    for i in 1:n
        J[i, i] -= 1
        J[i, n + 1] = -1
        J[n + 1, i] = system.gauge[i]
    end
    J[n + 1, n + 1] = 0
    return nothing
end

function log_jacobian!(J::SparseMatrixCSC, x, system::LogSystem)
    linearize!(system, x)
    S = assemble!(system.pattern, inv.(system.image), system.point, 1, -1)
    copyto!(nonzeros(J), nonzeros(S))
    return nothing
end

const _ROUNDS = 6  # starts of the solver, with more and more power steps before each
const _IDLE = 40   # observations without progress after which it is started anew

"""
    newton!(search)

A trust region of NonlinearSolve.jl from a few power steps on, with a factorisation or with GMRES.
"""
function newton!(s::Search{T}) where {T}
    steps = 8
    power!(s, steps)
    direct = factorizable(s.map)
    gauge = fill(inv(T(length(s.map))), length(s.map))
    pattern = nothing
    if direct && s.map isa SparseEigen
        largest = argmax(s.best)
        pattern = SparsePattern(s.map; fixed = largest)
        gauge .= eachindex(gauge) .== largest
    end
    for _ in 1:_ROUNDS
        start = [log.(s.best); log(s.value)]
        system = LogSystem(s, pattern, gauge, start)
        s.stalled = 0
        try
            newton_steps!(log_cache(system, start, direct), s)
        catch error
            error isa Union{Inadmissible,SingularException,LAPACKException} || rethrow()
        end
        observe!(s, s.best)
        steps *= 4
        power!(s, steps)
    end
    return s
end

# A power step after each: sums of positive terms restore digits that logarithms lose.
function newton_steps!(cache, s::Search)
    while s.stalled < _IDLE
        before = s.evaluations
        step!(cache)
        (cache.force_stop || s.evaluations == before) && return s
        observe!(s, s.image)
    end
    return s
end

function log_cache(system::LogSystem{T}, start, direct) where {T}
    n = length(start)
    if direct
        prototype = isnothing(system.pattern) ? zeros(T, n, n) : copy(system.pattern.matrix)
        f = NonlinearFunction{true}(log_residual!; jac = log_jacobian!, jac_prototype = prototype)
        linsolve, linear = isnothing(system.pattern) ? LUFactorization() : _SPARSE_LU, (;)
    else
        f = NonlinearFunction{true}(log_residual!; jvp = log_jvp!, vjp = log_vjp!)
        linsolve, linear = ReusedGmres(_KRYLOV), (; abstol = zero(T), reltol = T(1e-3), maxiters = _KRYLOV)
    end
    # Changes by a factor e in every entry at first. Without bounds, steps between weakly coupled parts of a matrix
    # leave the range of numbers.
    algorithm = TrustRegion(; linsolve, concrete_jac = direct, initial_trust_radius = sqrt(T(n)),
        max_trust_radius = 100 * sqrt(T(n)))
    return init(NonlinearProblem(f, start, system), algorithm; abstol = zero(T), reltol = zero(T),
        maxiters = typemax(Int) ÷ 2, termination_condition = AbsNormTerminationMode(_largest), linsolve_kwargs = linear,
        verbose = false)
end

const _METHODS = Dict{String,Any}(
    "auto" => auto!, "power" => (s, _) -> power!(s), "noda" => (s, _) -> noda!(s), "newton" => (s, _) -> newton!(s),
    "krylov" => krylov!)

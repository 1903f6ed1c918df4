# The table of methods: each name of a solver to an algorithm of NonlinearSolve.jl.
#
# The residual is `z - f(z)`. With `f(z) - z`, whose Jacobian is near `-I` for a contraction, Broyden's method and
# pseudo-transient continuation go the wrong way.

"""
    Solver(name; options...)

A method of [`SOLVERS`](@ref) with its options.

| name | algorithm | options |
|:-----|:----------|:--------|
| `newton_krylov` | Newton with matrix-free GMRES | `linear_rtol`, `krylov_dim` |
| `newton_raphson` | Newton with the Jacobian as a dense matrix and LU | |
| `trust_region` | dogleg trust region, matrix-free GMRES | `linear_rtol`, `krylov_dim` |
| `pseudo_transient` | pseudo-transient continuation, matrix-free GMRES | `alpha`, `linear_rtol`, `krylov_dim` |
| `broyden` | Broyden's method | `alpha`, `rule`: `good`, `bad`, `diagonal` or `auto` |
| `dfsane` | spectral residual method | `memory` |
| `picard` | plain iteration | |

Throws an `ArgumentError` for an unknown name.
"""
struct Solver
    name::String
    options::Dict{Symbol,Any}
    function Solver(name; options...)
        known(SOLVERS, "method", name)
        return new(name, Dict{Symbol,Any}(options))
    end
end

option(m::Solver, name::Symbol, default) = get(m.options, name, default)

# GMRES of Krylov.jl with one workspace for all Newton steps; LinearSolve's own makes a new one for every step. A linear
# solve that reaches the largest dimension before its tolerance is a good enough step.
struct ReusedGmres <: AbstractKrylovSubspaceMethod
    memory::Int
end

LinearSolve.init_cacheval(alg::ReusedGmres, A, b, u, args...; kwargs...) =
    GmresWorkspace(length(b), length(u), typeof(u); memory = min(alg.memory, length(u)))

function SciMLBase.solve!(cache::LinearCache, alg::ReusedGmres; kwargs...)
    workspace = cache.cacheval
    gmres!(workspace, cache.A, cache.b; restart = false, atol = cache.abstol, rtol = cache.reltol, itmax = alg.memory)
    copyto!(cache.u, workspace.x)
    return SciMLBase.build_linear_solution(alg, cache.u, nothing, cache; retcode = SciMLBase.ReturnCode.Success)
end

_gmres(m) = ReusedGmres(Int(option(m, :krylov_dim, 30)))

const _RULES = Dict("diagonal" => Val(:diagonal), "good" => Val(:good_broyden), "bad" => Val(:bad_broyden))
const _DENSE_BROYDEN = 512  # entries up to which a dense approximation of the Jacobian is worth its memory

function _rule(m, entries)
    name = option(m, :rule, "auto")
    return _RULES[name == "auto" ? (entries <= _DENSE_BROYDEN ? "good" : "diagonal") : name]
end

"""
    SOLVERS

Each name to the algorithm it stands for, as a function of the [`Solver`](@ref) and the number of entries of a sample;
`nothing` for plain iteration, which NonlinearSolve.jl does not have. The derivatives of the maps are ours, so that no
backend of automatic differentiation is ever asked.
"""
const SOLVERS = Dict{String,Any}(
    "newton_krylov" => (m, n) -> NewtonRaphson(; linsolve = _gmres(m), concrete_jac = false),
    "newton_raphson" => (m, n) -> NewtonRaphson(; linsolve = LUFactorization(), concrete_jac = true),
    "trust_region" => (m, n) -> TrustRegion(; linsolve = _gmres(m), concrete_jac = false),
    "pseudo_transient" => (m, n) -> PseudoTransient(;
        linsolve = _gmres(m), concrete_jac = false, alpha_initial = option(m, :alpha, 10.0)),
    "broyden" => (m, n) -> Broyden(;
        update_rule = _rule(m, n), alpha = option(m, :alpha, 1.0)),
    "dfsane" => (m, n) -> DFSane(; M = Int(option(m, :memory, 10))),
    "picard" => (m, n) -> nothing,
)

# The residual and its derivatives, on one lane. One concrete function for every map, so that nothing compiles anew.
function residual!(r, u, lane::Lane)
    r .= u .- evaluate!(lane, u)
    return nothing
end

function residual_jvp!(r, v, u, lane::Lane)
    product!(r, lane, v, u, PUSHFORWARD)
    r .= v .- r
    return nothing
end

function residual_vjp!(r, v, u, lane::Lane)
    product!(r, lane, v, u, PULLBACK)
    r .= v .- r
    return nothing
end

function residual_jacobian!(J, u, lane::Lane)
    unit = zero(u)
    for i in eachindex(unit)
        unit[i] = 1
        product!(view(J, :, i), lane, unit, u, PUSHFORWARD)
        unit[i] = 0
    end
    J .*= -1
    for i in axes(J, 1)
        J[i, i] += 1
    end
    return nothing
end

# What a lane runs for a nonlinear map. The cache of NonlinearSolve.jl is kept for the next sample.
mutable struct NonlinearWork{T}
    const solver::Solver
    const start::Vector{T}
    cache::Any
end
NonlinearWork{T}(solver, entries) where {T} = NonlinearWork{T}(solver, Vector{T}(undef, entries), nothing)

# Where a solver cannot go on, plain applications of the map from the best state come in, more of them each time, before
# it is started anew: plain iteration is what the theory vouches for. Progress makes the count start again.
const _RETRIES = 5

function (work::NonlinearWork)(lane::Lane)
    copyto!(work.start, lane.best)
    while true
        outcome, final = attempt!(work, lane)
        final && return outcome
        isfinite(lane.residual[3]) || return NONFINITE
        lane.retries == _RETRIES && return tiny(lane) ? ROUNDING_FLOOR : outcome
        lane.retries += 1
        copyto!(work.start, lane.best_image)
    end
end

# The outcome, and whether it is final: the solver may go on from another state.
function attempt!(work::NonlinearWork, lane::Lane)
    u = work.start
    try
        evaluate!(lane, u)
        for _ in 2:2^lane.retries
            converged(lane) && break
            copyto!(u, lane.image)
            evaluate!(lane, u)
        end
        converged(lane) && return CONVERGED, true
        algorithm = SOLVERS[work.solver.name](work.solver, length(u))
        isnothing(algorithm) && return plain!(lane)
        start!(work, lane, u, algorithm)
        return steps!(work.cache, lane)
    catch error
        error isa Decided && return error.outcome, true
        error isa Inadmissible && return DIVERGED, false
        error isa Union{SingularException,LAPACKException} && return STALLED, false
        rethrow()
    end
end

function plain!(lane::Lane)
    while true
        evaluate!(lane, lane.image)
        converged(lane) && return CONVERGED, true
        at_rounding_floor(lane) && return ROUNDING_FLOOR, true
    end
end

# Algorithms whose caches `reinit!` puts back to their first state. The others keep damping, trust radius, line-search
# history or an approximate Jacobian of the sample before.
const _REUSABLE = ("newton_krylov", "newton_raphson")

function start!(work::NonlinearWork{T}, lane::Lane{T}, u, algorithm) where {T}
    if !isnothing(work.cache) && work.solver.name in _REUSABLE
        SciMLBase.reinit!(work.cache, u; p = lane)
        return work
    end
    dense = work.solver.name == "newton_raphson"
    f = NonlinearFunction{true}(residual!; jvp = residual_jvp!, vjp = residual_vjp!,
        jac = dense ? residual_jacobian! : nothing)
    # The lane judges the states itself, so the tolerances of the package never end a solve.
    linear = (; abstol = zero(T), reltol = T(option(work.solver, :linear_rtol, 1e-2)),
        maxiters = Int(option(work.solver, :krylov_dim, 30)))
    work.cache = init(NonlinearProblem(f, copy(u), lane), algorithm; abstol = zero(T), reltol = zero(T),
        maxiters = typemax(Int) ÷ 2, termination_condition = AbsNormTerminationMode(_largest),
        linsolve_kwargs = dense ? (;) : linear, verbose = false)
    return work
end

_largest(x) = maximum(abs, x)

const _STUCK = 30  # evaluations without progress after which a method is started anew; DF-SANE needs some patience

function steps!(cache, lane::Lane)
    while true
        before = lane.evaluations
        step!(cache)
        converged(lane) && return CONVERGED, true
        # A step too small to change the state evaluates nothing.
        lane.evaluations == before && (lane.stalled += 1)
        at_rounding_floor(lane) && return ROUNDING_FLOOR, true
        lane.stalled >= _STUCK && return STALLED, false
        (cache.force_stop || lane.evaluations == before && lane.stalled >= _PATIENCE) && return STALLED, false
    end
end

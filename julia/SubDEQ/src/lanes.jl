# One lane a sample: a coroutine in which a solver of NonlinearSolve.jl or Krylov.jl works on that sample alone.
#
# Neither package has batched solvers, and a batch written as one system lets one bad sample spoil all others. So every
# sample is solved by itself, by an unchanged solver, in a coroutine of its own. Where the solver needs `f` or a
# Jacobian product, its lane leaves the request and yields; when all lanes wait, one batched evaluation serves them all.

@enum Request::Int32 IDLE = 0 EVALUATE = 1 LINEARIZE = 2 PUSHFORWARD = 3 PULLBACK = 4 FINISHED = 5

"""
    Outcome

How a sample ended; the numbers are those of `subdeq_plugin.Status`.
"""
@enum Outcome::Int32 CONVERGED = 0 ROUNDING_FLOOR = 1 MAX_ITERATIONS = 2 DIVERGED = 3 NONFINITE = 4 STALLED = 5

@enum Measure::Int32 ABSOLUTE = 1 RELATIVE = 2 THOMPSON = 3 HILBERT = 4

"""
    Goal{T}(tol, limit, measure, positive)

When a sample is done: its residual in `measure` is at most `tol`, or it has spent `limit` evaluations. With `positive`
only states of the open positive orthant are evaluated.
"""
struct Goal{T}
    tol::T
    limit::Int
    measure::Measure
    positive::Bool
end

# Raised inside a solver to leave it: the lane's sample is decided.
struct Decided <: Exception
    outcome::Outcome
end

# Raised inside a solver whose proposal cannot be evaluated; the lane goes on from the image of its best state.
struct Inadmissible <: Exception end

mutable struct Lane{T}
    const point::Vector{T}    # the state evaluated last,
    const image::Vector{T}    # f of it,
    const tangent::Vector{T}  # the argument of a Jacobian product
    const product::Vector{T}  # and its result; all four are columns of the session's matrices
    request::Request
    goal::Goal{T}
    work::Any                 # what the coroutine runs: a callable of the lane
    known::Bool               # whether `image` is f(point)
    linearized::Bool          # whether products are taken at `point`
    const best::Vector{T}
    const best_image::Vector{T}
    residual::NTuple{3,T}     # of the best state: absolute, relative, and the one that is tested
    iteration::Int            # the evaluation of the best state
    evaluations::Int
    stalled::Int
    retries::Int              # failures of the solver since the last progress
    outcome::Outcome
    failure::Union{Nothing,CapturedException}
    home::Task
    task::Task
    function Lane(point::Vector{T}, image, tangent, product) where {T}
        lane = new{T}(point, image, tangent, product, IDLE, Goal{T}(0, 0, ABSOLUTE, false), nothing, false, false,
            similar(point), similar(point), (T(Inf), T(Inf), T(Inf)), 0, 0, 0, 0, NONFINITE, nothing)
        lane.home = current_task()
        lane.task = Task(() -> live(lane))
        return lane
    end
end

# LinearSolve copies the operators it is given together with their parameters; a lane stays the same lane.
Base.copy(lane::Lane) = lane

# The coroutine never ends: it is used again for the next sample, together with the solver's caches.
function live(lane::Lane)
    while true
        try
            lane.outcome = lane.work(lane)::Outcome
            lane.failure = nothing
        catch error
            lane.failure = CapturedException(error, catch_backtrace())
        end
        copyto!(lane.point, lane.best)  # a finished sample is frozen there
        lane.request = FINISHED
        yieldto(lane.home)
    end
end

"""
    begin!(lane, start, goal)

Prepare `lane` for a sample that starts at `start`.
"""
function begin!(lane::Lane{T}, start, goal::Goal{T}) where {T}
    lane.goal = goal
    copyto!(lane.best, start)
    copyto!(lane.best_image, start)
    lane.known = lane.linearized = false
    lane.residual = (T(Inf), T(Inf), T(Inf))
    lane.iteration = lane.evaluations = lane.stalled = lane.retries = 0
    lane.failure = nothing
    lane.request = IDLE
    return lane
end

"""
    resume!(lane)

Run `lane` until it asks for something or has finished.
"""
function resume!(lane::Lane)
    lane.home = current_task()
    lane.request = IDLE
    yieldto(lane.task)
    isnothing(lane.failure) || throw(lane.failure)
    return lane.request
end

function ask!(lane::Lane, request::Request)
    lane.request = request
    yieldto(lane.home)
    return lane
end

"""
    evaluate!(lane, u)

Bring `f(u)` into `lane.image`, judging `u` on the way; nothing is done where `u` was evaluated last.
"""
function evaluate!(lane::Lane, u)
    lane.known && u == lane.point && return lane.image
    converged(lane) && throw(Decided(CONVERGED))  # in the middle of a step that would go on
    lane.evaluations < lane.goal.limit || throw(Decided(MAX_ITERATIONS))
    all(isfinite, u) && !(lane.goal.positive && !all(>(0), u)) || throw(Inadmissible())
    copyto!(lane.point, u)
    lane.known, lane.linearized = true, false
    ask!(lane, EVALUATE)
    lane.evaluations += 1
    observe!(lane) || throw(Inadmissible())
    return lane.image
end

"""
    product!(result, lane, v, u, request)

`J(u) v` for `PUSHFORWARD`, `J(u)ᵀ v` for `PULLBACK`.
"""
function product!(result, lane::Lane, v, u, request::Request)
    evaluate!(lane, u)
    if !lane.linearized
        ask!(lane, LINEARIZE)
        lane.linearized = true
    end
    copyto!(lane.tangent, v)
    ask!(lane, request)
    return copyto!(result, lane.product)
end

# Residuals -----------------------------------------------------------------------------------------------------------

function _residuals(z, fz, measure::Measure)
    T = eltype(z)
    difference, size = zero(T), zero(T)
    @inbounds @simd for i in eachindex(z, fz)
        difference += abs2(fz[i] - z[i])
        size += abs2(fz[i])
    end
    absolute, size = sqrt(difference), sqrt(size)
    # Squares that overflow or vanish need scaling.
    isfinite(absolute) && absolute > sqrt(floatmin(T)) || (absolute = _norm2(fz .- z))
    isfinite(size) && size > sqrt(floatmin(T)) || (size = _norm2(fz))
    relative = absolute / max(size, floatmin(T))
    measure == ABSOLUTE && return absolute, relative, absolute
    measure == RELATIVE && return absolute, relative, relative
    # Thompson's distance; twice it bounds Hilbert's, and tells states off the slice φ = 1 from solutions.
    distance = zero(T)
    for i in eachindex(z, fz)
        distance = max(distance, abs(log(fz[i]) - log(z[i])))
    end
    return absolute, relative, measure == THOMPSON ? distance : 2distance
end

_norm2(x) = all(isfinite, x) ? norm(x) : eltype(x)(NaN)

const _FLOOR_UNITS = 16  # a relative residual so many rounding units small,
const _PATIENCE = 6      # without progress for so many evaluations, will not get smaller

# Remember the best state. False where the image cannot be used.
function observe!(lane::Lane{T}) where {T}
    all(isfinite, lane.image) || return false
    ratios = lane.goal.measure in (THOMPSON, HILBERT)
    ratios && !(all(>(0), lane.point) && all(>(0), lane.image)) && return false
    residual = _residuals(lane.point, lane.image, lane.goal.measure)
    if residual[3] < lane.residual[3]
        lane.residual = residual
        lane.iteration = lane.evaluations
        lane.stalled = 0
        lane.retries = 0
        copyto!(lane.best, lane.point)
        copyto!(lane.best_image, lane.image)
    else
        lane.stalled += 1
    end
    return true
end

converged(lane::Lane) = lane.residual[3] <= lane.goal.tol
tiny(lane::Lane{T}) where {T} = lane.residual[2] <= _FLOOR_UNITS * eps(T)
at_rounding_floor(lane::Lane) = lane.stalled >= _PATIENCE && tiny(lane)

# Solves of whole batches inside Julia: blocks of columns, shared out among the threads.

"""
    Result

What became of every sample of a batch: vectors over the samples, and two totals.
"""
struct Result
    outcome::Vector{Outcome}
    absolute::Vector{Float64}
    relative::Vector{Float64}
    iterations::Vector{Int}
    evaluations::Threads.Atomic{Int}  # of blocks of columns, the largest number any thread made
    products::Threads.Atomic{Int}
end
Result(samples::Integer) = Result(fill(NONFINITE, samples), fill(Inf, samples), fill(Inf, samples), zeros(Int, samples),
    Threads.Atomic{Int}(0), Threads.Atomic{Int}(0))

Base.length(r::Result) = length(r.outcome)

function record!(r::Result, s::Session, value, columns)
    for (lane, column) in zip(s.lanes, columns)
        copyto!(view(value, :, column), lane.best)
        r.outcome[column] = lane.outcome
        r.absolute[column], r.relative[column] = lane.residual[1], lane.residual[2]
        r.iterations[column] = lane.iteration
    end
    Threads.atomic_max!(r.evaluations, s.evaluations)
    Threads.atomic_max!(r.products, s.products)
    return r
end

"""
    columns_of(map::LayerMap, range)

The map for a range of samples, without a copy: `map` must be kept alive while it is used.
"""
columns_of(map::LayerMap, range) = LayerMap(map.operator, map.activation;
    inner = _columns(map.inner, range), outer = _columns(map.outer, range), normalizer = map.normalizer)

_columns(::Nothing, range) = nothing
_columns(m::Matrix, range) =
    unsafe_wrap(Array, pointer(m, (first(range) - 1) * size(m, 1) + 1), (size(m, 1), length(range)))

# About so many states does a lane keep: its columns, the solver's cache and the Krylov basis.
const _STATES_PER_LANE = 60
const _BLOCK_BYTES = 2^28
const _WIDEST = 128

"""
    lane_bytes(solver::Solver, T, entries)

About what a lane takes for samples of so many entries; the dense solvers keep matrices.
"""
function lane_bytes(solver::Solver, ::Type{T}, entries) where {T}
    dense = solver.name == "newton_raphson" || solver.name == "broyden" && _rule(solver, entries) != Val(:diagonal)
    return (_STATES_PER_LANE + (dense ? 2entries : 0)) * entries * sizeof(T)
end

function block_width(solver, ::Type{T}, entries, samples) where {T}
    width = clamp(_BLOCK_BYTES ÷ lane_bytes(solver, T, entries), 1, _WIDEST)
    return min(width, cld(samples, Threads.nthreads()))
end

"""
    solve!(value, map::LayerMap, solver::Solver, goal::Goal; cancelled = () -> false)

Solve `z = f(z)` for every column of `value`, the starts, which the solutions replace. Samples do not influence each
other. Returns a [`Result`](@ref).

Throws an `InterruptException` when `cancelled()`, and whatever a solver throws that is no failure of a sample.
"""
function solve!(value::Matrix{T}, map::LayerMap{T}, solver::Solver, goal::Goal{T}; cancelled = () -> false) where {T}
    return each_block(value, solver, false) do session, range
        GC.@preserve map run!(session, LayerServer(columns_of(map, range), session.Z), goal; cancelled)
    end
end

"""
    solve_adjoint!(value, map::LayerMap, z, g, solver::Solver, goal::Goal; cancelled = () -> false)

Solve `u = g + J(z)ᵀ u` for every column, with GMRES; `value` holds the starts, which the solutions replace. Returns a
[`Result`](@ref).
"""
function solve_adjoint!(value::Matrix{T}, map::LayerMap{T}, z::Matrix{T}, g::Matrix{T}, solver::Solver, goal::Goal{T};
        cancelled = () -> false) where {T}
    return each_block(value, solver, true) do session, range
        GC.@preserve map z g begin
            primal = LayerServer(columns_of(map, range), session.Z)
            all = 1:length(range)
            evaluate!(session.F, primal, _columns(z, range), all)
            linearize!(primal, session.F, all)
            run!(session, AdjointServer(primal, _columns(g, range)), goal; cancelled)
        end
    end
end

function each_block(f::F, value::Matrix{T}, solver, affine) where {F,T}
    entries, samples = size(value)
    result = Result(samples)
    width = block_width(solver, T, entries, samples)
    ranges = collect(Iterators.partition(1:samples, width))
    work(range) = begin
        key = (solver.name, solver.options, T, entries, length(range), affine, Threads.threadid())
        make() = Session{T}(solver, entries, length(range); affine)
        with_session(key, length(range) * lane_bytes(solver, T, entries), make) do session
            copyto!(session.Z, view(value, :, range))
            f(session, range)
            record!(result, session, value, range)
        end
    end
    if length(ranges) == 1 || Threads.nthreads() == 1
        foreach(work, ranges)
    else
        errors = Vector{Any}(nothing, length(ranges))
        # Coroutines stay on the thread that started them, hence the fixed schedule.
        Threads.@threads :static for i in eachindex(ranges)
            try
                work(ranges[i])
            catch error
                errors[i] = error
            end
        end
        foreach(error -> isnothing(error) || throw(error), errors)
    end
    return result
end

# Sessions are used again, with their coroutines and caches: a training loop solves the same shape again and again.
# Each entry is a key, a session and about its bytes; the one used last stands at the end.
const _POOL = Tuple{Any,Any,Int}[]
const _LOCK = ReentrantLock()
const _MOST_BYTES = 2^29

function with_session(f::F, key, bytes, make) where {F}
    session = lock(_LOCK) do
        at = findlast(entry -> entry[1] == key, _POOL)
        isnothing(at) ? nothing : popat!(_POOL, at)[2]
    end
    session = @something session make()
    result = f(session)  # a session that threw is not used again
    lock(_LOCK) do
        push!(_POOL, (key, session, bytes))
        while sum(last, _POOL) > max(_MOST_BYTES, bytes)
            popfirst!(_POOL)
        end
    end
    return result
end

# A session runs the lanes of a batch in step: `advance!` lets each work until all wait for the same kind of request.

"""
    Session{T}(solver, Z, F, V, P; affine = false)

Lanes for the columns of `Z`, the matrix of states; `F` holds their images, `V` and `P` the arguments and results of
Jacobian products. All four are `(N, B)`.
"""
mutable struct Session{T}
    const Z::Matrix{T}
    const F::Matrix{T}
    const V::Matrix{T}
    const P::Matrix{T}
    const lanes::Vector{Lane{T}}
    const columns::Vector{Int}  # served by the request
    request::Request
    evaluations::Int
    products::Int
    const trace::Vector{Float64}  # absolute and relative residual of every lane, after every evaluation
end

function Session{T}(solver::Solver, Z::Matrix{T}, F::Matrix{T}, V::Matrix{T}, P::Matrix{T}; affine = false) where {T}
    entries = size(Z, 1)
    column(m, b) = unsafe_wrap(Array, pointer(m, (b - 1) * entries + 1), entries)  # the session keeps `m` alive
    lanes = map(axes(Z, 2)) do b
        lane = Lane(column(Z, b), column(F, b), column(V, b), column(P, b))
        lane.work = affine ? LinearWork{T}(solver, entries) : NonlinearWork{T}(solver, entries)
        lane
    end
    return Session{T}(Z, F, V, P, lanes, Int[], IDLE, 0, 0, Float64[])
end

function Session{T}(solver::Solver, entries::Integer, samples::Integer; affine = false) where {T}
    return Session{T}(solver, (zeros(T, entries, samples) for _ in 1:4)...; affine)
end

"""
    begin!(session, goal)

Start all lanes at the columns of `session.Z`.
"""
function begin!(s::Session{T}, goal::Goal{T}) where {T}
    for lane in s.lanes
        begin!(lane, lane.point, goal)
    end
    resize!(s.columns, length(s.lanes))
    s.columns .= eachindex(s.lanes)
    s.request, s.evaluations, s.products = IDLE, 0, 0
    empty!(s.trace)
    return s
end

# Products before evaluations: lanes in the middle of a linear solve catch up while the others wait, so that a step of
# Newton's method costs the whole batch one evaluation and as many products as its slowest sample takes.
const _ORDER = (PUSHFORWARD, PULLBACK, LINEARIZE, EVALUATE)

"""
    advance!(session)

Go on after the last request was served; returns the next one, which concerns `session.columns`.
"""
function advance!(s::Session)
    for column in s.columns
        resume!(s.lanes[column])
    end
    s.request == EVALUATE && foreach(lane -> push!(s.trace, lane.residual[1], lane.residual[2]), s.lanes)
    empty!(s.columns)
    s.request = FINISHED
    for request in _ORDER
        for (column, lane) in enumerate(s.lanes)
            lane.request == request && push!(s.columns, column)
        end
        isempty(s.columns) && continue
        s.request = request
        break
    end
    s.evaluations += s.request == EVALUATE
    s.products += s.request == PUSHFORWARD || s.request == PULLBACK
    return s.request
end

"""
    serve!(session, server)

Let `server` answer the session's request.
"""
function serve!(s::Session, server::Server)
    if s.request == EVALUATE
        evaluate!(s.F, server, s.Z, s.columns)
    elseif s.request == LINEARIZE
        linearize!(server, s.F, s.columns)
    elseif s.request == PUSHFORWARD
        pushforward!(s.P, server, s.V, s.columns)
    elseif s.request == PULLBACK
        pullback!(s.P, server, s.V, s.columns)
    end
    return s
end

"""
    run!(session, server, goal; cancelled = () -> false)

Solve for all columns of `session.Z`. The results are in the lanes: `best`, `outcome`, `residual`, `iteration`.

Throws an `InterruptException` when `cancelled()`.
"""
function run!(s::Session{T}, server::Server{T}, goal::Goal{T}; cancelled = () -> false) where {T}
    begin!(s, goal)
    while advance!(s) != FINISHED
        cancelled() && throw(InterruptException())
        serve!(s, server)
    end
    return s
end

# Affine maps `u -> g + M u`, such as the adjoint equation of a backward pass: restarted GMRES of Krylov.jl, per lane.

# What a lane runs for an affine map.
mutable struct LinearWork{T,W}
    const state::Vector{T}
    const right::Vector{T}
    const workspace::W
    const krylov_dim::Int
end

function LinearWork{T}(solver::Solver, entries) where {T}
    krylov_dim = min(Int(option(solver, :krylov_dim, 30)), entries)
    workspace = GmresWorkspace(entries, entries, Vector{T}; memory = krylov_dim)
    return LinearWork(Vector{T}(undef, entries), Vector{T}(undef, entries), workspace, krylov_dim)
end

# `v -> (I - M) v`, taken at the state evaluated last: the map is affine, so it does not matter which.
struct LaneOperator{T}
    lane::Lane{T}
    state::Vector{T}
end
Base.size(A::LaneOperator) = (length(A.state), length(A.state))
Base.size(A::LaneOperator, d::Integer) = d <= 2 ? length(A.state) : 1
Base.eltype(::LaneOperator{T}) where {T} = T

function LinearAlgebra.mul!(y::AbstractVector, A::LaneOperator, x::AbstractVector)
    product!(y, A.lane, x, A.state, PUSHFORWARD)
    y .= x .- y
    return y
end

function (work::LinearWork{T})(lane::Lane{T}) where {T}
    u = copyto!(work.state, lane.best)
    try
        while true
            evaluate!(lane, u)
            converged(lane) && return CONVERGED
            # Two cycles in a row without progress: the rounding error, or a method that does not converge.
            lane.stalled >= 2 && return tiny(lane) ? ROUNDING_FLOOR : STALLED
            work.right .= lane.image .- lane.point
            # Half of what is missing leaves the other half to the change of scale and to rounding.
            rtol = clamp(lane.goal.tol / (2 * lane.residual[3]), 4 * eps(T), T(0.1))
            gmres!(work.workspace, LaneOperator(lane, u), work.right; restart = false, atol = zero(T), rtol,
                itmax = work.krylov_dim)
            u .+= work.workspace.x
        end
    catch error
        error isa Decided && return error.outcome
        error isa Inadmissible && return isfinite(lane.residual[3]) ? DIVERGED : NONFINITE
        rethrow()
    end
end

include("helpers.jl")
using SubDEQ: Server, Session, run!

# Each column obeys a map of its own.
struct Columns{T,F} <: Server{T}
    maps::Vector{F}
    states::Vector{Matrix{T}}
end
Columns(maps, T = Float64) = Columns{T,Any}(Vector{Any}(maps), Matrix{T}[])
function SubDEQ.evaluate!(F, s::Columns, Z, columns)
    push!(s.states, copy(Z))
    foreach(c -> F[:, c] .= s.maps[c](Z[:, c]), columns)
    return F
end
SubDEQ.linearize!(s::Columns, F, columns) = s
function SubDEQ.pushforward!(P, s::Columns, V, columns)
    z = s.states[end]
    h = 1e-7
    foreach(c -> P[:, c] .= (s.maps[c](z[:, c] .+ h .* V[:, c]) .- s.maps[c](z[:, c])) ./ h, columns)
    return P
end

function solve_columns(maps, start; tol = 1e-9, limit = 200, method = "newton_krylov", positive = false)
    session = Session{Float64}(Solver(method), size(start)...)
    session.Z .= start
    server = Columns(maps)
    run!(session, server, Goal{Float64}(tol, limit, RELATIVE, positive))
    return session, server
end

cosine(z) = cos.(z)
squash(z) = tanh.(0.9 .* reverse(z)) .+ [0.3, -0.2, 0.1]
broken(z) = z .+ NaN
growing(z) = z .^ 2 .+ 10

@testset "samples do not influence each other: $method" for method in ("newton_krylov", "broyden", "dfsane", "picard")
    start = fill(2.0, 3, 4)
    together, _ = solve_columns([cosine, broken, growing, squash], start; method)
    for (column, map) in ((1, cosine), (4, squash))
        alone, _ = solve_columns([map], start[:, 1:1]; method)
        @test together.lanes[column].best == alone.lanes[1].best
        @test together.lanes[column].iteration == alone.lanes[1].iteration
        @test together.lanes[column].outcome == CONVERGED
    end
    @test together.lanes[2].outcome == NONFINITE
    @test together.lanes[3].outcome in (DIVERGED, MAX_ITERATIONS, STALLED)
    @test all(isfinite, together.lanes[3].best)
end

@testset "a start that is the solution costs one evaluation" begin
    session, server = solve_columns([z -> z ./ 2 .+ 1], fill(2.0, 3, 1))
    @test session.evaluations == length(server.states) == 1
    @test session.lanes[1].outcome == CONVERGED
end

@testset "limits are kept" for limit in 1:5, method in keys(SubDEQ.SOLVERS)
    method in ("newton_raphson", "trust_region") && continue  # asked for more than the server above can do
    session, server = solve_columns([cosine, squash], fill(2.0, 3, 2); tol = 0.0, limit, method)
    @test session.evaluations == length(server.states) == limit
    @test all(lane -> lane.outcome == MAX_ITERATIONS || lane.residual[1] == 0, session.lanes)
    @test length(session.trace) == 2 * 2 * limit
end

@testset "an unattainable tolerance ends at the rounding floor" for method in ("newton_krylov", "broyden", "picard")
    session, _ = solve_columns([cosine], fill(0.5, 3, 1); tol = 0.0, limit = 5000, method)
    @test session.lanes[1].outcome in (CONVERGED, ROUNDING_FLOOR)
    @test session.evaluations < 5000
end

@testset "positive states stay positive" begin
    map = layer(:dense; power = -0.8, shift = 0.01, activation = "relu")
    seen = Columns([z -> apply(LayerMap(map.operator, map.activation; inner = map.inner[:, c:c]), reshape(z, :, 1))[:, 1] for c in 1:4])
    session = Session{Float64}(Solver("newton_krylov"), 6, 4)
    session.Z .= exp.(3 .* randn(Xoshiro(12), 6, 4))
    run!(session, seen, Goal{Float64}(1e-9, 500, THOMPSON, true))
    @test all(lane -> lane.outcome == CONVERGED, session.lanes)
    @test all(z -> all(>(0), z), seen.states)
end

@testset "an error of the server passes through" begin
    @test_throws "this map is broken" solve_columns([z -> error("this map is broken")], ones(3, 1))
end

@testset "a solve can be cancelled" begin
    map = layer(:dense; scale = 3.3)
    count = Ref(0)
    @test_throws InterruptException solve!(ones(6, 4), map, Solver("picard"), goal(; tol = 0.0);
        cancelled = () -> (count[] += 1) > 3)
    z = ones(6, 4)
    @test all(==(CONVERGED), solve!(z, map, Solver("newton_krylov"), goal()).outcome)
end

@testset "many columns in many blocks" begin
    map = layer(:dense; samples = 300)
    z = ones(6, 300)
    result = solve!(z, map, Solver("newton_krylov"), goal())
    @test all(==(CONVERGED), result.outcome) && residual(map, z) < 2e-11
end

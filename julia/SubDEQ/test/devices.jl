include("helpers.jl")
using JLArrays: JLArray, JLArrays
using SubDEQ: run!, Session

JLArrays.allowscalar(false)  # what a GPU cannot do fails here too

@testset "$activation $variant" for activation in keys(SubDEQ.ACTIVATIONS), variant in ((;), (; p = 1), (; p = 2), (; p = 3), (; p = Inf))
    map = layer(:dense, Float32; activation, shift = 1.5, power = 0.5, variant...)
    n, b = entries(map), samples(map)
    there = OnDevice(map, JLArray, n, b)
    here = LayerServer(map, zeros(Float32, n, b))
    Z, V = rand(Xoshiro(14), Float32, n, b) .+ 0.1f0, randn(Xoshiro(15), Float32, n, b)
    F1, F2 = evaluate!(similar(Z), there, Z, 1:b), evaluate!(similar(Z), here, Z, 1:b)
    @test F1 ≈ F2
    linearize!(there, F1, 1:b)
    linearize!(here, F2, 1:b)
    @test pushforward!(similar(Z), there, V, 1:b) ≈ pushforward!(similar(Z), here, V, 1:b)
    @test pullback!(similar(Z), there, V, 1:b) ≈ pullback!(similar(Z), here, V, 1:b)
end

@testset "a whole solve" begin
    map = layer(:dense)
    session = Session{Float64}(Solver("newton_krylov"), 6, 4)
    session.Z .= 1
    run!(session, OnDevice(map, JLArray, 6, 4), goal())
    @test all(lane -> lane.outcome == CONVERGED, session.lanes)
    @test residual(map, reduce(hcat, (lane.best for lane in session.lanes))) < 2e-11
end

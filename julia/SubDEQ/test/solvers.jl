include("helpers.jl")

const NAMES = sort!(collect(keys(SubDEQ.SOLVERS)))

@testset "$name on $kind, $T" for name in NAMES, kind in KINDS, T in (Float32, Float64)
    map = layer(kind, T)
    z = ones(T, entries(map), samples(map))
    result = solve!(z, map, Solver(name), goal(T))
    @test all(==(CONVERGED), result.outcome)
    @test residual(map, z) <= (T == Float64 ? 2e-11 : 3.0f-5)
    @test all(<=(goal(T).tol), result.relative)
end

@testset "$name on normalised and powered layers" for name in NAMES
    for variant in ((; p = 2), (; p = Inf, shift = 1.7), (; power = 0.5), (; power = -0.7, shift = 1.0))
        map = layer(:dense; variant...)
        z = ones(entries(map), samples(map))
        result = solve!(z, map, Solver(name), goal())
        @test all(==(CONVERGED), result.outcome)
        @test residual(map, z) <= 2e-11
    end
end

@testset "the table and its options" begin
    @test_throws ArgumentError Solver("newton")
    for rule in ("diagonal", "good", "bad", "auto")
        map = layer(:dense)
        z = ones(6, 4)
        @test all(==(CONVERGED), solve!(z, map, Solver("broyden"; rule), goal()).outcome)
    end
    map = layer(:dense; scale = 3.0)
    loose, tight = (solve!(ones(6, 4), map, Solver("newton_krylov"; linear_rtol), goal()) for linear_rtol in (0.3, 1e-8))
    @test tight.evaluations[] < loose.evaluations[]
    @test tight.products[] > 0 && loose.products[] > 0
end

@testset "no AD backend is asked" begin
    # A map with known derivatives: every product is one that a lane asked for.
    map = layer(:dense)
    for name in ("newton_krylov", "trust_region", "pseudo_transient")
        result = solve!(ones(6, 4), map, Solver(name), goal())
        @test result.products[] >= 1
        @test result.evaluations[] < 60
    end
end

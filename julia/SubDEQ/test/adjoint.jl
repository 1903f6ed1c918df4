include("helpers.jl")

@testset "$kind $variant" for kind in KINDS, variant in ((;), (; power = 0.5), (; p = 2), (; p = Inf, shift = 1.7))
    map = layer(kind; variant...)
    n, b = entries(map), samples(map)
    z = ones(n, b)
    solve!(z, map, Solver("newton_krylov"), goal())
    server = LayerServer(map, z)
    F = evaluate!(similar(z), server, z, 1:b)
    linearize!(server, F, 1:b)
    g = randn(Xoshiro(13), n, b)
    u = zeros(n, b)
    result = solve_adjoint!(u, map, z, g, Solver("newton_krylov"), goal(; positive = false))
    @test all(==(CONVERGED), result.outcome)
    for s in 1:b  # against a dense solve with the Jacobian built column by column
        J = zeros(n, n)
        for i in 1:n
            V = zeros(n, b)
            V[i, s] = 1
            J[:, i] = pushforward!(similar(z), server, V, 1:b)[:, s]
        end
        @test u[:, s] ≈ (I - J') \ g[:, s] rtol = 1e-9
    end
end

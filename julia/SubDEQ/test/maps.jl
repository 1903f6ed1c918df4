include("helpers.jl")

const VARIANTS = [(; ), (; power = 0.5), (; power = -0.6, shift = 1.2), (; outer = true), (; p = 1), (; p = 2), (; p = 3),
    (; p = Inf), (; p = 2, outer = true)]

@testset "$kind $variant" for kind in KINDS, variant in VARIANTS
    map = layer(kind; variant...)
    n, b = entries(map), samples(map)
    Z = rand(Xoshiro(9), n, b) .+ 0.2
    server = LayerServer(map, Z)
    F = evaluate!(similar(Z), server, Z, 1:b)
    @test F ≈ apply(map, Z)
    linearize!(server, F, 1:b)
    V, U = randn(Xoshiro(10), n, b), randn(Xoshiro(11), n, b)
    P = pushforward!(similar(Z), server, V, 1:b)
    h = 1e-6
    @test P ≈ (apply(map, Z .+ h .* V) .- apply(map, Z .- h .* V)) ./ 2h rtol = 1e-6
    Q = pullback!(similar(Z), server, U, 1:b)
    @test dot(U, P) ≈ dot(Q, V)
    # A few columns: the same numbers there, nothing elsewhere.
    some = [2, 4]
    part = LayerServer(map, Z)
    blank() = fill(NaN, n, b)
    F2 = evaluate!(blank(), part, Z, some)
    @test F2[:, some] ≈ F[:, some] && all(isnan, F2[:, [1, 3]])
    linearize!(part, F2, some)
    @test pushforward!(blank(), part, V, some)[:, some] ≈ P[:, some]
    @test pullback!(blank(), part, U, some)[:, some] ≈ Q[:, some]
end

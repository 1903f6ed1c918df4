include("helpers.jl")
using SubDEQ: normalize!, normalized_pullback!, normalized_pushforward!, norms, weights!

@testset "p = $p over $dims" for p in (1, 1.5, 2, 3, 7, Inf), dims in ((1, 2), (1,), (2,))
    N = Normalizer(p, dims)
    F = rand(Xoshiro(6), 3, 4, 2) .+ 0.1
    φ = norms(N, F)
    reference = p == Inf ? maximum(F; dims) : sum(F .^ p; dims) .^ (1 / p)
    @test φ ≈ reference
    G = F ./ φ
    @test normalize!(N, copy(F)) ≈ G
    w = weights!(similar(F), N, F, φ)
    v, u = randn(Xoshiro(7), size(F)...), randn(Xoshiro(8), size(F)...)
    h = 1e-6
    difference = ((F .+ h .* v) ./ norms(N, F .+ h .* v) .- (F .- h .* v) ./ norms(N, F .- h .* v)) ./ 2h
    forward = normalized_pushforward!(copy(v), N, G, w, φ)
    @test forward ≈ difference rtol = 1e-6
    @test dot(u, forward) ≈ dot(normalized_pullback!(copy(u), N, G, w, φ), v)
end

@testset "tiny and huge entries" begin
    F = [1e-300 1e-290; 1e200 1.0]
    @test all(isfinite, normalize!(Normalizer(4, (1,)), copy(F)))
    @test normalize!(Normalizer(4, (1,)), fill(1e-200, 2, 1)) ≈ fill(2^-0.25, 2, 1)
end

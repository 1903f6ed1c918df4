include("helpers.jl")

@testset "n = $n, $storage" for n in (2, 5, 30), storage in (:dense, :sparse)
    A = rand(Xoshiro(n), n, n) .+ 0.01
    storage == :sparse && (A = sparse(A .* (rand(Xoshiro(n + 1), n, n) .< 0.7) + circshift(Matrix(1.0I, n, n), 1)))
    radius = maximum(abs, eigvals(Matrix(A)))
    pair = noda(A; tol = 1e-12)
    @test pair.converged
    @test pair.lower * (1 - 1e-14) <= radius <= pair.upper * (1 + 1e-14)
    @test all(>(0), pair.vector) && sum(pair.vector) ≈ 1
    @test A * pair.vector ≈ pair.value * pair.vector rtol = 1e-10
    krylov = perron_krylov(A, ones(n); tol = 1e-12)
    @test krylov.value ≈ radius rtol = 1e-10
    @test krylov.lower * (1 - 1e-10) <= radius <= krylov.upper * (1 + 1e-10)
    @test perron_krylov(x -> A * x, ones(n)).value ≈ radius rtol = 1e-8
end

@test_throws DomainError noda([1.0 -1.0; 1.0 1.0])
@test_throws DomainError noda([1.0 NaN; 1.0 1.0])
@test_throws DimensionMismatch noda(ones(2, 3))

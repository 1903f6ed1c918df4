include("helpers.jl")
using SubDEQ: Search, each_sample, search!

const MATRIX_METHODS = ("noda", "newton", "krylov", "auto")

ring(n) = circshift(Matrix(1.0I, n, n), 1)
radius(A) = maximum(abs, eigvals(A))

# Two blocks of radius 1, or of different radii, with weak links.
function coupled(rng, n, weak; equal)
    A, half = rand(rng, n, n), cld(n, 2)
    for part in (1:half, (half + 1):n)
        equal && (A[part, part] ./= radius(A[part, part]))
    end
    A[1:half, (half + 1):n] .*= weak
    A[(half + 1):n, 1:half] .*= weak
    return A
end

const FAMILIES = (
    positive = (rng, n) -> rand(rng, n, n) .+ 0.01,
    sparse = (rng, n) -> rand(rng, n, n) .* (rand(rng, n, n) .< 4 / n) .+ ring(n),
    symmetric = (rng, n) -> (B = rand(rng, n, n) .* (rand(rng, n, n) .< 0.3) .+ ring(n); B + B'),
    scaled = (rng, n) -> exp.(8 .* randn(rng, n, n)),
    similar = (rng, n) -> (d = exp.(10 .* randn(rng, n)); (rand(rng, n, n) .+ 0.01) .* d' ./ d),
    coupled_1e14 = (rng, n) -> coupled(rng, n, 1e-14; equal = true),
    coupled_1e8 = (rng, n) -> coupled(rng, n, 1e-8; equal = true),
    coupled_1e3 = (rng, n) -> coupled(rng, n, 1e-3; equal = true),
    unequal_1e6 = (rng, n) -> coupled(rng, n, 1e-6; equal = false),
    unequal_1e12 = (rng, n) -> coupled(rng, n, 1e-12; equal = false),
    nearly_periodic = (rng, n) -> ring(n) .* (1 .+ rand(rng, n)) .+ 1e-8 .* rand(rng, n, n) .* (rand(rng, n, n) .< 0.1),
    periodic = (rng, n) -> ring(n) .* exp.(randn(rng, n)),
)

# Arnoldi's iteration sees the eigenvalues of a long cycle as one cluster.
hopeless(name, method, n) = method == "krylov" && n == 200 && name in (:periodic, :nearly_periodic)

@testset "$name, n = $n, $method" for name in keys(FAMILIES), n in (2, 5, 30, 200), method in MATRIX_METHODS
    A = FAMILIES[name](Xoshiro(n), n)
    exact = n <= 5 ? Float64(noda(big.(A); tol = 1e-40, maxiters = 1000).value) : nothing
    for matrix in (A, sparse(A), transpose(sparse(A')), view(A, :, :))
        pair = perron(matrix; method, tol = 1e-12)
        low, high = extrema((A * pair.vector) ./ pair.vector)
        @test all(>(0), pair.vector) && sum(pair.vector) ≈ 1
        @test pair.lower <= pair.upper * (1 + 1e-13) && low * (1 - 1e-13) <= pair.value <= high * (1 + 1e-13)
        hopeless(name, method, n) && continue
        @test pair.converged && 1 - low / high <= 2e-12
        isnothing(exact) || @test pair.value ≈ exact rtol = 1e-11
    end
end

@testset "short indices, several matrices, starts, norms" begin
    A = FAMILIES.sparse(Xoshiro(1), 40)
    short = SparseMatrixCSC{Float64,Int32}(sparse(A))
    for method in MATRIX_METHODS
        @test perron(short; method).value ≈ perron(A; method).value rtol = 1e-11
    end
    batch = rand(Xoshiro(2), 6, 6, 5)
    pairs = perron(batch; method = "newton", x0 = rand(Xoshiro(3), 6, 5) .+ 0.1, p = Inf)
    @test [pair.value for pair in pairs] ≈ [radius(batch[:, :, i]) for i in 1:5] rtol = 1e-11
    @test all(pair -> maximum(pair.vector) == 1, pairs)
    @test norm(perron(A; p = 3).vector, 3) ≈ 1
    @test perron(fill(3.0, 1, 1)).value == 3
    @test perron(Float32.(A)).value isa Float64
    @test perron(big.(A[1:5, 1:5] .+ 1); method = "noda", tol = 1e-60).converged
end

@testset "large systems without a factorisation, $method" for method in ("noda", "newton", "auto", "power")
    n = 6000
    A = sprand(Xoshiro(4), n, n, 10 / n) + sparse(circshift(1:n, 1), 1:n, ones(n))
    @test !SubDEQ.factorizable(SubDEQ._eigen(A))
    pair = perron(A; method)
    @test pair.converged && reduce(-, collatz_wielandt(A, pair.vector)) > -2e-12 * pair.value
    band = spdiagm(0 => rand(Xoshiro(5), n), 1 => ones(n - 1), -1 => ones(n - 1))
    @test SubDEQ.factorizable(SubDEQ._eigen(band))
end

@testset "the functions of one method" begin
    A = FAMILIES.positive(Xoshiro(6), 30)
    @test noda(A; tol = 1e-12).converged
    @test perron_krylov(A, ones(30); tol = 1e-12).value ≈ radius(A) rtol = 1e-10
    @test perron_krylov(x -> A * x, ones(30)).value ≈ radius(A) rtol = 1e-8
end

# The plain iteration, written down again.
function plain(map, p, Z; steps = 3000)
    for _ in 1:steps
        Z = apply(map, Z)
        Z = Z ./ [norm(z, p) for z in eachcol(Z)]'
    end
    return Z
end

const GENTLE = (("relu", 0.0, 1.0), ("relu", 0.0, 0.5), ("tanh", 0.1, 1.0), ("softsign", 0.05, 0.7))

@testset "layers: $kind, $(activation[1]), $inject, p = $p" for kind in KINDS,
        activation in GENTLE, inject in (:none, :inner, :outer), p in (1, 1.5, 2, Inf)
    name, shift, power = activation
    A = operator(kind, Float64; scale = 2.0)
    injection = rand(Xoshiro(7), prod(sample_shape(A)), 3)
    layer = LayerMap(A, Activation{Float64}(name; shift, power);
        inner = inject == :inner ? injection : nothing, outer = inject == :outer ? injection : nothing)
    x0 = inject == :none ? ones(size(injection)) : nothing
    expected = nothing
    for method in ("noda", "newton", "auto")
        pairs = perron(layer; method, p, x0)
        Z = reduce(hcat, [pair.vector for pair in pairs])
        quotients = apply(layer, Z) ./ Z
        @test all(pair -> pair.converged && norm(pair.vector, p) ≈ 1, pairs)
        @test maximum(1 .- minimum(quotients; dims = 1) ./ maximum(quotients; dims = 1)) <= 2e-12
        @test [pair.value for pair in pairs] ≈ vec(maximum(quotients; dims = 1)) rtol = 1e-11
        expected = @something expected plain(layer, p, something(x0, ones(size(injection))))
        kind in (:graph, :mixed) && inject == :none && continue  # nearly reducible: the plain iteration is slow
        @test Z ≈ expected rtol = 1e-8
    end
end

@testset "layers without a dense Jacobian, $method" for method in ("noda", "newton", "auto")
    n = SubDEQ._DENSE_JACOBIAN + 100
    weight = Matrix(sprand(Xoshiro(8), n, n, 0.01))
    inner = 1e-3 .* rand(Xoshiro(9), n, 2)
    layer = LayerMap(Dense(weight), Activation{Float64}("softsign"; shift = 0.01); inner)
    for pair in perron(layer; method, p = 2)
        @test pair.converged
    end
end

@testset "derivatives of the logarithmic system" begin
    layer_of_test = layer(:conv; activation = "tanh")
    A = rand(Xoshiro(10), 6, 6)
    for (map, entries) in ((SubDEQ._eigen(A), 6), (SubDEQ._eigen(sparse(A)), 6),
            (SubDEQ._eigen_columns(layer_of_test, "newton", 3.0)(2), 24))
        search = Search(map, ones(entries), map isa SubDEQ.LayerEigen ? 3.0 : 1.0, 0.0, 10^6, () -> false)
        system = SubDEQ.LogSystem(search, nothing, fill(1 / entries, entries), zeros(entries + 1))
        x, v, u = (randn(Xoshiro(i), entries + 1) for i in 12:14)
        at(t) = (r = similar(x); SubDEQ.log_residual!(r, x .+ t .* v, system); search.stalled = 0; r)
        forward, backward = similar(x), similar(x)
        SubDEQ.log_jvp!(forward, v, x, system)
        SubDEQ.log_vjp!(backward, u, x, system)
        @test forward ≈ (at(1e-6) .- at(-1e-6)) ./ 2e-6 rtol = 1e-7
        @test dot(u, forward) ≈ dot(backward, v)
        map isa SubDEQ.SparseEigen && continue
        J = zeros(entries + 1, entries + 1)
        SubDEQ.log_jacobian!(J, x, system)
        @test J * v ≈ forward
    end
end

@testset "limits: $method" for method in ("power", "noda", "newton", "krylov", "auto")
    A = FAMILIES.periodic(Xoshiro(15), 60)
    for limit in (1, 3, 20, 45), matrix in (A, sparse(A))
        pair = perron(matrix; method, tol = 1e-30, maxiters = limit)
        @test 1 <= pair.iterations <= limit
        @test all(isfinite, pair.vector) && pair.upper < Inf
    end
    polls = Ref(0)
    @test_throws InterruptException perron(A; method, tol = 1e-30, cancelled = () -> (polls[] += 1) > 5)
    @test perron(A; method = "noda", tol = 0.0, maxiters = 10^5).iterations < 10^4  # no progress
end

@testset "what is no Perron problem" begin
    negative = [1.0 -1.0; 1.0 1.0]
    for A in (negative, [1.0 NaN; 1.0 1.0], sparse([1.0 Inf; 1.0 1.0]), transpose(sparse(negative)))
        @test_throws DomainError perron(A)
        @test_throws DomainError noda(A)
    end
    @test_throws DimensionMismatch perron(ones(2, 3))
    @test_throws DimensionMismatch perron(ones(2, 2); x0 = ones(3))
    @test_throws DomainError perron(ones(2, 2); x0 = [1.0, 0.0])
    @test_throws ArgumentError perron(ones(2, 2); method = "qr")
    map = layer(:dense)
    @test_throws ArgumentError perron(map; method = "krylov")
    @test_throws ArgumentError perron(map; method = "qr")
    @test_throws ArgumentError perron(layer(:dense; p = 2))
    @test_throws DomainError perron(LayerMap(Dense([1.0 -1.0; 1.0 1.0]), map.activation; inner = ones(2, 1)))
    @test_throws DomainError perron(LayerMap(map.operator, map.activation; inner = fill(-1.0, 6, 1)))
    @test !perron([1.0 1.0; 0.0 1.0]; maxiters = 50).converged  # reducible: no positive vector
    @test perron(zeros(2, 2)).value == 0
end

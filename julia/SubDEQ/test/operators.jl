include("helpers.jl")

@testset "$kind $T: products, transposes, blocks of any width" for kind in KINDS, T in (Float32, Float64)
    A = operator(kind, T)
    M = matrix(A, T)
    n = size(M, 1)
    for k in (1, 3, 7)
        x = randn(Xoshiro(k), T, n, k)
        @test multiply!(similar(x), A, x) ≈ M * x
        @test multiply_transposed!(similar(x), A, x) ≈ M' * x
    end
end

@testset "a dense operator reads a weight of PyTorch" begin
    W = randn(3, 3)  # W[i, j] multiplies state j into state i
    rows_first = collect(W')  # the memory of a row-major W, read column by column
    @test matrix(Dense(rows_first)) ≈ W
end

@testset "a convolution is PyTorch's, entry by entry" for dilation in ((1, 1), (2, 1))
    w = randn(Xoshiro(3), 3, 3, 2, 2)  # (kw, kh, in, out)
    x = randn(Xoshiro(4), 5, 4, 2, 1)
    A = Conv(w, 5, 4; dilation)
    y = reshape(multiply!(zeros(40, 1), A, reshape(x, :, 1)), 5, 4, 2)
    for c in 1:2, j in 1:4, i in 1:5
        expected = 0.0
        for d in 1:2, b in 1:3, a in 1:3
            p, q = i + (a - 2) * dilation[1], j + (b - 2) * dilation[2]
            1 <= p <= 5 && 1 <= q <= 4 && (expected += w[a, b, d, c] * x[p, q, d, 1])
        end
        @test y[i, j, c] ≈ expected
    end
end

@testset "a graph mixes features after spreading" begin
    P = sprand(Xoshiro(5), 4, 4, 0.6)
    W = randn(2, 2)
    A = Graph(sparse(P'), P, 2; weight = collect(W'))
    Z = randn(2, 4)
    @test reshape(multiply!(zeros(8, 1), A, reshape(Z, :, 1)), 2, 4) ≈ W * Z * P'
end

@testset "a graph with $features features: every tile, every thread" for features in (1, 3, 4, 6, 16, 37)
    nodes = 2000  # more work than one thread is given
    P = sprand(Xoshiro(6), nodes, nodes, 0.02)
    A = Graph(sparse(P'), P, features)
    Z = randn(Xoshiro(7), features, nodes)
    x = repeat(vec(Z), 1, 2)
    @test multiply!(similar(x), A, x) ≈ repeat(vec(Z * P'), 1, 2)
    @test multiply_transposed!(similar(x), A, x) ≈ repeat(vec(Z * P), 1, 2)
end

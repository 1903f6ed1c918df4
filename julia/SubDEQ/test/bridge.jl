include("helpers.jl")
using SubDEQ: Bridge

address(x) = UInt(pointer(x))

@testset "a callback session, driven as Python drives it" for affine in (false, true)
    n, b = 5, 3
    M = 0.1 .* randn(Xoshiro(16), n, n)
    c = randn(Xoshiro(17), n, b)
    f(z) = affine ? M * z .+ c : tanh.(M * z) .+ c
    z, F, v, p = (zeros(n, b) for _ in 1:4)
    statistics = zeros(4, b)
    method = Bridge.solver("newton_krylov", (("linear_rtol", 1e-3), ("krylov_dim", 10)))
    number = Bridge.open_session(method, true, n, b, address(z), address(F), address(v), address(p), affine)
    z .= 0
    Bridge.begin_session(number, 1e-10, 100, 2, false)
    evaluations = 0
    while (request = Bridge.advance_session(number)) != Int(SubDEQ.FINISHED)
        if request == Int(SubDEQ.EVALUATE)
            evaluations += 1
            F .= f(z)
        elseif request == Int(SubDEQ.PUSHFORWARD)
            p .= affine ? M * v : (1 .- tanh.(M * z) .^ 2) .* (M * v)
        else
            @test request == Int(SubDEQ.LINEARIZE)
        end
    end
    trace = zeros(2, b, evaluations)
    Bridge.finish_session(number, address(statistics), address(trace))
    @test f(z) ≈ z rtol = 1e-9
    @test F ≈ f(z)
    @test all(==(0), statistics[1, :])
    @test trace[:, :, end] == statistics[2:3, :]
    best = zeros(n, b)
    Bridge.best_states(number, address(best))
    @test best == z
    Bridge.close_session(number)
    @test_throws KeyError Bridge.advance_session(number)
end

@testset "a native solve on memory of another owner" begin
    map = layer(:dense)
    weight, inner, z = map.operator.transposed, map.inner, ones(6, 4)
    statistics, cancel = zeros(4, 4), zeros(Int64, 1)
    operator = Bridge.dense(true, 6, address(weight))
    built = Bridge.layer(operator, 4, "tanh", 0.1, 1.0, address(inner), 0, 0.0, ())
    method = Bridge.solver("newton_krylov", ())
    evaluations, products = Bridge.solve(built, 4, method, address(z), address(statistics), address(cancel), 1e-11, 100, 2, true)
    @test residual(map, z) < 2e-11 && evaluations > 1 && products > 0
    cancel[1] = 1
    @test_throws InterruptException Bridge.solve(built, 4, method, address(z), address(statistics), address(cancel), 0.0, 100, 2, true)
end

@testset "Perron vectors on memory of another owner, $method" for method in ("noda", "newton", "krylov", "auto")
    n, b = 7, 3
    cancel = zeros(Int64, 1)
    quotients(A, x) = extrema((A * x) ./ x)
    narrow(A, x) = (bounds = quotients(A, x); 1 - bounds[1] / bounds[2] <= 2e-12)
    tensor = rand(Xoshiro(20), n, n, b)  # slices are transposes
    x = ones(n, b)
    dense = Bridge.dense_matrices(b, n, address(tensor))
    @test 1 <= Bridge.perron(dense, b, method, address(x), 1e-12, 500, 0.0, address(cancel)) <= 500
    @test all(i -> narrow(tensor[:, :, i]', x[:, i]) && maximum(x[:, i]) == 1, 1:b)
    A = sparse(rand(Xoshiro(21), n, n) .* (rand(Xoshiro(22), n, n) .< 0.5) + circshift(Matrix(1.0I, n, n), 1))
    rows = sparse(transpose(A))
    for I in (Int32, Int64)
        starts, columns, values = I.(rows.colptr .- 1), I.(rows.rowval .- 1), copy(rows.nzval)
        matrix = Bridge.sparse_matrix(n, address(starts), address(columns), address(values), length(values), I == Int32)
        y = ones(n, 1)
        @test Bridge.perron(matrix, 1, method, address(y), 1e-12, 500, 1.0, address(cancel)) >= 1
        @test narrow(A, y[:, 1]) && sum(y) ≈ 1
        @test starts[1] == 0
    end
    map = layer(:dense)
    operator = Bridge.dense(true, 6, address(map.operator.transposed))
    built = Bridge.layer(operator, 4, "tanh", 0.1, 1.0, address(map.inner), 0, 0.0, ())
    z = ones(6, 4)
    solve() = Bridge.perron(built, 4, method, address(z), 1e-12, 500, 2.0, address(cancel))
    if method == "krylov"
        @test_throws ArgumentError solve()
    else
        @test solve() >= 1
        @test all(c -> norm(c) ≈ 1, eachcol(z))
        @test all(c -> 1 - c[1] / c[2] <= 2e-12, extrema.(eachcol(apply(map, z) ./ z)))
    end
    cancel[1] = 1
    @test_throws InterruptException Bridge.perron(dense, b, method, address(x), 0.0, 500, 0.0, address(cancel))
end

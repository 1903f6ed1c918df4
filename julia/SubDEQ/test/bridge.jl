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

include("helpers.jl")
using SubDEQ: activate!, slope!
using SpecialFunctions: erf

# The functions again, in extended precision and from their definitions.
const REFERENCE = Dict{String,Function}(
    "tanh" => tanh, "sigmoid" => t -> inv(1 + exp(-t)), "softplus" => t -> log1p(exp(t)), "softsign" => t -> t / (1 + abs(t)),
    "arctan" => atan, "erf" => erf, "relu" => t -> max(t, 0), "leaky_relu" => t -> t > 0 ? t : t / 100,
    "relu6" => t -> min(max(t, 0), 6), "hardtanh" => t -> min(max(t, -1), 1), "elu" => t -> t > 0 ? t : exp(t) - 1)

@testset "$name: values and slopes" for name in keys(SubDEQ.ACTIVATIONS)
    points = [-30.0, -7.3, -1.7, -0.4, -1e-3, 2e-4, 0.3, 0.9, 2.2, 5.5, 7.1, 40.0]
    exact = setprecision(() -> Float64.(REFERENCE[name].(big.(points))), 200)
    value = activate!(similar(points), Activation{Float64}(name), points)
    @test all(abs.(value .- exact) .<= 16 * eps.(max.(abs.(exact), 1e-30)) .+ (name == "leaky_relu" ? 1e-17 : 0))
    single = activate!(zeros(Float32, length(points)), Activation{Float32}(name), Float32.(points))
    @test all(abs.(single .- exact) .<= 1e-5 .* max.(abs.(exact), 1e-3))
    # Slopes with shift and power, by central differences in extended precision.
    for (shift, power) in ((0.0, 1.0), (2.0, 0.5), (2.0, -0.7), (2.0, 2.0))
        f(t) = (REFERENCE[name](t) + big(shift))^big(power)
        h = big(1e-20)
        difference = setprecision(() -> Float64.((f.(big.(points) .+ h) .- f.(big.(points) .- h)) ./ 2h), 400)
        slope = slope!(similar(points), Activation{Float64}(name; shift, power), points)
        @test slope ≈ difference rtol = 1e-9 atol = 1e-12
        shifted = activate!(similar(points), Activation{Float64}(name; shift, power), points)
        @test shifted ≈ Float64.(f.(big.(points))) rtol = 1e-13
    end
end

@testset "powers of negative numbers are NaN, as in PyTorch" begin
    for power in (0.5, 0.7, -0.3)
        @test all(isnan, activate!(zeros(2), Activation{Float64}("tanh"; power), [-1.0, -0.2]))
    end
    @test activate!(zeros(1), Activation{Float64}("tanh"; power = 2), [-1.0]) ≈ [tanh(1)^2]
end

@test_throws ArgumentError Activation{Float64}("tanhh")

using SubDEQ
using Test

@testset "SubDEQ" begin
    for file in ("quality.jl", "activations.jl", "operators.jl", "normalizers.jl", "maps.jl", "solvers.jl", "sessions.jl",
            "adjoint.jl", "devices.jl", "perron.jl", "bridge.jl", "allocations.jl")
        @testset "$file" begin
            include(file)
        end
    end
end

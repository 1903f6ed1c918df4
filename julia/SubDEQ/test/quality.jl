include("helpers.jl")
using Aqua

@testset "Aqua" begin
    # Persistent tasks are looked for by installing the package anew, which needs a registry.
    Aqua.test_all(SubDEQ; ambiguities = false, persistent_tasks = false)
    Aqua.test_ambiguities(SubDEQ)
end

@testset "every public name is documented" begin
    for name in names(SubDEQ)
        name == :SubDEQ && continue
        value = getfield(SubDEQ, name)
        value isa Union{SubDEQ.Measure,SubDEQ.Outcome} && continue
        @test !occursin("No documentation found", string(Base.Docs.doc(Base.Docs.Binding(SubDEQ, name))))
    end
end

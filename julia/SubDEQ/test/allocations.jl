include("helpers.jl")
using SubDEQ: Session, advance!, begin!, run!, serve!

# Bytes of one more pass, after everything has been compiled and grown.
function bytes(f)
    f()
    f()
    return @allocated f()
end

@testset "products and evaluations of a whole block allocate next to nothing" for kind in (:dense, :graph)
    map = layer(kind)
    n, b = entries(map), samples(map)
    Z, F = rand(n, b) .+ 0.2, zeros(n, b)
    server = LayerServer(map, Z)
    all = 1:b
    @test bytes(() -> evaluate!(F, server, Z, all)) <= 512
    @test bytes(() -> linearize!(server, F, all)) <= 512
    @test bytes(() -> pushforward!(F, server, Z, all)) <= 512
    @test bytes(() -> pullback!(F, server, Z, all)) <= 512
end

@testset "a further solve allocates less than its states" begin
    map = layer(:dense; samples = 4)
    session = Session{Float64}(Solver("picard"), 6, 4)
    server = LayerServer(map, session.Z)
    once() = (session.Z .= 1; run!(session, server, goal()))
    @test bytes(once) <= 300 * session.evaluations + 4096
end

@testset "a further evaluation of a Newton solve stays within a budget that does not grow with the state" begin
    used = map((50, 400)) do n
        weight = 0.5 .* rand(Xoshiro(18), n, n) ./ n
        layer = LayerMap(Dense(weight), Activation{Float64}("tanh"; shift = 0.1); inner = rand(Xoshiro(19), n, 2))
        session = Session{Float64}(Solver("newton_krylov"), n, 2)
        server = LayerServer(layer, session.Z)
        once() = (session.Z .= 1; run!(session, server, goal()))
        bytes(once) / (session.evaluations + session.products)
    end
    @test used[2] <= used[1] + 2000
    @test used[1] <= 20_000
end

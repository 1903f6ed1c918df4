# Maps evaluated on another device, while the coroutines and their solvers stay on the host.

"""
    OnDevice(map::LayerMap, device, entries, samples)

Serves a layer whose arrays were moved by `device`, an array type such as `CuArray`: a whole block of states is copied
there and back at every request. Worth it where evaluating a block takes longer than the transfer.
"""
struct OnDevice{T,S<:LayerServer{T},A<:AbstractMatrix{T}} <: Server{T}
    server::S
    input::A
    output::A
end

function OnDevice(map::LayerMap{T}, device, entries, samples) where {T}
    move(x) = isnothing(x) ? nothing : device(x)
    moved = LayerMap(on_device(map.operator, device), map.activation;
        inner = move(map.inner), outer = move(map.outer), normalizer = map.normalizer)
    input = device(zeros(T, entries, samples))
    return OnDevice(LayerServer(moved, input), input, similar(input))
end

on_device(A::Dense, device) = Dense(device(A.transposed))
on_device(A::Conv, device) = Conv(device(A.weight), A.width, A.height, A.dilation)

# Columns that asked for nothing are computed again to the same numbers: their states have not changed.
function _there_and_back(f!::F, s::OnDevice, to, from) where {F}
    copyto!(s.input, from)
    f!(s.output, s.input, axes(from, 2))
    return copyto!(to, s.output)
end

evaluate!(F, s::OnDevice, Z, columns) =
    _there_and_back((f, z, all) -> evaluate!(f, s.server, z, all), s, F, Z)
pushforward!(P, s::OnDevice, V, columns) =
    _there_and_back((p, v, all) -> pushforward!(p, s.server, v, all), s, P, V)
pullback!(P, s::OnDevice, U, columns) =
    _there_and_back((p, u, all) -> pullback!(p, s.server, u, all), s, P, U)

function linearize!(s::OnDevice, F, columns)
    copyto!(s.output, F)
    linearize!(s.server, s.output, axes(F, 2))
    return s
end

"""
    wrap_device(T, address, dims...)

The device memory at `address` as an array, without a copy; the caller keeps it alive. Needs CUDA.jl to be loaded.
"""
function wrap_device end

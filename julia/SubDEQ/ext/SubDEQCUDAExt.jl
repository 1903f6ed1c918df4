"""
CUDA arrays for SubDEQ: the memory of another owner as a `CuArray`, without a copy.
"""
module SubDEQCUDAExt

using CUDA: CUDA, CuArray, CuPtr
using SubDEQ: SubDEQ

# PyTorch works on its default stream unless told otherwise, Julia's tasks on streams of their own: wait for both.
function SubDEQ.wrap_device(::Type{T}, address::Integer, dims::Integer...) where {T}
    CUDA.functional() || throw(ArgumentError("CUDA.jl finds no usable GPU"))
    CUDA.synchronize(CUDA.legacy_stream())
    return unsafe_wrap(CuArray, CuPtr{T}(UInt(address)), dims; own = false)
end

end

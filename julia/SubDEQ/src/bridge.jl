"""
    Bridge

The door for Python: plain functions of numbers, strings and addresses. The memory behind an address belongs to the
caller, who keeps it alive until the call, or for a session until it is closed, is over.
"""
module Bridge

using LinearAlgebra: BLAS
using SparseArrays: SparseMatrixCSC
using ..SubDEQ
using ..SubDEQ: Measure, advance!, begin!

_type(double::Bool) = double ? Float64 : Float32
_wrap(T, address, dims...) = unsafe_wrap(Array, Ptr{T}(UInt(address)), dims)
_wrap_or_nothing(T, address, dims...) = address == 0 ? nothing : _wrap(T, address, dims...)

"""
    solver(name, options)

A solver from its name and pairs of options; numbers or strings.
"""
solver(name, options) = Solver(String(name); (Symbol(k) => _plain(v) for (k, v) in options)...)

_plain(x::AbstractString) = String(x)
_plain(x) = Float64(x)

goal(T, tol, limit, measure, positive) = Goal{T}(T(tol), Int(limit), Measure(Int32(measure)), Bool(positive))

# Callback mode -------------------------------------------------------------------------------------------------------

const SESSIONS = Dict{Int,Session}()
const LAST = Ref(0)

"""
    open_session(solver, double, entries, samples, z, f, v, p, affine)

A session on four staging matrices `(entries, samples)`, given by their addresses. Returns its number.
"""
function open_session(solver, double, entries, samples, z, f, v, p, affine)
    T = _type(double)
    session = Session{T}(solver, (_wrap(T, a, entries, samples) for a in (z, f, v, p))...; affine = Bool(affine))
    SESSIONS[LAST[] += 1] = session
    return LAST[]
end

"""
    lane_bytes(solver, double, entries)

About the memory of one sample's coroutine.
"""
lane_bytes(solver, double, entries) = SubDEQ.lane_bytes(solver, _type(double), entries)

"""
    begin_session(number, tol, limit, measure, positive)

Start a solve from the states in the first staging matrix.
"""
function begin_session(number, tol, limit, measure, positive)
    session = SESSIONS[number]
    begin!(session, goal(eltype(session.Z), tol, limit, measure, positive))
    return nothing
end

"""
    advance_session(number)

The next request as a number: see `Request`.
"""
advance_session(number) = Int(advance!(SESSIONS[number]))

"""
    finish_session(number, statistics, trace)

Put the best states into the first staging matrix and their images into the second; outcome, absolute residual, relative
residual and iteration of every sample into the `(4, samples)` float64 matrix at `statistics`; and the residuals after
every evaluation into the `(2, samples, evaluations)` float64 array at `trace`.
"""
function finish_session(number, statistics, trace)
    session = SESSIONS[number]
    result = SubDEQ.Result(length(session.lanes))
    SubDEQ.record!(result, session, session.Z, eachindex(session.lanes))
    for (column, lane) in enumerate(session.lanes)
        copyto!(view(session.F, :, column), lane.best_image)
    end
    _write(statistics, result)
    copyto!(_wrap(Float64, trace, length(session.trace)), session.trace)
    return nothing
end

"""
    best_states(number, address)

Copy the best states so far to the `(entries, samples)` matrix at `address`.
"""
function best_states(number, address)
    session = SESSIONS[number]
    into = _wrap(eltype(session.Z), address, size(session.Z)...)
    for (column, lane) in enumerate(session.lanes)
        copyto!(view(into, :, column), lane.best)
    end
    return nothing
end

"""
    close_session(number)

Forget a session; its lanes may be in the middle of a solve.
"""
close_session(number) = (delete!(SESSIONS, number); nothing)

function _write(address, result)
    table = _wrap(Float64, address, 4, length(result))
    for i in axes(table, 2)
        table[:, i] .= (Int(result.outcome[i]), result.absolute[i], result.relative[i], result.iterations[i])
    end
    return nothing
end

# Native mode ---------------------------------------------------------------------------------------------------------

"""
    dense(double, n, weight)

The operator of a PyTorch weight `(n, n)`.
"""
dense(double, n, weight) = Dense(_wrap(_type(double), weight, n, n))

"""
    conv(double, channels, height, width, kernel_height, kernel_width, dilation_height, dilation_width, weight)

The operator of a PyTorch weight `(C, C, kh, kw)` on images `(C, H, W)`.
"""
conv(double, channels, height, width, kh, kw, dh, dw, weight) =
    Conv(_wrap(_type(double), weight, kw, kh, channels, channels), width, height, (dw, dh))

"""
    graph(double, nodes, features, matrix, transposed, weight)

The operator of a sparse `(nodes, nodes)` matrix in CSR form and its transpose, each given as
`(row starts, columns, values, entries)`; `weight` is the address of a `(features, features)` weight, or 0.
"""
function graph(double, nodes, features, matrix, transposed, weight)
    T = _type(double)
    return Graph(_csc(T, nodes, matrix...), _csc(T, nodes, transposed...), features,
        _wrap_or_nothing(T, weight, features, features))
end

# The rows of a CSR matrix are the columns of a CSC one; Julia counts from 1.
_csc(T, nodes, starts, columns, values, entries) = SparseMatrixCSC(nodes, nodes,
    _wrap(Int, starts, nodes + 1) .+ 1, _wrap(Int, columns, entries) .+ 1, _wrap(T, values, entries))

"""
    layer(operator, samples, activation, shift, power, inner, outer, p, dims)

The map of a layer. `inner` and `outer` are addresses of `(samples, state...)` tensors, or 0; `p` is 0 without
normalisation, else the exponent of the norm over `dims`, counted from the last dimension of PyTorch's state.
"""
function layer(operator::SubDEQ.Operator{T}, samples, activation, shift, power, inner, outer, p, dims) where {T}
    entries = prod(SubDEQ.sample_shape(operator))
    return LayerMap(operator, Activation{T}(String(activation); shift, power);
        inner = _wrap_or_nothing(T, inner, entries, samples), outer = _wrap_or_nothing(T, outer, entries, samples),
        normalizer = p == 0 ? nothing : Normalizer(Float64(p), Tuple(Int(d) for d in dims)))
end

"""
    solve(map, samples, solver, value, statistics, cancel, tol, limit, measure, positive)

Solve in place at `value`; see `finish_session` for `statistics`. `cancel` is the address of an `Int64` that ends the
solve when it is not 0. Returns the numbers of evaluations and of Jacobian products.
"""
function solve(map::LayerMap{T}, samples, solver, value, statistics, cancel, tol, limit, measure, positive) where {T}
    z = _wrap(T, value, prod(SubDEQ.sample_shape(map.operator)), samples)
    result = solve!(z, map, solver, goal(T, tol, limit, measure, positive); cancelled = _flag(cancel))
    _write(statistics, result)
    return result.evaluations[], result.products[]
end

"""
    solve_adjoint(map, samples, solver, state, cotangent, value, statistics, cancel, tol, limit, measure)

Solve `u = g + J(z)ᵀ u` in place at `value`, for `z` at `state` and `g` at `cotangent`.
"""
function solve_adjoint(map::LayerMap{T}, samples, solver, state, cotangent, value, statistics, cancel, tol, limit,
        measure) where {T}
    entries = prod(SubDEQ.sample_shape(map.operator))
    z, g, u = (_wrap(T, a, entries, samples) for a in (state, cotangent, value))
    result = solve_adjoint!(u, map, z, g, solver, goal(T, tol, limit, measure, false); cancelled = _flag(cancel))
    _write(statistics, result)
    return result.evaluations[], result.products[]
end

_flag(address) = () -> unsafe_load(Ptr{Int64}(UInt(address))) != 0

# About this process --------------------------------------------------------------------------------------------------

"""
    blas_threads(n)

Let BLAS use `n` threads.
"""
blas_threads(n) = BLAS.set_num_threads(n)

end

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

# Perron pairs --------------------------------------------------------------------------------------------------------

# The slices of `transposed` are the transposes of the matrices.
struct DenseMatrices
    transposed::Array{Float64,3}
end

"""
    dense_matrices(samples, n, address)

The nonnegative matrices of a float64 tensor `(samples, n, n)`.
"""
dense_matrices(samples, n, address) = DenseMatrices(_wrap(Float64, address, n, n, samples))

"""
    sparse_matrix(n, starts, columns, values, entries, short)

A nonnegative `(n, n)` float64 matrix in CSR form, whose indices count from 0 and are `Int32` if `short`, else `Int64`.
No entry comes twice. The indices are copied, the values are not.
"""
function sparse_matrix(n, starts, columns, values, entries, short)
    I = short ? Int32 : Int64
    return transpose(SparseMatrixCSC{Float64,I}(n, n, _wrap(I, starts, n + 1) .+ one(I),
        _wrap(I, columns, entries) .+ one(I), _wrap(Float64, values, entries)))
end

"""
    perron(target, samples, method, x, tol, limit, p, cancel)

Perron vectors of `dense_matrices`, a `sparse_matrix` or a `layer` without normalisation, whose nonnegative entries the
caller has checked: in place at `x`, the `(samples, entries)` float64 matrix of positive starts. A vector's largest
entry is 1, or its `p`-norm where `p` is not 0, as it must be where the map is not homogeneous. `limit` is the largest
number of evaluations, Jacobian products among them; `cancel` as for `solve`. Returns the largest number that a sample
took.
"""
function perron(target, samples, method, x, tol, limit, p, cancel)
    vectors = _wrap(Float64, x, _perron_entries(target), samples)
    exponent = p == 0 ? Inf : Float64(p)
    map = SubDEQ._eigen_columns(target, String(method), exponent)
    evaluations = SubDEQ.each_sample(samples) do i
        search = SubDEQ.search!(map(i), view(vectors, :, i), String(method), exponent, tol, Int(limit), _flag(cancel))
        copyto!(view(vectors, :, i), search.best)
        search.evaluations
    end
    return maximum(evaluations)
end

_perron_entries(target::DenseMatrices) = size(target.transposed, 1)
_perron_entries(target::AbstractMatrix) = size(target, 1)
_perron_entries(target::LayerMap) = prod(SubDEQ.sample_shape(target.operator))

SubDEQ._eigen_columns(target::DenseMatrices, method, p) =
    i -> SubDEQ.DenseEigen(transpose(view(target.transposed, :, :, i)))

# About this process --------------------------------------------------------------------------------------------------

"""
    blas_threads(n)

Let BLAS use `n` threads.
"""
blas_threads(n) = BLAS.set_num_threads(n)

end

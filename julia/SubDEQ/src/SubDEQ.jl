"""
    SubDEQ

Fixed points `z = f(z)` of batches of independent samples, and the adjoint equations of their derivatives, with the
solvers of NonlinearSolve.jl and Krylov.jl.

Every sample is solved by itself in a coroutine, and all coroutines that wait are served by one batched evaluation: see
[`Session`](@ref). The maps are the subhomogeneous layers of the Python package `subdeq_plugin` ([`LayerMap`](@ref)), or
anything that implements [`Server`](@ref); [`Bridge`](@ref) is the door for Python.

```julia
using SubDEQ
weight = abs.(randn(64, 64)) ./ 100
map = LayerMap(Dense(weight), Activation{Float64}("tanh"; shift = 0.1); inner = rand(64, 32))
z = ones(64, 32)
result = solve!(z, map, Solver("newton_krylov"), Goal(1e-10, 100, RELATIVE, true))
```
"""
module SubDEQ

using CommonSolve: init, step!
using Krylov: GmresWorkspace, gmres!
using KrylovKit: eigsolve
using LinearAlgebra
using LinearAlgebra: LAPACKException, SingularException
using LinearSolve: LinearSolve, AbstractKrylovSubspaceMethod, LUFactorization, LinearCache,
    LinearProblem, UMFPACKFactorization
using NNlib: NNlib, DenseConvDims, sigmoid_fast, tanh_fast
using NonlinearSolve: AbsNormTerminationMode, Broyden, DFSane, NewtonRaphson, NonlinearFunction, NonlinearProblem,
    PseudoTransient, TrustRegion
using PrecompileTools: @compile_workload, @setup_workload
using SciMLBase: SciMLBase
using SparseArrays: SparseArrays, SparseMatrixCSC, nonzeros, rowvals
using SpecialFunctions: erf

export ABSOLUTE, ACTIVATIONS, Activation, CONVERGED, Conv, DIVERGED, Dense, Goal, Graph, HILBERT, LayerMap,
    LayerServer, MAX_ITERATIONS, NONFINITE, Normalizer, OnDevice, Outcome, PerronPair, RELATIVE, ROUNDING_FLOOR, Result,
    SOLVERS, STALLED, Server, Session, Solver, THOMPSON, collatz_wielandt, noda, perron,
    perron_krylov, solve!, solve_adjoint!

include("activations.jl")
include("operators.jl")
include("normalizers.jl")
include("maps.jl")
include("devices.jl")
include("lanes.jl")
include("solvers.jl")
include("adjoint.jl")
include("sessions.jl")
include("native.jl")
include("perron_maps.jl")
include("perron.jl")
include("perron_methods.jl")
include("perron_newton.jl")
include("bridge.jl")
include("precompile.jl")

end

# What a first solve would compile, for both precisions.

@setup_workload begin
    @compile_workload begin
        for T in (Float32, Float64), name in keys(SOLVERS)
            name == "picard" && continue
            operator = Dense(T[0.2 0.1; 0.1 0.3])
            map = LayerMap(operator, Activation{T}("tanh"; shift = 0.1); inner = ones(T, 2, 2))
            solver = Solver(name)
            z = ones(T, 2, 2)
            solve!(z, map, solver, Goal{T}(T(1e-5), 100, RELATIVE, true))
            solve_adjoint!(ones(T, 2, 2), map, z, ones(T, 2, 2), solver, Goal{T}(T(1e-5), 100, RELATIVE, false))
        end
    end
    @compile_workload begin
        weight = [0.2 0.1; 0.1 0.3]
        layer = LayerMap(Dense(weight), Activation{Float64}("tanh"; shift = 0.1); inner = ones(2, 2))
        short, long = SparseMatrixCSC{Float64,Int32}(weight), SparseMatrixCSC(weight)
        slice = transpose(view(cat(weight; dims = 3), :, :, 1))
        for matrix in (weight, slice, long, transpose(long), transpose(short)), method in ("noda", "newton", "krylov", "auto")
            perron(matrix; method, tol = 1e-14)
        end
        foreach(method -> perron(layer; method, tol = 1e-14), ("noda", "newton", "auto"))
    end
    # Coroutines must not be part of a precompiled image.
    empty!(_POOL)
end

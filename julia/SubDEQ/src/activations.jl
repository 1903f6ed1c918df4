# Activations `(s(t) + shift) ^ power` and their slopes, entrywise on arrays.
#
# `tanh_fast` and `sigmoid_fast` of NNlib are several times faster than Base's functions because they vectorize, and
# wrong by up to 5 units in the last place where Base is wrong by 2: far below the tolerances of any solve.

struct ScalarFunction{V,D}
    value::V
    slope::D
end

_tanh_slope(t) = 1 - tanh_fast(t)^2
_sigmoid_slope(t) = (s = sigmoid_fast(t); s * (1 - s))
_softsign_slope(t) = inv(abs2(1 + abs(t)))
_arctan_slope(t) = inv(1 + t^2)
_erf_slope(t) = oftype(t, 2 / sqrt(π)) * exp(-t^2)
_relu(t) = max(t, zero(t))
_relu_slope(t) = oftype(t, t > 0)
_leaky_relu(t) = ifelse(t > 0, t, oftype(t, 0.01) * t)
_leaky_relu_slope(t) = ifelse(t > 0, one(t), oftype(t, 0.01))
_relu6(t) = clamp(t, zero(t), oftype(t, 6))
_relu6_slope(t) = oftype(t, 0 < t < 6)
_hardtanh(t) = clamp(t, -one(t), one(t))
_hardtanh_slope(t) = oftype(t, abs(t) < 1)
_elu(t) = ifelse(t > 0, t, expm1(min(t, zero(t))))
_elu_slope(t) = ifelse(t > 0, one(t), exp(min(t, zero(t))))

"""
    ACTIVATIONS

The scalar functions by name, with their slopes; at a kink, the element of Clarke's subdifferential that the layers of
`subdeq_plugin` take. A new one is one entry.
"""
const ACTIVATIONS = Dict{String,ScalarFunction}(
    "tanh" => ScalarFunction(tanh_fast, _tanh_slope),
    "sigmoid" => ScalarFunction(sigmoid_fast, _sigmoid_slope),
    "softplus" => ScalarFunction(NNlib.softplus, sigmoid_fast),
    "softsign" => ScalarFunction(NNlib.softsign, _softsign_slope),
    "arctan" => ScalarFunction(atan, _arctan_slope),
    "erf" => ScalarFunction(erf, _erf_slope),
    "relu" => ScalarFunction(_relu, _relu_slope),
    "leaky_relu" => ScalarFunction(_leaky_relu, _leaky_relu_slope),
    "relu6" => ScalarFunction(_relu6, _relu6_slope),
    "hardtanh" => ScalarFunction(_hardtanh, _hardtanh_slope),
    "elu" => ScalarFunction(_elu, _elu_slope),
)

known(table, kind, name) = haskey(table, name) ||
    throw(ArgumentError("unknown $kind $(repr(name)); known: $(join(sort!(collect(keys(table))), ", "))"))

"""
    Activation{T}(name; shift = 0, power = 1)

The entrywise function `t -> (s(t) + shift) ^ power`; `s` is one of [`ACTIVATIONS`](@ref).

Throws an `ArgumentError` for an unknown name.
"""
struct Activation{T}
    name::String
    shift::T
    power::T
    function Activation{T}(name; shift = 0, power = 1) where {T}
        known(ACTIVATIONS, "activation", name)
        return new{T}(name, shift, power)
    end
end

"""
    activate!(y, a::Activation, t)

Write `a` of every entry of `t` into `y`; the two may be the same array.
"""
activate!(y, a::Activation, t) = _activate!(y, ACTIVATIONS[a.name].value, t, a.shift, a.power)

# Powers as PyTorch takes them: NaN, not an error, for a negative base. The sample is given up, not the batch.
_root(x) = ifelse(x < 0, oftype(x, NaN), sqrt(abs(x)))

# Twice as fast as `^`, because it vectorizes, and wrong by up to `|p log x|` units in the last place.
_power(x, p) = isinteger(p) ? x^p : ifelse(x < 0, oftype(x, NaN), exp(p * log(abs(x))))

# A barrier: everything below is compiled for the scalar function, so that its loop vectorizes.
function _activate!(y, s::S, t, shift, power) where {S}
    if isone(power)
        y .= s.(t) .+ shift
    elseif power == 1//2
        y .= _root.(s.(t) .+ shift)
    else
        y .= _power.(s.(t) .+ shift, power)
    end
    return y
end

"""
    slope!(y, a::Activation, t)

Write the derivative of `a` at every entry of `t` into `y`; the two may be the same array.
"""
slope!(y, a::Activation, t) = _slope!(y, ACTIVATIONS[a.name], t, a.shift, a.power)

function _slope!(y, f::ScalarFunction, t, shift, power)
    s, d = f.value, f.slope
    if isone(power)
        y .= d.(t)
    elseif power == 1//2
        y .= d.(t) ./ (2 .* _root.(s.(t) .+ shift))
    else
        y .= power .* _power.(s.(t) .+ shift, power - 1) .* d.(t)
    end
    return y
end

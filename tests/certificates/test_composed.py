"""Maps written as an `nn.Sequential`: the proof tried on random states and in thirty digits, and every refusal."""

from __future__ import annotations

import itertools
import json
import warnings

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import subdeq_plugin as sd
from subdeq_plugin import Inject, Normalize, Pointwise, certify
from subdeq_plugin.certificates.reading import is_piece
from subdeq_plugin.errors import CertificateError, DomainError, OptionError, ShapeError
from tests.helpers import SCALARS, log_distance, random_states

sd.register_activation("composed_swish", lambda t: t * t.sigmoid())
F64 = torch.float64


def positive(module: nn.Module) -> nn.Module:
    """The module in float64 with its parameters made nonnegative."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.abs_()
    return module


def uniform(*shape: int, seed: int = 0, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=F64) * (hi - lo) + lo


def batch_norm(channels: int) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels).double().eval()
    module.running_mean.copy_(uniform(channels, lo=-1, hi=0))
    module.running_var.copy_(uniform(channels, seed=1, lo=0.5, hi=2))
    return module


B = 2


def families() -> dict[str, tuple[nn.Sequential, tuple[int, ...]]]:
    """Maps that must be proven, and the shapes of their states."""
    torch.manual_seed(0)
    dense = lambda n, m, **k: positive(nn.Linear(n, m, **k))  # noqa: E731
    conv = lambda *a, **k: positive(nn.Conv2d(*a, **k))  # noqa: E731
    return {
        "two layers": (nn.Sequential(dense(3, 5), nn.ReLU(), dense(5, 3), Pointwise("tanh", 0.1)), (B, 3)),
        "nested": (
            nn.Sequential(nn.Sequential(dense(3, 4), nn.Identity(), nn.Tanh()), nn.Dropout(0.5).eval(), dense(4, 3)),
            (B, 3),
        ),
        "sigmoid then power": (
            nn.Sequential(nn.Sigmoid(), dense(3, 3, bias=False), nn.Softplus(threshold=50), Pointwise("relu", 0, -0.5)),
            (B, 3),
        ),
        "injected": (nn.Sequential(dense(3, 3), nn.Tanh(), Inject(uniform(B, 3, lo=0.1))), (B, 3)),
        "images": (
            nn.Sequential(
                conv(2, 4, 3, padding=1, groups=2),
                nn.Hardtanh(),
                nn.MaxPool2d(3, 1, 1),
                conv(4, 2, (2, 1), padding="same", dilation=2, bias=False),
                nn.AvgPool2d(3, 1, 1),
                Inject(uniform(B, 2, 1, 1, lo=0.5)),
                Pointwise("softsign", 0.2),
            ),
            (B, 2, 3, 3),
        ),
        "shrink and spread": (
            nn.Sequential(
                nn.AdaptiveAvgPool2d((2, 1)),
                conv(1, 2, 1),
                nn.AdaptiveMaxPool2d(1),
                nn.Flatten(),
                dense(2, 12),
                nn.ReLU6(),
                nn.Unflatten(1, (1, 3, 4)),
                Pointwise("sigmoid", -0.3, 0.7),
            ),
            (B, 1, 3, 4),
        ),
        "batch norm": (nn.Sequential(conv(2, 2, 1), batch_norm(2), Pointwise("arctan", 0.2)), (B, 2, 2, 2)),
        "sliced": (nn.Sequential(dense(4, 4), Pointwise("tanh", 0.1), Normalize("inf")), (B, 4)),
        "sliced in two norm": (
            nn.Sequential(nn.Flatten(), dense(4, 4), nn.LeakyReLU(), Pointwise("relu", 0.3, 0.8), Normalize(2),
                          nn.Unflatten(1, (1, 2, 2))),
            (B, 1, 2, 2),
        ),
        "by channel": (
            nn.Sequential(conv(2, 2, 3, padding=1), Pointwise("tanh", 0.5), Normalize(3, dims=(2, 3))),
            (B, 2, 2, 2),
        ),
        "falling": (nn.Sequential(dense(3, 3), Pointwise("relu", 0.5, -0.4), Normalize(1)), (B, 3)),
        "normalised in the middle": (
            nn.Sequential(dense(3, 3), Pointwise("tanh", 0.1), Normalize(2), dense(3, 3), Pointwise("erf", 0.2)),
            (B, 3),
        ),
        "registered": (nn.Sequential(dense(3, 3), Pointwise("composed_swish", 0.3, 0.5), dense(3, 3)), (B, 3)),
        "states of vectors": (nn.Sequential(dense(3, 3), Pointwise("tanh", 0.3)), (B, 2, 3)),
    }  # fmt: skip


FAMILIES = families()
EXACT = {**SCALARS, "composed_swish": (lambda t: t / (1 + mp.exp(-t)),)}


def exact_conv(z: np.ndarray, w: Tensor, module: nn.Conv2d) -> np.ndarray:
    """The definition of a convolution, term by term."""
    (kh, kw), (dh, dw), (sh, sw) = module.kernel_size, module.dilation, module.stride
    if module.padding == "same":
        total = dh * (kh - 1), dw * (kw - 1)
        (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        (top, left), (bottom, right) = module.padding, module.padding
    c, height, width = z.shape
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    out = np.full((w.shape[0], rows, columns), mp.mpf(0), dtype=object)
    per = w.shape[0] // module.groups
    for o, i, j, k, a, b in itertools.product(*map(range, (*out.shape, w.shape[1], kh, kw))):
        y, x = i * sh - top + a * dh, j * sw - left + b * dw
        if 0 <= y < height and 0 <= x < width:
            out[o, i, j] += mp.mpf(float(w[o, k, a, b])) * z[(o // per) * (c // module.groups) + k, y, x]
    return out


def exact_pool(z: np.ndarray, largest: bool) -> np.ndarray:
    """Windows of 3 x 3 at stride 1, padded by 1."""
    out = np.empty_like(z)
    for c, i, j in np.ndindex(*z.shape):
        window = z[c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten()
        out[c, i, j] = max(window) if largest else sum(window) / 9
    return out


def exact_adaptive(z: np.ndarray, size: tuple[int, int], largest: bool) -> np.ndarray:
    out = np.empty((z.shape[0], *size), dtype=object)
    for c, i, j in np.ndindex(*out.shape):
        (h, w), (a, b) = z.shape[1:], size
        window = z[c, i * h // a : -(-(i + 1) * h // a), j * w // b : -(-(j + 1) * w // b)].flatten()
        out[c, i, j] = max(window) if largest else sum(window) / len(window)
    return out


def exact_value(module: nn.Module, z: np.ndarray, sample: int) -> np.ndarray:
    """One sample through one module, in mpmath, from the definitions."""
    apply = lambda f, t: np.vectorize(f, otypes=[object])(t)  # noqa: E731
    number = lambda t: apply(mp.mpf, t.detach().numpy().astype(object))  # noqa: E731
    names = {nn.ReLU: "relu", nn.LeakyReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Hardtanh: "hardtanh",
             nn.ReLU6: "relu6", nn.Softplus: "softplus"}  # fmt: skip
    kind = type(module)
    if kind is nn.Sequential:
        for child in module:
            z = exact_value(child, z, sample)
        return z
    if kind in names:
        return apply(EXACT[names[kind]][0], z)
    if kind in (nn.Identity, nn.Dropout):
        return z
    if kind is Pointwise:
        a = module.activation
        return apply(lambda t: (EXACT[a.name][0](t) + mp.mpf(a.shift)) ** mp.mpf(a.power), z)
    if kind is nn.Linear:
        value = z @ number(module.weight).T
        return value if module.bias is None else value + number(module.bias)
    if kind is nn.Conv2d:
        value = exact_conv(z, module.weight.detach(), module)
        return value if module.bias is None else value + number(module.bias)[:, None, None]
    if kind is nn.BatchNorm2d:
        mean, var, w, b = (
            number(t)[:, None, None] for t in (module.running_mean, module.running_var, module.weight, module.bias)
        )
        return (z - mean) / apply(mp.sqrt, var + mp.mpf(module.eps)) * w + b
    if kind in (nn.MaxPool2d, nn.AvgPool2d):
        return exact_pool(z, kind is nn.MaxPool2d)
    if kind in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
        return exact_adaptive(z, size, kind is nn.AdaptiveMaxPool2d)
    if kind is nn.Flatten:
        return z.flatten()
    if kind is nn.Unflatten:
        return z.reshape(module.unflattened_size)
    if kind is Inject:
        y = module.y.detach()
        return z + number(y[sample] if y.shape[0] > 1 else y[0])
    assert kind is Normalize
    dims = None if module.dims is None else tuple(dim - 1 for dim in module.dims)
    if np.isinf(module.p):
        return z / z.max(axis=dims, keepdims=True)
    return z / apply(lambda t: t ** (1 / mp.mpf(module.p)), (z ** mp.mpf(module.p)).sum(axis=dims, keepdims=True))


def exact_fixed_point(module: nn.Module, shape: tuple[int, ...], rate: float, sample: int) -> np.ndarray:
    z = np.full(shape, mp.mpf(1), dtype=object)
    for _ in range(int(60 / -np.log(rate)) + 5):
        z = exact_value(module, z, sample)
    return z


def distance(metric: str, z: Tensor, exact: np.ndarray) -> float:
    logs = [mp.log(mp.mpf(float(a)) / b) for a, b in zip(z.flatten(), exact.flatten(), strict=True)]
    return float(max(logs) - min(logs)) if metric == "hilbert" else float(max(map(abs, logs)))


@pytest.fixture(params=list(FAMILIES))
def case(request):
    module, shape = FAMILIES[request.param]
    return module, shape, certify(module, torch.ones(shape, dtype=F64))


def test_proven(case):
    _, shape, proof = case
    assert proof.unique and proof.reasons == () and all(check.passed for check in proof.checks), str(proof)
    assert 0 < proof.rate < 1 and proof.mu <= proof.rate and str(tuple(shape)) in proof.scope
    assert str(proof).startswith("PROVEN") and json.loads(proof.to_json())["unique"]
    assert proof.contraction.rate == proof.rate and proof.enclosure is None


def test_the_rate_is_never_exceeded(case):
    module, shape, proof = case
    for seed, spread in enumerate((1e-3, 0.5, 3.0, 20.0, 60.0)):
        a, b = (random_states(shape, 10 * seed + k, spread) for k in (1, 2))
        if proof.metric == "hilbert":
            p = next(piece for piece in module.modules() if isinstance(piece, Normalize)).p
            a, b = (
                z / torch.linalg.vector_norm(z.flatten(1), p, dim=1).reshape(-1, *[1] * (z.dim() - 1)) for z in (a, b)
            )
        with torch.no_grad():
            after = log_distance(proof.metric, module(a), module(b), len(shape) - 1)
        before = log_distance(proof.metric, a, b, len(shape) - 1)
        assert bool((after <= proof.rate * before * (1 + 1e-10) + 1e-11).all())


def test_the_degree_bounds_the_jacobian(case):
    """`|M| z <= mu F(z)`, by autograd; of F, where a final normalisation is left off."""
    module, shape, proof = case
    pieces = list(module)
    if proof.theorem == "B":
        pieces = pieces[: next(k for k, piece in enumerate(pieces) if isinstance(piece, Normalize))]
    for seed, spread in enumerate((0.3, 3.0, 10.0)):
        z = random_states(shape, seed, spread)

        def flat(v: Tensor) -> Tensor:
            for piece in pieces:
                v = piece(v)
            return v.flatten(1).sum(0) if v.shape[0] > 1 else v.flatten()

        jacobian = torch.autograd.functional.jacobian(flat, z)  # (N, B, ...): samples do not mix
        lhs = (jacobian.abs() * z).flatten(2).sum(2).T
        value = z
        for piece in pieces:
            value = piece(value)
        assert bool((lhs <= proof.mu * value.flatten(1) * (1 + 1e-9)).all())


@pytest.mark.parametrize("offset", [0.0, 1e-13, 1e-6, 0.5])
def test_error_bounds_against_thirty_digits(case, offset):
    module, shape, proof = case
    with mp.workdps(35):
        truth = [exact_fixed_point(module, shape[1:], proof.rate, sample) for sample in range(B)]
        rounded = torch.tensor(np.stack(truth).astype(float), dtype=F64)
        z = rounded * (offset * uniform(*shape, seed=5, lo=-1)).exp()
        error, (lo, hi) = proof.error_bound(z), proof.error_interval(z)
        for sample, exact in enumerate(truth):
            true = distance(proof.metric, z[sample], exact)
            assert true <= float(error[sample]) <= 2 * true / (1 - proof.rate) + 1e-10
            bounds = zip(lo[sample].flatten(), exact.flatten(), hi[sample].flatten(), strict=True)
            assert all(float(a) <= middle <= float(b) for a, middle, b in bounds)


@pytest.mark.parametrize("name", ["sliced", "sliced in two norm"])
def test_a_state_off_the_slice_is_moved_there(name):
    """Its residual alone says nothing in Hilbert's metric, which does not see the length."""
    module, shape = FAMILIES[name]
    proof = certify(module, torch.ones(shape, dtype=F64))
    z = random_states(shape, 3, 1.0)
    assert torch.allclose(proof.error_bound(1e4 * z), proof.error_bound(z), rtol=1e-9)
    assert torch.allclose(proof.error_bound(1e-4 * z), proof.error_bound(z), rtol=1e-9)


def test_groups_that_are_reshaped_afterwards():
    pieces = [Pointwise("relu", 0, 0.4), Normalize(1, dims=2), nn.Flatten(), nn.Unflatten(1, (2, 2))]
    proof = certify(nn.Sequential(*pieces), torch.ones(1, 2, 2, dtype=F64))
    assert (proof.theorem, proof.metric, proof.rate) == ("B", "thompson", pytest.approx(0.8))


def test_the_count_of_iterations_suffices(case):
    module, shape, proof = case
    z = torch.ones(shape, dtype=F64)
    with torch.no_grad():
        for _ in range(proof.iterations_for(1e-4)):
            z = module(z)
    assert float(proof.error_bound(z).max()) <= 1.01e-4 / (1 - proof.rate)
    assert proof.iterations_for(1e-3, first_step=1.0) >= 1


def test_theorems_and_metrics():
    found = {
        name: (p := certify(m, torch.ones(s, dtype=F64)), p.theorem, p.metric)[1:] for name, (m, s) in FAMILIES.items()
    }
    assert found.pop("sliced") == found.pop("sliced in two norm") == ("B", "hilbert")
    assert found.pop("by channel") == found.pop("falling") == ("B", "thompson")
    assert set(found.values()) == {("A", "thompson")}


def test_degrees_multiply_and_constants_sharpen():
    z = torch.ones(1, 2, dtype=F64)
    dense = positive(nn.Linear(2, 2, bias=False))
    mu = sd.Activation("tanh", 0.1).mu_plus

    def degree(*pieces: nn.Module) -> float:
        return certify(nn.Sequential(*pieces), z).mu

    assert degree(dense, nn.ReLU(), dense, Pointwise("tanh", 0.1)) == mu
    assert degree(dense, Pointwise("tanh", 0.1), dense, Pointwise("tanh", 0.1)) == pytest.approx(mu * mu, rel=1e-14)
    # An activation followed by a constant is an activation with a larger shift, whatever lies in between in shape.
    split = degree(dense, nn.Tanh(), nn.Unflatten(1, (1, 2)), nn.Flatten(), Inject(torch.full((2,), 0.1, dtype=F64)))
    assert split == mu
    tenth = Inject(torch.full((2,), 0.1, dtype=F64))
    assert degree(Pointwise("relu", 0.0, 0.5), nn.Tanh(), tenth) == pytest.approx(mu / 2, rel=1e-12)
    assert degree(nn.Tanh(), tenth, tenth) == pytest.approx(sd.Activation("tanh", 0.2).mu_plus, rel=1e-8)
    # A bias of at least 1 after entries of at most 1.1: A z <= 3.3, and 3.3 / 4.3 of the degree is left.
    eye = linear([[1.0, 0.0], [0.0, 3.0]], [1.0, 2.0])
    assert degree(dense, Pointwise("tanh", 0.1), eye, nn.ReLU()) == pytest.approx(mu * 3.3 / 4.3, rel=1e-12)
    # Bounded by 1, with at least 1 added: half the degree, at most; without a bound nothing is gained.
    bounded = nn.Sequential(Normalize(2), Inject(torch.ones(2, dtype=F64)), Pointwise("relu", 0.0, 0.5))
    assert certify(bounded, z).mu == 0.5
    assert degree(dense, Inject(torch.ones(2, dtype=F64))) == 1
    # Two norms in the middle: the order is lost, the degree doubled each time.
    assert degree(
        Pointwise("relu", 0, 0.2), Normalize(2), Pointwise("relu"), Normalize(2, dims=1), Pointwise("relu")
    ) == (pytest.approx(0.8))


def test_float32_weights_are_taken_as_they_are():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 3), nn.Softplus(), Pointwise("tanh", 0.2))
    with torch.no_grad():
        module[0].weight.abs_(), module[0].bias.abs_()
    proof = certify(module, torch.ones(2, 3))
    z = torch.ones(2, 3)
    with torch.no_grad():
        for _ in range(60):
            z = module(z)
    assert proof.unique and float(proof.error_bound(z).max()) < 1e-5
    assert "threshold" in certify(module.double(), torch.ones(2, 3, dtype=F64)).reasons[0]


def test_effective_weights():
    torch.manual_seed(2)
    plain = nn.Linear(3, 3)
    sd.layers.make_nonneg(plain, "weight", "abs")
    with torch.no_grad():
        plain.bias.abs_()
    z = torch.ones(2, 3)
    assert certify(nn.Sequential(plain, Pointwise("tanh", 0.1)), z).unique
    old = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        old.weight.abs_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(old)
    module = nn.Sequential(old, Pointwise("tanh", 0.1))
    assert certify(module, z).unique
    with torch.no_grad():
        old.weight_v[0, 0] = -1.0  # the attribute `weight` still holds the old value
    assert "smallest weight" in certify(module, z).reasons[0]
    new = nn.utils.parametrizations.weight_norm(positive(nn.Linear(3, 3)))
    assert certify(nn.Sequential(new, Pointwise("tanh", 0.1)), z.double()).unique
    moving = nn.utils.parametrizations.spectral_norm(positive(nn.Linear(3, 3)), n_power_iterations=1)
    with torch.no_grad():
        moving.parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0.0, 0.0]))
    assert "changes from one call" in certify(nn.Sequential(moving, Pointwise("tanh", 0.1)), z.double()).reasons[0]
    assert certify(nn.Sequential(moving.eval(), Pointwise("tanh", 0.1)), z.double()).unique


def test_a_registered_activation_is_proven_up_to_a_limit():
    module, shape = FAMILIES["registered"]
    proof = certify(module, torch.ones(shape, dtype=F64))
    assert "up to" in proof.scope
    assert bool(proof.error_bound(torch.full(shape, 1e305, dtype=F64)).isinf().all())
    huge = nn.Sequential(positive(nn.Linear(1, 1, bias=False)), Pointwise("composed_swish", 0.3, 0.5))
    with torch.no_grad():
        huge[0].weight.fill_(1e308)
    assert "range of a double" in certify(huge, torch.ones(1, 1, dtype=F64)).reasons[0]


# ---------------------------------------------------------------- refusals


class Doubled(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return 2 * super().forward(z)


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    module = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight, dtype=F64))
        if bias is not None:
            module.bias.copy_(torch.tensor(bias, dtype=F64))
    return module


def conv(*args, fill: float | None = None, **kwargs) -> nn.Conv2d:
    module = positive(nn.Conv2d(*args, **kwargs))
    if fill is not None:
        with torch.no_grad():
            module.weight.fill_(fill)
    return module


def corner(tap: int = 1, **kwargs) -> nn.Conv2d:
    """A 2 x 2 kernel whose only tap is the lower right one, or the upper left."""
    module = conv(1, 1, 2, bias=False, fill=0.0, **kwargs)
    with torch.no_grad():
        module.weight[..., tap, tap] = 1.0
    return module


END = Pointwise("tanh", 0.1)
NAN = float("nan")
VECTOR, IMAGE = (1, 2), (1, 1, 2, 2)


def hooked() -> nn.Linear:
    module = linear([[1.0, 0.0], [0.0, 1.0]])
    module.register_forward_hook(lambda module, args, output: -output)
    return module


def patched() -> nn.Linear:
    module = linear([[1.0, 0.0], [0.0, 1.0]])
    module.forward = lambda z: 1 - z
    return module


def negative_injection() -> Inject:
    module = Inject(torch.zeros(2, dtype=F64))
    module.y = torch.tensor([0.1, -0.1], dtype=F64)
    return module


def shifted_norm(**changes: float) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(1).double().eval()
    for name, value in changes.items():
        getattr(module, name).data.fill_(value)
    return module


REFUSED = {
    "negative weight": (lambda: [linear([[1.0, -1e-300], [1.0, 1.0]]), END], VECTOR, "piece 0 (Linear): the smallest"),
    "negative bias": (lambda: [linear([[6.0, 1.0], [1.0, 6.0]], [-5.0, 0.0]), END], VECTOR, "negative one can create"),
    "zero row": (lambda: [linear([[0.0, 0.0], [1.0, 1.0]]), END], VECTOR, "always zero"),
    "zero row by padding": (lambda: [corner(0, padding=1, stride=2), END], (1, 1, 1, 1), "always zero"),
    "zero row at an edge": (lambda: [corner(padding="same", dilation=2), END], IMAGE, "always zero"),
    "NaN weight": (lambda: [linear([[NAN, 1.0], [1.0, 1.0]]), END], VECTOR, "NaN or infinite"),
    "infinite bias": (lambda: [linear([[1.0, 1.0], [1.0, 1.0]], [1.0, float("inf")]), END], VECTOR, "NaN or infinite"),
    "NaN injection": (lambda: [negative_injection(), END], VECTOR, "goes down to -0.1"),
    "wrong injection": (lambda: [Inject(torch.ones(3)), END], VECTOR, "does not take shape (1, 2)"),
    "larger injection": (lambda: [Inject(torch.ones(5, 2)), END], VECTOR, "does not broadcast"),
    "dropout in training": (lambda: [nn.Dropout(0.5).train(), END], VECTOR, "call eval() first"),
    "unknown piece": (lambda: [END, nn.LayerNorm(2), END], VECTOR, "piece 1 (LayerNorm): nothing is known"),
    "unknown inside": (lambda: [END, nn.Sequential(nn.GELU())], VECTOR, "piece 1.0 (GELU)"),
    "subclass": (lambda: [Doubled(2, 2).double(), END], VECTOR, "piece 0 (Doubled)"),
    "hook": (lambda: [hooked(), END], VECTOR, "forward hooks"),
    "patched": (lambda: [patched(), END], VECTOR, "replaced forward"),
    "pruned": (lambda: [prune.identity(linear([[1.0, 1.0]] * 2), "weight"), END], VECTOR, "prune.remove"),
    "shape": (lambda: [linear([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]), END], VECTOR, "a fixed point needs"),
    "misfit": (lambda: [linear([[1.0, 1.0, 1.0]]), END], VECTOR, "does not take shape (1, 2)"),
    "unbatched image": (lambda: [conv(1, 1, 1), END], (1, 2, 2), "needs images"),
    "padding mode": (lambda: [conv(1, 1, 3, padding_mode="circular"), END], IMAGE, 'use padding_mode="zeros"'),
    "average of nothing": (lambda: [nn.AvgPool2d(1, divisor_override=-1), END], IMAGE, "not positive"),
    "window of padding": (lambda: [nn.MaxPool2d(2, 1, 1, dilation=3), END], IMAGE, "nothing but padding"),
    "indices": (lambda: [nn.MaxPool2d(1, return_indices=True), END], IMAGE, "indices"),
    "batch flattened": (lambda: [nn.Flatten(0), END], VECTOR, "batch"),
    "batch unflattened": (lambda: [nn.Unflatten(0, (1, 1)), END], VECTOR, "batch"),
    "softplus": (lambda: [nn.Softplus(beta=2), END], VECTOR, 'use Pointwise("softplus")'),
    "hardtanh": (lambda: [nn.Hardtanh(0.5, 1), END], VECTOR, "min(t, 1)"),
    "not positive": (lambda: [Pointwise("tanh", -0.5)], VECTOR, "not positive"),
    "degree one": (lambda: [linear([[1.0, 1.0], [1.0, 1.0]]), nn.ReLU()], VECTOR, "not below 1"),
    "degree one, normalised": (lambda: [linear([[1.0, 1.0], [1.0, 1.0]]), Normalize(1)], VECTOR, "not below 1"),
    "two thirds by groups": (
        lambda: [Pointwise("relu", 0, 0.6), Normalize(1, dims=2)], (1, 2, 2), "proven factor is 1.2"),
    "batch norm in training": (lambda: [nn.BatchNorm2d(1).train(), END], IMAGE, "call eval()"),
    "batch norm without statistics": (
        lambda: [nn.BatchNorm2d(1, track_running_stats=False).eval(), END], IMAGE, "own statistics"),
    "batch norm down": (lambda: [shifted_norm(running_mean=0.5), END], IMAGE, "is negative"),
    "batch norm turned": (lambda: [shifted_norm(weight=-1.0, bias=3.0), END], IMAGE, "make its weight positive"),
    "batch norm broken": (lambda: [shifted_norm(running_var=NAN), END], IMAGE, "make its weight positive"),
    "batch norm infinite": (lambda: [shifted_norm(weight=float("inf")), END], IMAGE, "make its weight positive"),
    "spread over the batch": (lambda: [Normalize(1, dims=-2), END], VECTOR, "0, the batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name):
    make, shape, message = REFUSED[name]
    proof = certify(nn.Sequential(*make()), torch.ones(shape, dtype=F64))
    assert not proof.unique and proof.rate is None and proof.theorem is None
    assert any(message in reason for reason in proof.reasons), proof.reasons
    z = torch.ones(shape, dtype=F64)
    assert bool(proof.error_bound(z).isinf().all())
    lo, hi = proof.error_interval(z)
    assert bool((lo <= 0).all() & hi.isinf().all())
    with pytest.raises(CertificateError):
        proof.iterations_for(1e-3)


def test_a_fresh_batch_norm_shifts_by_nothing():
    module = nn.Sequential(nn.BatchNorm2d(2).eval(), Pointwise("tanh", 0.1), nn.BatchNorm2d(2).eval())
    assert certify(module, torch.ones(1, 2, 2, 2)).unique
    flat = nn.Sequential(nn.BatchNorm1d(2).eval(), Pointwise("tanh", 0.1))
    assert certify(flat, torch.ones(1, 2)).unique and certify(flat, torch.ones(1, 2, 3)).unique


def test_a_zero_row_with_a_bias_is_positive():
    module = nn.Sequential(linear([[0.0, 0.0], [1.0, 1.0]], [0.5, 0.0]), END)
    assert certify(module, torch.ones(1, 2, dtype=F64)).unique


def test_the_paper_counterexamples_are_refused_and_falsified():
    w = [[1.0, -1.0], [-1.0, 1.0]]
    cases = [
        ([linear(w), Pointwise("tanh", 1.2)], [(1.2, 1.2), (2.15750402, 0.24249598), (0.24249598, 2.15750402)]),
        (
            [linear([[2 * v for v in row] for row in w]), Pointwise("tanh", 1.603), Normalize("inf")],
            [(1.0, 1.0), (1.0, 0.28517961), (0.28517961, 1.0)],
        ),
        ([linear([[6.0]], [-5.0]), Pointwise("tanh", 1.05)], [(0.0502,), (0.7888,), (2.05,)]),
    ]
    for pieces, solutions in cases:
        module, z = nn.Sequential(*pieces), torch.ones(1, len(solutions[0]), dtype=F64)
        proof = certify(module, z)
        assert not proof.unique and proof.mu is None
        found = sd.falsify(module, z, positive=True)
        assert found.refuted and len(found.solutions) == 3
        assert sorted(map(tuple, found.solutions.tolist())) == [
            pytest.approx(row, abs=1e-4) for row in sorted(solutions)
        ]


def test_the_module_is_compared_with_its_pieces():
    class Sly(nn.Tanh):
        def __getattribute__(self, name: str):
            return (lambda t: 2 + t) if name == "forward" else super().__getattribute__(name)

    proof = certify(
        nn.Sequential(linear([[1.0]]), Sly(), Inject(torch.ones(1, dtype=F64))), torch.ones(1, 1, dtype=F64)
    )
    assert not proof.unique and "computes something else" in proof.reasons[0]


def test_opaque_maps_are_never_proven():
    def contraction(z: Tensor) -> Tensor:
        return 0.5 * z.sin() + 1

    class Module(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return contraction(z)

    z = torch.ones(2, 3, dtype=F64)
    for target in (contraction, Module()):
        proof = certify(target, z)
        assert not proof.unique and len(proof.reasons) == 1 and "never proven" in proof.reasons[0]
        assert any("proves nothing" in str(check.value) and check.passed for check in proof.checks)
        assert bool(proof.error_bound(-z).isinf().all()) and not bool(proof.proven.any())
        lo, hi = proof.error_interval(z)
        assert bool((lo == -torch.inf).all() & (hi == torch.inf).all())
        assert json.loads(proof.to_json())["unique"] is False and "NOT PROVEN" in str(proof)
    many = certify(lambda z: torch.tanh(6 * z - 5) + 1.05, z)
    assert not many.unique and any("3 different fixed points" in reason for reason in many.reasons)


def test_calls():
    module, shape = FAMILIES["two layers"]
    z = torch.ones(shape, dtype=F64)
    proof = certify(module, z, conditions="subhomogeneous")
    assert proof.unique and certify(module, -z, conditions="all").unique  # only the shape of z matters
    with pytest.raises(OptionError, match="only 'subhomogeneous' does"):
        certify(module, z, conditions="norm")
    with pytest.raises(OptionError, match="example state"):
        certify(module)
    with pytest.raises(OptionError, match="example state"):
        certify(lambda z: z)
    for bad, message in (
        (torch.ones(3), "at least 2"),
        ("z", "torch.Tensor"),
        (torch.ones(2, 3, dtype=torch.int), "float"),
        (torch.ones(0, 3), "empty"),
        (torch.ones(2, 3), "does not take torch.float32"),
    ):
        with pytest.raises(ShapeError, match=message):
            certify(module, bad)
    with pytest.raises(ShapeError, match="must have shape"):
        proof.error_bound(torch.ones(1, 3, dtype=F64))
    with pytest.raises(DomainError):
        proof.error_bound(-z)
    with pytest.raises(CertificateError, match="no further input"):
        proof.error_bound(z, x=z)
    with pytest.raises(CertificateError, match="layers only"):
        proof.gradient_bound(z, z)
    with pytest.raises(CertificateError, match="layers only"):
        sd.advise(proof)
    broken = z.clone()
    broken[0, 0] = float("nan")
    assert proof.error_bound(broken).isinf().tolist() == [True, False]
    with pytest.raises(OptionError, match="exactly one"):
        certify(nn.Sequential(sd.SubhomLinear(1, 2), sd.SubhomLinear(1, 2)), z)
    layer = sd.SubhomLinear(2, 3).double()
    assert certify(nn.Sequential(nn.Linear(1, 1), layer), torch.ones(1, 2, dtype=F64)).unique


def test_a_certificate_is_a_snapshot():
    module = nn.Sequential(linear([[0.5]]), Pointwise("tanh", 0.1))
    z = torch.full((1, 1), 0.7, dtype=F64)
    proof = certify(module, z)
    before = proof.error_bound(z)
    with torch.no_grad():
        module[0].weight.fill_(-3.0)
    assert torch.equal(proof.error_bound(z), before)


def test_one_piece_alone_and_no_piece():
    z = torch.ones(1, 2, dtype=F64)
    assert certify(Pointwise("tanh", 0.1), z).unique and is_piece(nn.Tanh())
    assert "not below 1" in certify(nn.Sequential(), z).reasons[0]

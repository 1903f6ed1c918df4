"""Checks of the fused kernels against their definitions in float64; `test_fused.py` runs them.

Triton decides once for a whole process whether it interprets kernels, so these have one of their own. With
`TRITON_INTERPRET=1` they need no GPU; without it, they check the compiled kernels on one.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import subdeq_plugin as sd
from subdeq_plugin.activations import Activation
from subdeq_plugin.errors import OptionError, ShapeError
from subdeq_plugin.layers import BoundMap, SubhomConv2d, SubhomLinear, fused
from subdeq_plugin.layers.bound import make_normalizer
from subdeq_plugin.layers.operators import DenseOperator
from tests.problems import normal

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture(autouse=True)
def _numpy_is_quiet():
    """The interpreter computes with numpy, which warns of the infinities that a GPU takes as they are."""
    with np.errstate(all="ignore"):
        yield


@dataclass(frozen=True)
class Case:
    """A map by its options; the weights of a row sum to about `size`."""

    n: int
    batch: int = 3
    name: str = "tanh"
    shift: float = 1.2
    power: float = 1.0
    injected: str = "outer"
    norm: float | str | None = None
    signed: bool = False
    metric: str = "thompson"
    size: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if value != getattr(Case(0), name)}
        return "-".join(f"{name}={value}" for name, value in shown.items())

    def make(self) -> BoundMap:
        weight = normal(self.n, self.n, seed=self.seed, dtype=torch.float32) * self.size / self.n
        # Samples of different sizes, which take different numbers of steps.
        scale = torch.logspace(-2, 1, self.batch, dtype=torch.float32)[:, None]
        inner, outer = (scale * normal(self.batch, self.n, seed=self.seed + k).abs().float() for k in (1, 2))
        bound = BoundMap(
            DenseOperator(weight if self.signed else weight.abs()),
            Activation(self.name, self.shift, self.power),
            inner if self.injected in ("inner", "both") else None,
            outer if self.injected in ("outer", "both") else None,
            make_normalizer(DenseOperator.groups, self.norm, "state"),
        )
        return bound.to(DEVICE, torch.float32)

    def start(self) -> Tensor:
        return torch.ones(self.batch, self.n, device=DEVICE)


WALKS = [
    Case(1, 1),
    Case(1, 64, "softplus", 0.3, 0.5, injected="inner"),
    Case(5, 3, power=0.5, injected="both"),
    Case(5, 20, "sigmoid", 0.0, injected="none"),
    Case(33, 3, "relu", 0.5, -0.7),
    Case(33, 64, size=0.2, shift=0.05),
    Case(87, 3, norm=1, metric="hilbert"),
    Case(87, 20, "erf", norm="inf", metric="hilbert", injected="both", size=3.0),
    Case(130, 1, "softsign", injected="inner"),
    Case(130, 3, "softplus", 0.05, 0.9, norm=2, metric="hilbert"),
    Case(256, 1, "relu6", 0.5, 0.8),
    Case(256, 3, signed=True, size=2.0),
    Case(256, 17, "elu", 0.5, 0.8, injected="both"),
    Case(17, 3, "leaky_relu", 0.4, 0.7, metric="hilbert"),
    Case(20, 3, "hardtanh", 1.5, norm=2, metric="thompson", injected="none"),
]


def double(bound: BoundMap) -> BoundMap:
    return bound.to("cpu", torch.float64)


def distances(metric: str, x: Tensor, y: Tensor) -> Tensor:
    log = x.log() - y.log()
    return log.amax(1) - log.amin(1) if metric == "hilbert" else log.abs().amax(1)


def walk(bound: BoundMap, z: Tensor, rate: float, metric: str, tol: float, limit: int) -> tuple[Tensor, ...]:
    """State, image, steps and distance of every sample, one after another, in float64."""
    rows = []
    for sample, start in enumerate(z.cpu().double()):
        f, state = double(bound).rows(torch.tensor([sample])) if bound.state_shape else double(bound), start[None]
        for steps in range(1, limit + 1):
            image = f(state)
            distance = distances(metric, image, state)
            if rate / (1 - rate) * float(distance) <= tol or steps == limit:
                break
            state = image
        rows.append((state[0], image[0], torch.tensor(steps), distance[0]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=rtol, atol=atol)


def run(case: Case, tol: float = 1e-3, rate: float = 0.5, limit: int = 60) -> fused.FusedWalk:
    return fused.fused_walk(case.make(), case.start(), rate=rate, metric=case.metric, tol=tol, max_steps=limit)


@pytest.mark.parametrize("case", WALKS, ids=str)
def test_a_walk_is_what_the_definition_says(case):
    found = run(case)
    state, image, steps, distance = walk(case.make(), case.start(), 0.5, case.metric, 1e-3, 60)
    assert found.steps.dtype == torch.int32 and found.distance.shape == (case.batch,)
    assert found.steps.tolist() == steps.tolist() and int(steps.max()) < 60
    close(found.z, state, 2e-5)
    close(found.image, image, 2e-5)
    close(found.distance, distance, 1e-3, 3e-6)


@pytest.mark.parametrize("case", [Case(7), Case(40, 18, "softplus", 0.2, 0.4), Case(140, 2, norm=2)], ids=str)
def test_the_answer_is_as_near_the_fixed_point_as_the_test_says(case):
    metric = "hilbert" if case.norm else "thompson"
    bound = case.make()
    rate = bound.activation.mu_plus
    found = fused.fused_walk(bound, case.start(), rate=rate, metric=metric, tol=1e-5, max_steps=200)
    exact = case.start().cpu().double()
    for _ in range(300):
        exact = double(bound)(exact)
    assert distances("thompson", double(bound)(exact), exact).max() < 1e-13
    assert (distances(metric, found.image.cpu().double(), exact) <= 1.1e-5).all()
    assert (rate / (1 - rate) * found.distance <= 1e-5).all()


def test_samples_end_one_by_one():
    found = run(Case(33, 64, size=0.2, shift=0.05), tol=1e-4)
    assert len(set(found.steps.tolist())) >= 4
    # Those that share a program with slower ones are what they are alone, in a program for one sample.
    case = Case(33, 64, size=0.2, shift=0.05)
    for sample in (0, 31, 63):
        rows = case.make().rows(torch.tensor([sample], device=DEVICE))
        alone = fused.fused_walk(rows, case.start()[:1], rate=0.5, metric="thompson", tol=1e-4, max_steps=60)
        assert alone.steps[0] == found.steps[sample]
        close(alone.image[0], found.image[sample].cpu(), 1e-6)


def test_a_walk_ends_at_its_limit():
    case = Case(33, 18)
    f = double(case.make())
    for limit in (1, 2):
        found = run(case, tol=1e-5, limit=limit)
        assert found.steps.tolist() == [limit] * 18
        state = case.start().cpu().double() if limit == 1 else f(case.start().cpu().double())
        close(found.z, state, 1e-6)
        close(found.image, f(state), 1e-6)


def test_what_float32_cannot_reach_is_not_claimed():
    case = Case(87, 20, "relu", 0.5, -0.9)
    found = run(case, tol=1e-12, limit=80)
    still = found.distance == 0  # the others go round in circles
    assert ((found.steps == 80) | still).all() and not still.all()
    exact = walk(case.make(), case.start(), 0.5, "thompson", 1e-12, 200)[1]
    close(found.image, exact, 2e-6)


def test_a_rate_of_zero_needs_no_distance():
    assert run(Case(5), rate=0.0, tol=0.0).steps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("norm", [None, 1, 2, "inf"])
def test_bad_samples_end_and_leave_the_others_alone(norm):
    case, bad = Case(5, 18, norm=norm), [4, 6, 7, 17]
    start = case.start()
    start[bad, 2] = torch.tensor([math.nan, math.inf, 0.0, -1.0], device=DEVICE)
    clean = run(case)
    found = fused.fused_walk(case.make(), start, rate=0.5, metric="thompson", tol=1e-3, max_steps=60)
    others = [sample for sample in range(18) if sample not in bad]
    assert found.steps[bad].tolist() == [1] * 4 and (found.distance[bad] == math.inf).all()
    for field in ("z", "image", "steps", "distance"):
        assert torch.equal(getattr(found, field)[others], getattr(clean, field)[others])


@pytest.mark.parametrize("name", fused.FUNCTIONS)
def test_nan_in_an_injection_is_never_lost(name):
    bound = Case(3, 18, name, injected="inner").make()
    assert bound.inner is not None
    bound.inner[7, 1] = math.nan
    found = fused.fused_walk(bound, bound.start(), rate=0.5, metric="thompson", tol=1e-2, max_steps=2)
    finite = found.distance.isfinite()
    assert not finite[7] and found.steps[7] == 1 and finite.sum() == 17


def sides() -> Tensor:
    """Arguments of both signs and many sizes, none at a kink."""
    size = torch.logspace(-6, 1.4, 20, dtype=torch.float32)
    return torch.cat([size, -size, torch.tensor([0.37, 0.99, 1.01, 5.99, 6.01, 60.0, -60.0])])


@pytest.mark.parametrize("name", fused.FUNCTIONS)
def test_activations_are_accurate_relative_to_their_values(name):
    t = sides()
    bound = BoundMap(DenseOperator(torch.zeros(1, 1)), Activation(name), inner=t[:, None]).to(DEVICE, torch.float32)
    found = fused.fused_walk(bound, bound.start(), rate=0.5, metric="thompson", tol=1.0, max_steps=1)
    close(found.image[:, 0], Activation(name)(t.double()), 4e-6, 1e-25)


@pytest.mark.parametrize("name", fused.FUNCTIONS)
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_slopes_are_accurate(name, power):
    # The second step from (1, 0) has the slope at the first entry as its second one.
    t, activation = sides(), Activation(name, 2.0, power)
    inner = torch.stack([t, torch.zeros_like(t)], dim=1)
    bound = BoundMap(DenseOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), activation, inner=inner)
    state = torch.tensor([1.0, 0.0]).expand_as(inner).to(DEVICE)
    found = fused.fused_adjoint(bound.to(DEVICE, torch.float32), state, state, tol=0.0, max_steps=2)
    expected = activation.derivative(t.double())
    usable = activation.function.value(t.double()) + 2 > 1e-3
    close(found.u[:, 1].cpu()[usable], expected[usable], 5e-6, 1e-25)


ADJOINTS = [
    Case(1, 3),
    Case(5, 18, "softplus", 0.3, 0.5, injected="both"),
    Case(33, 3, "sigmoid", 0.1, -0.7, injected="inner"),
    Case(33, 18, signed=True, size=2.0),
    Case(87, 3, norm=1),
    Case(87, 18, "erf", norm=2, power=0.8, injected="both"),
    Case(20, 18, "softsign", norm="inf"),
    Case(9, 3, shift=0.0, power=0.5, injected="inner"),
    Case(130, 2, "relu", 0.5, 0.8),
    Case(256, 1, "elu", 0.5, injected="both", norm=2),
    Case(200, 17, "softplus", 0.4, 0.3, injected="none"),
]


def adjoint(bound: BoundMap, state: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """`J^T` of every sample, `(B, n, n)`, by autograd, and the solutions of the adjoint equations by a direct solve."""
    f, products = double(bound), []
    for sample, z in enumerate(state.cpu().double()):
        row = f.rows(torch.tensor([sample])) if bound.state_shape else f
        products.append(torch.autograd.functional.jacobian(lambda z, row=row: row(z[None])[0], z).T)
    transposed = torch.stack(products)
    return transposed, torch.linalg.solve(torch.eye(state.shape[1], dtype=torch.float64) - transposed, g.cpu().double())


@pytest.mark.parametrize("case", ADJOINTS, ids=str)
def test_an_adjoint_solves_its_equation(case):
    bound = case.make()
    state = fused.fused_walk(bound, case.start(), rate=0.5, metric="thompson", tol=1e-5, max_steps=60).image
    g = normal(case.batch, case.n, seed=9, dtype=torch.float32).to(DEVICE)
    found = fused.fused_adjoint(bound, state, g, tol=1e-5, max_steps=100)
    transposed, solution = adjoint(bound, state, g)

    def image(u: Tensor) -> Tensor:
        return g.cpu().double() + (transposed @ u[..., None])[..., 0]

    def residual(u: Tensor) -> Tensor:
        return torch.linalg.vector_norm(image(u) - u, dim=1) / torch.linalg.vector_norm(image(u), dim=1)

    u = found.u.cpu().double()
    assert (found.residual <= 1e-5).all()
    close(found.residual, residual(u), 1e-2, 1e-6)
    assert (torch.linalg.vector_norm(u - solution, dim=1) <= 1e-4 * torch.linalg.vector_norm(solution, dim=1)).all()
    steps, ends, v = torch.zeros(case.batch, dtype=torch.int64), torch.empty_like(u), g.cpu().double()
    for step in range(1, 101):
        done = (steps == 0) & (residual(v) <= 1e-5)
        steps[done], ends[done] = step, v[done]
        v = image(v)
    assert found.steps.tolist() == steps.tolist()
    assert (torch.linalg.vector_norm(u - ends, dim=1) <= 1e-6 * torch.linalg.vector_norm(u, dim=1)).all()


def test_the_step_of_an_adjoint_is_that_of_the_linearization():
    tied = Case(9, 3, "erf", injected="none", norm="inf").make().with_tensors([torch.ones(9, 9, device=DEVICE) / 8])
    for bound in (Case(9, 3, "relu6", injected="both", norm="inf").make(), Case(9, 3, "elu", power=0.5).make(), tied):
        state, g = torch.ones(3, 9, device=DEVICE), normal(3, 9, seed=4, dtype=torch.float32).to(DEVICE)
        found = fused.fused_adjoint(bound, state, g, tol=0.0, max_steps=2)
        close(found.u, (g + bound.linearize(state).vjp(g)).cpu(), 1e-5, 1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_cotangent_does_not_matter(size):
    case = Case(33, 3)
    bound, state, g = case.make(), case.start(), normal(3, 33, seed=3, dtype=torch.float32).to(DEVICE)
    plain = fused.fused_adjoint(bound, state, g, tol=1e-5, max_steps=60)
    scaled = fused.fused_adjoint(bound, state, size * g, tol=1e-5, max_steps=60)
    assert plain.steps.tolist() == scaled.steps.tolist() and int(plain.steps.min()) > 1
    close(scaled.u, size * plain.u.cpu().double(), 1e-5)


def test_adjoints_that_end_early():
    case = Case(5, 18)
    bound, state, g = case.make(), case.start(), normal(18, 5, seed=3, dtype=torch.float32).to(DEVICE)
    clean = fused.fused_adjoint(bound, state, g, tol=1e-5, max_steps=60)
    g[4], g[5, 1], g[9, 0] = 0.0, math.nan, math.inf
    state[13, 1] = math.nan
    found = fused.fused_adjoint(bound, state, g, tol=1e-5, max_steps=60)
    bad = [4, 5, 9, 13]
    assert found.steps[bad].tolist() == [1] * 4 and (found.u[4] == 0).all() and found.residual[4] == 0
    assert not found.residual[[5, 9, 13]].isfinite().any()
    others = [sample for sample in range(18) if sample not in bad]
    assert torch.equal(found.u[others], clean.u[others]) and torch.equal(found.steps[others], clean.steps[others])
    assert fused.fused_adjoint(bound, state, g, tol=0.0, max_steps=3).steps.max() == 3


def test_states_of_any_leading_shape():
    torch.manual_seed(0)
    layer = SubhomLinear(3, 6, device=DEVICE)
    bound, start = layer.bind(torch.randn(2, 4, 3, device=DEVICE)), torch.ones(2, 6, 4, device=DEVICE).transpose(1, 2)
    found = fused.fused_walk(bound, start, rate=0.9, metric="thompson", tol=1e-4, max_steps=80)
    assert found.image.shape == (2, 4, 6) and found.steps.shape == (8,) and (start == 1).all()
    assert not found.image.requires_grad
    close(found.image, bound(found.z).detach().cpu(), 1e-6)
    adjoint = fused.fused_adjoint(bound, found.image, torch.ones_like(start), tol=1e-5, max_steps=80)
    close(adjoint.u, (1 + bound.linearize(found.image).vjp(adjoint.u)).detach().cpu(), 1e-4)
    single = layer.bind(torch.randn(3, device=DEVICE))
    assert fused.fused_walk(single, single.start(), rate=0.9, metric="hilbert", tol=1e-4, max_steps=80).z.shape == (6,)
    free, nothing = Case(6, injected="none").make(), torch.ones(0, 6, device=DEVICE)
    assert fused.fused_walk(free, nothing, rate=0.9, metric="hilbert", tol=1, max_steps=1).steps.shape == (0,)


def test_maps_that_the_kernels_do_not_take():
    taken = Case(3).make()
    conv = SubhomConv2d(1, 1, 3, device=DEVICE).bind(torch.ones(1, 1, 4, 4, device=DEVICE)).detach()
    reasons = {
        "kind 'conv2d', not 'dense'": conv,
        "257 entries, more than 256": Case(257, 1).make(),
        "torch.float64, not torch.float32": taken.to(DEVICE, torch.float64),
        "'arctan' has no form": Case(3, name="arctan").make(),
        "another norm": Case(3, norm=2.5).make(),
        "need not be positive": replace(taken, positive=False),
    }
    assert fused.available(taken) == ""
    for reason, bound in reasons.items():
        assert reason in fused.available(bound)
        with pytest.raises(OptionError, match=reason):
            fused.fused_walk(bound, bound.start(), rate=0.5, metric="thompson", tol=1e-3, max_steps=5)
        with pytest.raises(OptionError, match=reason):
            fused.fused_adjoint(bound, bound.start(), bound.start(), tol=1e-3, max_steps=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 1.0},
        {"rate": -0.1},
        {"rate": math.nan},
        {"metric": "l2"},
        {"tol": -1.0},
        {"tol": math.nan},
        {"max_steps": 0},
    ],
)
def test_options_out_of_range(wrong):
    options = {"rate": 0.5, "metric": "thompson", "tol": 1e-3, "max_steps": 5} | wrong
    with pytest.raises(OptionError, match=next(iter(wrong))):
        fused.fused_walk(Case(3).make(), Case(3).start(), **options)


def test_states_that_are_none():
    bound, free = Case(3).make(), Case(3, injected="none").make()
    for f, z in ((bound, torch.ones(2, 3)), (free, torch.ones(2, 4)), (free, torch.ones(3).int())):
        with pytest.raises(ShapeError):
            fused.fused_walk(f, z.to(DEVICE), rate=0.5, metric="thompson", tol=1e-3, max_steps=5)
    with pytest.raises(ShapeError, match="g must have shape"):
        fused.fused_adjoint(free, torch.ones(2, 3, device=DEVICE), torch.ones(3, device=DEVICE), tol=1, max_steps=1)


@pytest.mark.parametrize("normalize", [None, "inf"])
def test_a_solver_uses_it_forward_and_backward(normalize):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = sd.SubhomLinear(5, 33, shift=0.1, normalize=normalize)
        x = torch.rand(6, 5)
    taken = []
    for key in ("subdeq:auto?fused=true", "subdeq:auto"):
        model = sd.SubDEQ(layer, f_solver=key, b_solver=key, f_tol=1e-5, b_tol=1e-5)
        z = model(x)
        gradient = torch.autograd.grad(z.square().sum(), list(layer.parameters()))
        assert model.stats.forward is not None and model.stats.forward.converged
        assert model.stats.backward is not None and model.stats.backward.converged
        assert bool((model.certify(x).error_bound(z.detach()) <= 1e-5 + 1e-5).all())
        taken.append((z.detach(), gradient))
    (one, first), (other, second) = taken
    torch.testing.assert_close(one, other, rtol=3e-5, atol=0)
    for mine, reference in zip(first, second, strict=True):
        assert float((mine - reference).norm()) <= 1e-4 * float(reference.norm())


def test_where_it_cannot_be_used_the_steps_are_torchs_own():
    layer, x = sd.SubhomLinear(5, 300, shift=0.1), torch.rand(6, 5)
    fused = sd.SubDEQ(layer, f_solver="subdeq:auto?fused=true")(x)
    assert torch.equal(fused, sd.SubDEQ(layer)(x))

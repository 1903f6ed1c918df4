"""Every forward solver with every backward solver in every core: one fixed point, one gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torchdeq import get_deq
from torchdeq.core import DEQIndexing
from torchdeq.loss import fp_correction, jac_reg
from torchdeq.norm import apply_norm, remove_norm, reset_norm

import subdeq_plugin as sd
from subdeq_plugin.errors import OptionError
from subdeq_plugin.result import Status
from tests.helpers import marked
from tests.problems import make_input, make_layer, normal, residuals, with_norm

OURS = tuple(sd.register())
THEIRS = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")
CORES = ("indexing", "sliced", "subdeq")


class Problem:
    """A contraction with parameters, its exact fixed point and gradient by unrolling."""

    def __init__(self) -> None:
        self.layer = make_layer("dense", 1, shift=0.5, injection_map="softplus")
        self.x = make_input("dense", 1)
        self.start = torch.ones(3, 5, dtype=torch.float64)
        self.weights = normal(3, 5, seed=2)
        self.parameters = list(self.layer.parameters())
        z = self.start
        for _ in range(120):
            z = self.layer(z, self.x)
        self.solution = z.detach()
        self.gradients = torch.autograd.grad((z * self.weights).sum(), self.parameters)

    def check(self, z: Tensor, atol: float = 1e-6) -> None:
        torch.testing.assert_close(z.detach(), self.solution, rtol=0, atol=atol)
        got = torch.autograd.grad((z * self.weights).sum(), self.parameters)
        for one, expected in zip(got, self.gradients, strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=20 * atol)


@pytest.fixture(scope="module")
def problem():
    return Problem()


def settings(core: str, f_solver: str, b_solver: str, **more) -> dict:
    common = {"f_tol": 1e-9, "b_tol": 1e-9, "f_max_iter": 60, "b_max_iter": 60, "f_stop_mode": "rel",
              "b_stop_mode": "rel"}  # fmt: skip
    extra = {"on_failure": "ignore"} if core == "subdeq" else {"ift": True}
    return {"core": core, "f_solver": f_solver, "b_solver": b_solver, **common, **extra, **more}


PAIRS = [pair for pair in itertools.product(OURS + THEIRS, OURS + THEIRS) if set(pair) & set(OURS)]


# torchdeq's own implicit gradient calls its backward solver on a function without the keyword `tau`, which
# "simple_fixed_point_iter" needs; our core provides it.
COMBINATIONS = [
    (core, *pair) for core, pair in itertools.product(CORES, PAIRS) if core == "subdeq" or pair[1] != THEIRS[-1]
]


@pytest.mark.parametrize(("core", "f_solver", "b_solver"), marked(COMBINATIONS))
def test_one_fixed_point_and_one_gradient(core, f_solver, b_solver, problem):
    deq = get_deq(**settings(core, f_solver, b_solver))
    out, info = deq(lambda z: problem.layer(z, problem.x), problem.start)
    # torchdeq's Anderson regularises by an absolute 1e-4, which costs accuracy.
    problem.check(out[-1], 1e-5 if "anderson" in (f_solver, b_solver) else 1e-6)
    assert info["abs_lowest"].shape == (3,)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("f_solver", marked(OURS))
def test_a_bound_map_is_recognised_in_every_core(core, f_solver, problem):
    out, info = get_deq(**settings(core, f_solver, "subdeq:auto"))(problem.layer.bind(problem.x), problem.start)
    problem.check(out[-1])
    assert info["status"].tolist() == [0, 0, 0]
    if f_solver == "subdeq:auto":
        assert info["abs_trace"].shape[1] < info["evaluations"], "the certificate was used"


@pytest.mark.parametrize("solver", marked(OURS))
def test_the_hook_variant_of_implicit_differentiation(solver, problem):
    deq = get_deq(**settings("indexing", solver, solver, hook_ift=True))
    out, _ = deq(lambda z: problem.layer(z, problem.x), problem.start)
    problem.check(out[-1])


@pytest.mark.parametrize("core", ["indexing", "sliced"])
@pytest.mark.parametrize("solver", marked(OURS))
@pytest.mark.parametrize("sampling", [{"n_states": 3}, {"n_states": 7}, {"indexing": [1]}, {"indexing": [4, 9, 20]}])
@pytest.mark.parametrize("bound", [False, True])
def test_several_states_and_the_last_one_has_the_implicit_gradient(core, solver, sampling, bound, problem):
    deq = get_deq(**settings(core, solver, solver, **sampling, f_max_iter=120))
    function = problem.layer.bind(problem.x) if bound else (lambda z: problem.layer(z, problem.x))
    out, _ = deq(function, problem.start)
    assert len(out) == sampling.get("n_states", len(sampling.get("indexing", ())) + 1)
    problem.check(out[-1])
    for state in out:
        assert state.requires_grad and state.shape == (3, 5)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("solver", marked(OURS))
def test_evaluation_mode_gives_the_fixed_point(core, solver, problem):
    deq = get_deq(**settings(core, solver, solver)).eval()
    out, info = deq(lambda z: problem.layer(z, problem.x), problem.start, sradius_mode=True)
    torch.testing.assert_close(out[-1].detach(), problem.solution, rtol=0, atol=1e-7)
    jacobian = torch.autograd.functional.jacobian(lambda z: problem.layer(z[None], problem.x[:1])[0],
                                                  problem.solution[0])  # fmt: skip
    radius = float(torch.linalg.eigvals(jacobian).abs().max())
    assert abs(float(info["sradius"][0]) - radius) < 1e-3


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("solver", [*marked(OURS), "fixed_point_iter"])
def test_a_list_of_tensors_is_one_state(core, solver):
    a = with_norm(normal(6, 6, seed=3), 0.6).requires_grad_()
    x = normal(2, 6, seed=4)

    def function(u: Tensor, v: Tensor) -> list[Tensor]:
        both = torch.tanh(torch.cat([u.flatten(1), v], dim=1) @ a.T + x)
        return [both[:, :4].reshape(u.shape), both[:, 4:]]

    start = [torch.zeros(2, 2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)]
    state = start
    for _ in range(150):
        state = function(*state)
    (expected,) = torch.autograd.grad(sum(part.square().sum() for part in state), a)
    out, info = get_deq(**settings(core, solver, solver, f_max_iter=200, b_max_iter=200))(function, start)
    assert [part.shape for part in out[-1]] == [(2, 2, 2), (2, 2)]
    for got, part in zip(out[-1], state, strict=True):
        torch.testing.assert_close(got, part, rtol=0, atol=1e-7)
    (got,) = torch.autograd.grad(sum(part.square().sum() for part in out[-1]), a)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert info["abs_lowest"].shape == (2,)


@pytest.mark.parametrize("solver", marked(OURS))
def test_a_foreign_state_list_without_statistics_is_refused_clearly(solver):
    deq = DEQIndexing(f_solver=solver, no_stat=True, ift=True)
    with pytest.raises(sd.SubdeqError, match=r"z0 must be a torch\.Tensor, got list"):
        deq(lambda u, v: [u.cos(), v.cos()], [torch.zeros(2, 3), torch.zeros(2, 1)])


@pytest.mark.parametrize("core", ["indexing", "sliced"])
def test_unknown_solver_options_are_refused_in_torchdeqs_cores(core):
    deq = get_deq(core=core, f_solver="subdeq:anderson")
    with pytest.raises(OptionError, match="did you mean 'memory'"):
        deq(torch.cos, torch.zeros(2, 3), solver_kwargs={"memori": 3})
    out, info = deq(torch.cos, torch.zeros(2, 3), solver_kwargs={"memory": 2, "f_max_iter": 30})
    assert info["evaluations"] <= 30 and float(residuals(torch.cos, out[-1])[0].max()) < 1e-2


def test_the_status_reaches_the_caller_through_torchdeqs_cores():
    start = torch.tensor([[1.0, 1.0], [torch.nan, 1.0]])
    _, info = get_deq(core="indexing", f_solver="subdeq:anderson", f_tol=1e-4)(torch.cos, start)
    assert info["status"].tolist() == [Status.CONVERGED, Status.NONFINITE]


# torchdeq's losses and norms


@pytest.mark.parametrize("solver", marked(OURS))
def test_fixed_point_correction(solver, problem):
    deq = get_deq(**settings("indexing", solver, solver, n_states=3))
    out, _ = deq(lambda z: problem.layer(z, problem.x), problem.start)
    target = torch.zeros_like(problem.start)
    loss = fp_correction(lambda z, t: (z - t).square().mean(), (out, target), gamma=0.5)
    expected = sum(0.5 ** (2 - k) * float(state.detach().square().mean()) for k, state in enumerate(out))
    assert abs(float(loss.detach()) - expected) < 1e-12
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss, problem.parameters))


@pytest.mark.parametrize("core", CORES)
def test_jacobian_regularisation(core, problem):
    out, _ = get_deq(**settings(core, "subdeq:auto", "subdeq:gmres"))(problem.layer.bind(problem.x), problem.start)
    z = out[-1].detach().requires_grad_()
    torch.manual_seed(0)
    loss = jac_reg(problem.layer(z, problem.x), z, vecs=400)
    rows = [
        torch.autograd.functional.jacobian(lambda s, x=x: problem.layer(s[None], x[None])[0], row)
        for row, x in zip(z.detach(), problem.x, strict=True)
    ]
    exact = sum(float(row.square().sum()) for row in rows) / z.numel()
    assert abs(float(loss.detach()) - exact) < 0.2 * exact
    gradients = torch.autograd.grad(loss, problem.parameters, allow_unused=True)
    found = [g for g in gradients if g is not None]
    assert found and all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in found)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.input = nn.Linear(6, 6), nn.Linear(3, 6)
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        mixed = self.conv(self.state(z)[:, None])[:, 0]
        return torch.tanh(0.2 * mixed + self.input(x)) + 0.1


@pytest.mark.parametrize("how", ["abs", "softplus", "square", "exp"])
def test_nonneg_makes_weights_nonnegative_and_keeps_them_so(how):
    torch.manual_seed(0)
    cell = Cell()
    before = cell.state.weight.detach().clone()
    apply_norm(cell, "nonneg", how=how, filter_out="input")
    torch.testing.assert_close(cell.state.weight, before.abs(), rtol=1e-4, atol=1e-6)
    assert bool((cell.input.weight < 0).any())
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.5)
    x = torch.randn(4, 3)
    for _ in range(4):
        reset_norm(cell)
        deq = get_deq(f_solver="subdeq:anderson", b_solver="subdeq:gmres", ift=True)
        out, _ = deq(lambda z: cell(z, x), torch.zeros(4, 6))
        optimizer.zero_grad()
        out[-1].square().sum().backward()
        optimizer.step()
        assert bool((cell.state.weight >= 0).all()) and bool((cell.conv.weight >= 0).all())
    present = cell.state.weight.detach().clone()
    assert not torch.equal(present, before.abs())
    remove_norm(cell)
    assert type(cell.state) is nn.Linear and isinstance(cell.state.weight, nn.Parameter)
    assert torch.equal(cell.state.weight, present)
    assert set(cell.state_dict()) == set(Cell().state_dict())


def test_nonneg_refuses_unknown_keywords_and_parametrizations():
    with pytest.raises(OptionError, match="unknown keyword of norm type 'nonneg' 'howw'; did you mean 'how'"):
        apply_norm(Cell(), "nonneg", howw="abs")
    with pytest.raises(OptionError, match="did you mean 'softplus'"):
        apply_norm(Cell(), "nonneg", how="softpluss")


def test_nonneg_stands_beside_torchdeqs_norms():
    torch.manual_seed(1)
    cell = Cell()
    apply_norm(cell, "nonneg", prefix_filter_out=["input", "conv"])
    apply_norm(cell, "weight_norm", filter_out=["state"])
    reset_norm(cell)
    assert bool((cell.state.weight >= 0).all()) and "input.weight_v" in cell.state_dict()
    z = cell(torch.zeros(2, 6), torch.randn(2, 3))
    z.sum().backward()
    remove_norm(cell)
    assert set(cell.state_dict()) == set(Cell().state_dict())

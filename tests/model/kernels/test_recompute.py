"""What a block keeps for the backward pass in each mode, and what it computes again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.kernels.matmul import compute_dtype
from model.kernels.recompute import MODES, Block, forget, set_mode
from tests.refusals import refused


class Counted:
    """x -> x^2, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.square()


class SquareBlock(Block):
    """sum(weight * x^2), where x^2 is what the block may recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 13).view(3, 4))
        self.square, self.runs = Counted(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        with self.recomputed(self.square, x) as y:
            return (self.weight * y).sum()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 4, requires_grad=True)


@pytest.mark.parametrize(("mode", "squares", "runs"), [("none", 1, 1), ("selective", 2, 1), ("full", 2, 2)])
def test_each_mode_computes_again_what_it_says_and_gives_the_same_gradients(
    x: Tensor, mode: str, squares: int, runs: int
) -> None:
    block = SquareBlock()
    set_mode(block, mode)
    block.run(x).backward()
    assert (block.square.calls, block.runs) == (squares, runs)
    torch.testing.assert_close(x.grad, 2 * x.detach() * block.weight.detach())
    torch.testing.assert_close(block.weight.grad, x.detach().square())


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_nothing_is_computed_again(x: Tensor, mode: str) -> None:
    block = SquareBlock()
    set_mode(block, mode)
    with torch.no_grad():
        assert not block.run(x).requires_grad
    assert (block.square.calls, block.runs) == (1, 1)


@pytest.mark.parametrize("view", [lambda y: y, lambda y: y.view(12), lambda y: y.t(), lambda y: y.unflatten(1, (2, 2))])
def test_any_view_of_all_of_an_output_is_forgotten_and_comes_back_in_its_shape(
    x: Tensor, view: Callable[[Tensor], Tensor]
) -> None:
    square = Counted()
    y = square(x)
    factor = torch.randn(view(y).shape, requires_grad=True)
    with forget(y, square, x):
        total = (view(y) * factor).sum()
    assert square.calls == 1
    total.backward()
    assert square.calls == 2
    torch.testing.assert_close(factor.grad, view(x.detach().square()))


@pytest.mark.parametrize("forward", [True, False])
def test_an_output_comes_back_in_its_type_whether_the_backward_pass_is_in_autocast_or_not(
    x: Tensor, forward: bool
) -> None:
    def rounded(x: Tensor) -> Tensor:
        return x.to(compute_dtype(x)) + 1

    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        y = rounded(x)
        factor = torch.randn(3, 4, dtype=y.dtype, requires_grad=True)
        with forget(y, rounded, x):
            total = (y * factor).float().sum()
    with torch.autocast("cpu", torch.bfloat16, enabled=not forward):
        total.backward()
    assert torch.equal(factor.grad, x.detach().to(torch.bfloat16 if forward else torch.float32) + 1)  # type: ignore[arg-type]


def test_other_tensors_and_parts_of_an_output_are_saved_as_they_are(x: Tensor) -> None:
    square, weight = Counted(), torch.randn(4, 2, requires_grad=True)
    y = square(x)
    with forget(y, square, x):
        total = y[1:].sin().sum() + (x @ weight).sum()
    total.backward()
    assert square.calls == 1
    torch.testing.assert_close(weight.grad, x.detach().sum(0)[:, None].expand(4, 2))
    expected = weight.detach().sum(1).repeat(3, 1)
    expected[1:] += x.detach()[1:].square().cos() * 2 * x.detach()[1:]
    torch.testing.assert_close(x.grad, expected)


def test_a_model_has_the_mode_in_all_its_blocks_and_in_nothing_else() -> None:
    model = nn.ModuleDict({"one": SquareBlock(), "more": nn.ModuleList([SquareBlock(), nn.Linear(1, 1)])})
    set_mode(model, "full")
    assert [module.mode for module in model.modules() if isinstance(module, Block)] == ["full"] * 2
    assert SquareBlock().mode == "none"
    assert not hasattr(model["more"][1], "mode")  # type: ignore[index]


def test_an_unknown_mode_is_refused_and_changes_nothing() -> None:
    block = SquareBlock()
    with refused("unknown-name", "'some'", ", ".join(MODES)):
        set_mode(block, "some")
    assert block.mode == "none"

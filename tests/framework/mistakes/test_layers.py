"""Inputs that do not fit the model, and a model that does not fit the loop, are told with the layer's name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import DeviceError, Trainer, UsageError
from framework.testing import tiny_data

COLUMN = torch.rand(5, 3), torch.rand(5, 1)


class Net(nn.Module):
    """Gives whatever `made` makes of the model and its input."""

    def __init__(self, made: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.made, self.layer = made, nn.Linear(3, 1)

    def forward(self, images: Any) -> Any:
        return self.made(self, images)


def test_inputs_of_another_precision_are_named(refused: Callable[..., str]) -> None:
    message = refused(nn.Linear(3, 1), nn.MSELoss(), (torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 1)))
    for part in ("x is float64", "float32", "x.float()"):
        assert part in message


def test_whole_numbers_as_inputs_are_named(refused: Callable[..., str]) -> None:
    assert "x is int64" in refused(
        nn.Linear(3, 1), nn.MSELoss(), (torch.ones(5, 3, dtype=torch.int64), torch.rand(5, 1))
    )


def test_images_of_another_kind_of_number_are_named(refused: Callable[..., str]) -> None:
    images = torch.ones(4, 1, 8, 8, dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 1))
    message = refused(model, nn.MSELoss(), (images, torch.rand(4, 1)))
    assert "x is uint8" in message
    assert "x.float()" in message


def test_an_input_that_does_not_fit_a_layer_is_told_with_the_layer(refused: Callable[..., str]) -> None:
    message = refused(nn.Linear(4, 1), nn.MSELoss(), COLUMN)
    for part in ("Linear(4, 1)", "takes 4 numbers a sample", "(5, 3)"):
        assert part in message


def test_an_inner_layer_that_does_not_fit_is_told_by_its_name(refused: Callable[..., str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 1)))
    message = refused(model, nn.MSELoss(), COLUMN)
    for part in ("'1.1'", "Linear(5, 1)", "(5, 4)"):
        assert part in message


def test_images_that_were_not_flattened_are_told(refused: Callable[..., str]) -> None:
    message = refused(nn.Linear(784, 10), nn.CrossEntropyLoss(), (torch.rand(2, 1, 28, 28), torch.tensor([1, 2])))
    for part in ("Linear(784, 10)", "(2, 1, 28, 28)", "nn.Flatten()"):
        assert part in message


def test_a_batch_of_one_sample_for_batch_normalization_is_told(refused: Callable[..., str]) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    assert "drop_last=True" in refused(model, nn.MSELoss(), tiny_data(1))


def test_a_model_without_anything_to_train_is_told(refused: Callable[..., str]) -> None:
    assert "no parameter to train" in refused(nn.Linear(3, 1).requires_grad_(False), nn.MSELoss(), COLUMN)


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda output: torch.tensor(output.tolist())])
def test_a_loss_that_does_not_depend_on_the_model_is_told(refused: Callable[..., str], cut: Any) -> None:
    message = refused(nn.Linear(3, 1), lambda output, y: F.mse_loss(cut(output), y), COLUMN)
    assert "does not depend on any parameter" in message


def test_a_batch_on_another_device_than_the_model_is_told_with_both(refused: Callable[..., str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    away = SimpleNamespace(name="away", on_fit_start=lambda trainer: trainer.model[1].to("meta"))
    message = refused(model, nn.MSELoss(), COLUMN, DeviceError, plugins=[away])
    for part in ("'0.weight'", "cpu", "'1.weight'", "meta", "same device"):
        assert part in message


def test_data_that_cannot_be_moved_to_the_device_is_told_with_its_name(refused: Callable[..., str]) -> None:
    for size in (None, 2):
        data = torch.rand(5, 3), torch.rand(5, 1, device="meta")
        message = refused(nn.Linear(3, 1), nn.MSELoss(), data, DeviceError, batch_size=size)
        assert "y is on meta" in message


def test_an_output_on_another_device_than_the_target_is_told(refused: Callable[..., str]) -> None:
    class Sends:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch[0]).to("meta")

    message = refused(nn.Linear(3, 1), nn.MSELoss(), COLUMN, DeviceError, plugins=[Sends()])
    assert "the output is on meta" in message


def test_a_model_without_data_is_told_to_be_on_meta(refused: Callable[..., str]) -> None:
    told = refused(nn.Linear(3, 1, device="meta"), nn.MSELoss(), COLUMN, kind=UsageError)
    assert told == ("the model (parameter 'weight') is on meta, which holds no data: build the model on a real device")


def test_an_object_that_knows_how_to_move_is_moved_by_its_own_way() -> None:
    from framework.device import move

    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 2), torch.rand(1, 2)])
    moved = move((packed, torch.rand(2)), torch.device("meta"))
    assert moved[0].data.device.type == moved[1].device.type == "meta"
    assert moved[0].batch_sizes.device.type == "cpu"


@pytest.mark.parametrize(
    ("layers", "x", "said"),
    [
        ((nn.Conv2d(1, 2, 3), nn.Flatten()), (5, 3, 8, 8), ("'0' is Conv2d(1, 2", "(5, 3, 8, 8)", "have 1 channels")),
        ((nn.Conv2d(3, 2, 3), nn.Flatten()), (5, 8, 8, 3), ("'0' is Conv2d(3, 2", "(5, 8, 8, 3)", "have 3 channels")),
        ((nn.Conv2d(1, 2, 3), nn.Flatten()), (5, 64), ("'0' is Conv2d(1, 2", "(5, 64)", "3D (unbatched) or 4D")),
        ((nn.Linear(3, 4), nn.BatchNorm1d(3)), (5, 3), ("'1' is BatchNorm1d(3", "(5, 4)")),
        ((nn.Linear(3, 4), nn.BatchNorm2d(4)), (5, 3), ("'1' is BatchNorm2d(4", "(5, 4)", "4D")),
        ((nn.Linear(3, 4), nn.LayerNorm(5)), (5, 3), ("'1' is LayerNorm((5,)", "(5, 4)")),
        ((nn.Embedding(4, 2),), (5, 3), ("'0' is Embedding(4, 2)", "float32 (5, 3)", "Long, Int")),
        ((nn.Linear(3, 4), nn.Unflatten(1, (3, 2))), (5, 3), ("Unflatten", "(5, 4)")),
    ],
)
def test_an_input_that_does_not_fit_another_layer_is_told_with_the_layer(
    refused: Callable[..., str], layers: tuple[nn.Module, ...], x: tuple[int, ...], said: tuple[str, ...]
) -> None:
    message = refused(nn.Sequential(*layers), nn.MSELoss(), (torch.rand(x), torch.rand(5, 1)))
    for part in said:
        assert part in message


def test_a_row_that_an_embedding_does_not_have_is_told(refused: Callable[..., str]) -> None:
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 1))
    said = refused(model, nn.MSELoss(), (torch.tensor([[0, 1, 7]] * 5), torch.rand(5, 1)))
    assert "'0' is Embedding(4, 2), and was given int64 (5, 3) with rows from 0 to 7" in said


def test_a_view_of_a_wrong_size_in_the_user_s_own_forward_is_told(refused: Callable[..., str]) -> None:
    said = refused(Net(lambda net, images: images.view(-1, 4)), nn.MSELoss(), COLUMN)
    assert (
        said == "the layer 'Net' is Net, and was given float32 (5, 3): shape '[-1, 4]' is invalid for input of size 15"
    )


@pytest.mark.parametrize(
    ("x", "given"),
    [
        ([torch.rand(5, 3), torch.rand(5, 3)], "a list of 2 (Tensor, Tensor)"),
        ({"a": torch.rand(5, 3)}, "a dict of 'a'"),
    ],
)
def test_several_inputs_for_a_layer_that_takes_one_are_told(refused: Callable[..., str], x: Any, given: str) -> None:
    said = refused(nn.Linear(3, 1), nn.MSELoss(), (x, torch.rand(5, 1)))
    assert said.startswith(f"the layer 'Linear' takes one tensor, and was given {given}")


@pytest.mark.parametrize(
    ("made", "gives"),
    [
        (lambda net, x: None, "a NoneType"),
        (lambda net, x: (net.layer(x), x), "a tuple of 2 (Tensor, Tensor)"),
        (lambda net, x: {"logits": net.layer(x)}, "a dict of 'logits'"),
        (lambda net, x: net.layer(x).detach().numpy(), "a ndarray"),
    ],
)
def test_an_output_that_is_no_tensor_is_told(refused: Callable[..., str], made: Any, gives: str) -> None:
    said = refused(Net(made), nn.MSELoss(), COLUMN)
    assert said == f"the loss takes two tensors; the forward of the model returns {gives}, the target y is a Tensor"


def test_targets_that_are_text_are_told(refused: Callable[..., str]) -> None:
    samples = [(torch.rand(3), "cat"), (torch.rand(3), "dog")]
    said = refused(nn.Linear(3, 1), nn.MSELoss(), torch.utils.data.DataLoader(samples, batch_size=2))
    assert said.endswith("the target y is a tuple of 2 (str, str)")


def test_an_error_of_the_same_kind_in_the_user_s_own_code_is_left_alone(fit: Callable[..., Any]) -> None:
    def breaks(*_: Any) -> Any:
        return ().size

    pair = Net(lambda net, x: (net.layer(x), x))
    for model, loss in ((Net(breaks), nn.MSELoss()), (nn.Linear(3, 1), breaks), (pair, breaks)):
        with pytest.raises(AttributeError, match="'tuple' object has no attribute 'size'"):
            fit(model, loss, COLUMN)


def test_inputs_of_a_model_in_double_precision_are_told_what_fits(refused: Callable[..., str]) -> None:
    said = refused(nn.Linear(3, 1).double(), nn.MSELoss(), COLUMN)
    assert said == "x is float32, the parameters of the model are float64: use model.float() and x.float()"


def test_a_state_that_the_model_keeps_is_told(fit: Callable[..., Any]) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.state = nn.Linear(3, 1), torch.zeros(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state = self.layer(x).mean() + self.state.tanh()
            return self.layer(x) * self.state

    with pytest.raises(UsageError, match=r"a tensor of an earlier step .*detach\(\) it"):
        fit(Keeps(), nn.MSELoss(), COLUMN, epochs=3)


def test_a_tensor_that_was_changed_in_place_is_told(refused: Callable[..., str]) -> None:
    def made(net: Any, x: torch.Tensor) -> torch.Tensor:
        z = net.layer(x).exp()
        doubled = z * 2
        z += 1
        return doubled + z

    assert "was changed in place" in refused(Net(made), nn.MSELoss(), COLUMN)


def test_an_optimizer_that_needs_a_closure_is_told(fit: Callable[..., Any]) -> None:
    model = nn.Linear(3, 1)
    trainer = Trainer(model, nn.MSELoss(), torch.optim.LBFGS(model.parameters()), device="cpu")
    with pytest.raises(UsageError, match="needs a closure, which a plugin gives it"):
        trainer.fit(COLUMN)


def test_an_assertion_on_a_gpu_is_told_without_looking_at_a_tensor(refused: Callable[..., str]) -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    assert "device='cpu' names it" in refused(nn.Linear(3, 3), fails, (torch.rand(2, 3), torch.tensor([0, 9])))

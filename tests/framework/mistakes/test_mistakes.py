"""Common mistakes: each is an error in the user's own shapes and values; and what is no mistake is let through."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import DataError, DeviceError, Trainer, UsageError, hookimpl
from framework.mistakes import explain, nonfinite_in
from framework.testing import tiny_data


def fit(model: nn.Module, loss: Any, data: Any, **options: Any) -> Any:
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), options.pop("plugins", ()), "cpu")
    return trainer.fit(data, **options)


def refused(model: nn.Module, loss: Any, data: Any, kind: type[Exception] = DataError, **options: Any) -> str:
    """What a fit of these says; it must refuse them."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kind) as caught:
        fit(model, loss, data, **options)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.device.type == "cpu":
            assert torch.equal(value, before[name]), f"{name} was changed before the mistake was told"
    return str(caught.value)


# ----------------------------------------------------------------------------------------- shapes that would broadcast

COLUMN, ROW = (torch.rand(5, 3), torch.rand(5, 1)), (torch.rand(5, 3), torch.rand(5))


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((output - y) ** 2).mean()


ELEMENTWISE = {
    "MSELoss": nn.MSELoss(),
    "L1Loss": nn.L1Loss(),
    "SmoothL1Loss": nn.SmoothL1Loss(),
    "HuberLoss": nn.HuberLoss(),
    "BCEWithLogitsLoss": nn.BCEWithLogitsLoss(),
    "PoissonNLLLoss": nn.PoissonNLLLoss(),
    "KLDivLoss": nn.KLDivLoss(reduction="batchmean"),
    "SoftMarginLoss": nn.SoftMarginLoss(),
    "GaussianNLLLoss": lambda output, y: F.gaussian_nll_loss(output, y, torch.ones(5, 1)),
    "mse_loss": F.mse_loss,
    "mse_loss by keyword": lambda output, y: F.mse_loss(input=output, target=y),
    "mse_loss the other way": lambda output, y: F.mse_loss(y, output),
    "written": squared,
    "written the other way": lambda output, y: (y - output).abs().mean(),
    "written with a method": lambda output, y: output.sub(y).square().mean(),
    "written with a function": lambda output, y: torch.sub(output, y).square().mean(),
    "written by keyword": lambda output, y: torch.sub(input=output, other=y).square().mean(),
    "multiplied": lambda output, y: F.softplus(-output * y).mean(),
    "multiplied by a function": lambda output, y: F.softplus(-torch.multiply(output, y)).mean(),
    "divided": lambda output, y: (output / (y + 1) - 1).abs().mean(),
    "after a sigmoid": lambda output, y: (torch.sigmoid(output) - y).square().mean(),
    "the larger": lambda output, y: torch.maximum(output, y).mean(),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_output_of_n_1_against_a_target_of_n_is_refused(name: str) -> None:
    message = refused(nn.Linear(3, 1), ELEMENTWISE[name], ROW)
    for part in ("(5, 1)", "(5,)", "(5, 5)", "y.reshape(-1, 1)", "output.squeeze(1)"):
        assert part in message


@pytest.mark.parametrize("name", ["MSELoss", "written"])
def test_an_output_of_n_against_a_target_of_n_1_is_refused(name: str) -> None:
    message = refused(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ELEMENTWISE[name], COLUMN)
    assert "(5,)" in message
    assert "(5, 1)" in message


def test_a_target_that_would_be_repeated_over_columns_is_refused_by_a_loss_of_elements() -> None:
    message = refused(nn.Linear(3, 2), nn.MSELoss(), COLUMN)
    assert "shape (5, 2)" in message
    assert "shape (5, 1)" in message


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_target_that_would_broadcast_is_refused_in_validation_too(batch_size: int | None) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(DataError, match=r"\(\d, 1\).*\(\d,\)"):
        fit(model, squared, COLUMN, val=ROW, batch_size=batch_size)
    trainer = Trainer(model, squared, torch.optim.SGD(model.parameters()), device="cpu")
    with pytest.raises(DataError, match=r"\(\d, 1\).*\(\d,\)"):
        trainer.evaluate(ROW, batch_size=batch_size)


def test_a_class_label_for_each_row_of_scores_is_no_mistake() -> None:
    y = torch.tensor([0, 1, 2, 1, 0])
    losses = {
        "cross_entropy": F.cross_entropy,
        "smooth": nn.CrossEntropyLoss(label_smoothing=0.1),
        "nll": lambda output, y: F.nll_loss(output.log_softmax(1), y),
        "margin": nn.MultiMarginLoss(),
        "indexed": lambda output, y: -output.log_softmax(1)[torch.arange(5), y].mean(),
        "gathered": lambda output, y: -output.log_softmax(1).gather(1, y.unsqueeze(1)).mean(),
        "one hot": lambda output, y: -(F.one_hot(y, 3) * output.log_softmax(1)).sum(1).mean(),
    }
    for loss in losses.values():
        assert fit(nn.Linear(3, 3), loss, (torch.rand(5, 3), y)).steps == 1


def test_a_target_that_is_repeated_without_growing_is_no_mistake_in_a_written_loss() -> None:
    quantiles = torch.tensor([0.1, 0.5, 0.9])

    def pinball(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        error = y - output
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()

    assert fit(nn.Linear(3, 3), pinball, COLUMN).steps == 1


def test_shapes_that_the_loss_itself_makes_equal_are_no_mistake() -> None:
    assert fit(nn.Linear(3, 1), lambda output, y: F.mse_loss(output.squeeze(1), y), ROW).steps == 1
    assert fit(nn.Linear(3, 1), lambda output, y: squared(output, y.unsqueeze(1)), ROW).steps == 1


def test_looking_at_the_first_batch_leaves_no_mode_behind() -> None:
    refused(nn.Linear(3, 1), nn.MSELoss(), ROW)
    assert squared(torch.ones(5, 1), torch.zeros(5)).item() == 1.0


# -------------------------------------------------------------------------------------------------------- class labels


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, y: F.nll_loss(o.log_softmax(1), y)])
@pytest.mark.parametrize(
    ("label", "hint"), [(3, "Labels count from 0."), (17, None), (-1, None)], ids=["one too many", "far", "negative"]
)
def test_a_class_label_out_of_range_is_named_with_its_row(loss: Any, label: int, hint: str | None) -> None:
    y = torch.tensor([0, 1, 2, label, 0])
    message = refused(nn.Linear(3, 3), loss, (torch.rand(5, 3), y), batch_size=2, shuffle=False, accumulate=9)
    assert f"label {label} in row 1 of this batch, but the model gives 3 classes (0..2)" in message
    assert ("Labels count from 0." in message) == (hint is not None)


def test_the_ignored_label_is_not_blamed() -> None:
    y = torch.tensor([0, 7, 5, 0, 1])
    message = refused(nn.Linear(3, 3), nn.CrossEntropyLoss(ignore_index=7), (torch.rand(5, 3), y))
    assert "label 5 in row 2" in message


def test_a_label_out_of_range_in_an_image_of_labels_is_named_with_its_sample() -> None:
    y = torch.zeros(4, 2, 2, dtype=torch.int64)
    y[2, 1, 1] = 9
    assert "label 9 in row 2" in refused(nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), (torch.rand(4, 1, 2, 2), y))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.zeros(5), ("float32", "(5,)", "y.long()")),
        (torch.zeros(5, 1), ("float32", "(5, 1)", "y.long().squeeze(1)")),
        (torch.zeros(5, 1, dtype=torch.int64), ("int64", "(5, 1)", "y.squeeze(1)")),
        (torch.zeros(5, dtype=torch.int32), ("int32", "(5,)", "y.long()")),
        (torch.zeros(5, dtype=torch.float64), ("float64", "(5,)", "y.long()")),
    ],
    ids=["float", "float column", "column", "int32", "double"],
)
def test_labels_of_the_wrong_kind_for_cross_entropy_are_named(y: torch.Tensor, said: tuple[str, ...]) -> None:
    message = refused(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(5, 3), y))
    for part in (*said, "class numbers", "int64"):
        assert part in message


def test_probabilities_of_classes_as_targets_are_no_mistake() -> None:
    assert fit(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(5, 3), torch.rand(5, 3).softmax(1))).steps == 1


# ---------------------------------------------------------------------------------------------- numbers of other kinds


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCELoss(), nn.BCEWithLogitsLoss(), squared])
def test_whole_numbers_as_targets_of_a_loss_of_numbers_are_told_or_trained_on(loss: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    data = torch.rand(5, 3), torch.ones(5, 1, dtype=torch.int64)
    try:
        assert fit(model, loss, data).steps == 1
    except DataError as error:
        assert "y is int64: use y.float()" in str(error)  # noqa: PT017


def test_inputs_of_another_precision_are_named() -> None:
    message = refused(nn.Linear(3, 1), nn.MSELoss(), (torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 1)))
    for part in ("x is float64", "float32", "x.float()"):
        assert part in message


def test_whole_numbers_as_inputs_are_named() -> None:
    assert "x is int64" in refused(
        nn.Linear(3, 1), nn.MSELoss(), (torch.ones(5, 3, dtype=torch.int64), torch.rand(5, 1))
    )


def test_images_of_another_kind_of_number_are_named() -> None:
    images = torch.ones(4, 1, 8, 8, dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 1))
    message = refused(model, nn.MSELoss(), (images, torch.rand(4, 1)))
    assert "x is uint8" in message
    assert "x.float()" in message


@pytest.mark.parametrize("targets", [False, True])
def test_numbers_that_are_no_probabilities_are_told_with_their_range(targets: bool) -> None:
    x, y = torch.rand(5, 3), torch.full((5, 1), 1.0)
    y[0] = 7.0 if targets else 0.0
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()) if targets else nn.Linear(3, 1)
    if not targets:
        nn.init.constant_(model.weight, 0.0)
        nn.init.constant_(model.bias, -2.5)
    message = refused(model, nn.BCELoss(), (x, y))
    if targets:
        assert "targets y reach from 1 to 7" in message
    else:
        assert "outputs of the model reach from -2.5 to -2.5" in message
        assert "sigmoid" in message


# --------------------------------------------------------------------------------------------------- layers and shapes


def test_an_input_that_does_not_fit_a_layer_is_told_with_the_layer() -> None:
    message = refused(nn.Linear(4, 1), nn.MSELoss(), COLUMN)
    for part in ("Linear(4, 1)", "takes 4 numbers a sample", "(5, 3)"):
        assert part in message


def test_an_inner_layer_that_does_not_fit_is_told_by_its_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 1)))
    message = refused(model, nn.MSELoss(), COLUMN)
    for part in ("'1.1'", "Linear(5, 1)", "(5, 4)"):
        assert part in message


def test_images_that_were_not_flattened_are_told() -> None:
    message = refused(nn.Linear(784, 10), nn.CrossEntropyLoss(), (torch.rand(2, 1, 28, 28), torch.tensor([1, 2])))
    for part in ("Linear(784, 10)", "(2, 1, 28, 28)", "nn.Flatten()"):
        assert part in message


def test_a_batch_of_one_sample_for_batch_normalization_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    assert "drop_last=True" in refused(model, nn.MSELoss(), tiny_data(1))


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (nn.MSELoss(reduction="none"), r"a tensor of shape \(5, 1\)"),
        (lambda output, y: squared(output, y).item(), "a float"),
        (lambda output, y: None, "a NoneType"),
        (lambda output, y: (squared(output, y), 1), "a tuple"),
    ],
)
def test_a_loss_that_is_not_one_number_is_told(loss: Any, got: str) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(DataError, match=f"the loss must be one number in a tensor, got {got}"):
        fit(model, loss, COLUMN)


def test_a_loss_of_one_number_in_a_vector_trains() -> None:
    assert fit(nn.Linear(3, 1), lambda output, y: squared(output, y).reshape(1), COLUMN, val=COLUMN).steps == 1


def test_a_model_without_anything_to_train_is_told() -> None:
    assert "no parameter to train" in refused(nn.Linear(3, 1).requires_grad_(False), nn.MSELoss(), COLUMN)


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda output: torch.tensor(output.tolist())])
def test_a_loss_that_does_not_depend_on_the_model_is_told(cut: Any) -> None:
    message = refused(nn.Linear(3, 1), lambda output, y: F.mse_loss(cut(output), y), COLUMN)
    assert "does not depend on any parameter" in message


# --------------------------------------------------------------------------------------------------------- two devices


def test_a_batch_on_another_device_than_the_model_is_told_with_both() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    away = SimpleNamespace(name="away", on_fit_start=lambda trainer: trainer.model[1].to("meta"))
    message = refused(model, nn.MSELoss(), COLUMN, DeviceError, plugins=[away])
    for part in ("'0.weight'", "cpu", "'1.weight'", "meta", "same device"):
        assert part in message


def test_data_that_cannot_be_moved_to_the_device_is_told_with_its_name() -> None:
    for size in (None, 2):
        data = torch.rand(5, 3), torch.rand(5, 1, device="meta")
        message = refused(nn.Linear(3, 1), nn.MSELoss(), data, DeviceError, batch_size=size)
        assert "y is on meta" in message


def test_an_output_on_another_device_than_the_target_is_told() -> None:
    class Sends:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch[0]).to("meta")

    message = refused(nn.Linear(3, 1), nn.MSELoss(), COLUMN, DeviceError, plugins=[Sends()])
    assert "the output is on meta" in message


# -------------------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    "error",
    [ValueError("batch_size"), RuntimeError("device"), KeyError("x"), IndexError("Target 3 is out of bounds"),
     RuntimeError("expected scalar type"), ZeroDivisionError("size mismatch"), TypeError("1D target")],
)  # fmt: skip
def test_an_error_whose_cause_is_not_found_is_not_explained(error: Exception) -> None:
    x, y = torch.rand(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert explain(error, nn.Linear(3, 3), F.cross_entropy, (x, y), None) is None


@pytest.mark.parametrize("error", [DataError("mine"), KeyboardInterrupt(), SystemExit()])
def test_what_is_said_already_and_what_is_no_error_is_not_explained(error: BaseException) -> None:
    assert explain(error, nn.Linear(3, 3), F.cross_entropy, {"x": 1}, None) is None


def test_an_explanation_keeps_torch_s_error_as_its_cause() -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(UsageError) as caught:
        fit(model, nn.MSELoss(), COLUMN)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_without_a_batch_is_not_explained_with_one() -> None:
    for batch in (None, (), (torch.ones(1),), torch.ones(2), "batch"):
        assert explain(ValueError("1D target"), nn.Linear(1, 1), F.mse_loss, batch, torch.ones(2, 2)) is None


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.ones(3, 2), torch.ones(3)), ""),
        ((torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), torch.ones(2)), "x holds nan in row 1"),
        ((torch.ones(2), torch.tensor([1.0, float("-inf")])), "y holds inf in row 1"),
        (({"a": torch.ones(2), "b": [torch.tensor([float("inf")])]}, None), "x['b'][0] holds inf in row 0"),
        ((torch.ones(2, dtype=torch.int64), torch.tensor(float("nan"))), "y holds nan in row 0"),
        ((torch.zeros(0, 3), torch.zeros(0)), ""),
        (None, ""),
    ],
)
def test_a_number_that_is_not_finite_is_found_in_any_batch(batch: Any, said: str) -> None:
    found = nonfinite_in(batch)
    assert found == said or (said and found == f"the data is the cause: {said} of this batch")


def test_a_partial_of_a_loss_is_looked_at_too() -> None:
    assert "(5, 5)" in refused(nn.Linear(3, 1), functools.partial(F.mse_loss, reduction="mean"), ROW)


@pytest.mark.parametrize("hook", ["forward", "compute_loss", "backward", "on_batch_end"])
def test_a_mistake_is_explained_under_a_wrap_as_well(hook: str) -> None:
    wraps, space = SimpleNamespace(name="wraps"), {"hookimpl": hookimpl}
    exec(f"@hookimpl(wrapper=True)\ndef {hook}():\n    return (yield)", space)
    setattr(wraps, hook, space[hook])
    y = torch.tensor([0, 1, 2, 3, 0])
    assert "label 3 in row 3" in refused(nn.Linear(3, 3), F.cross_entropy, (torch.rand(5, 3), y), plugins=[wraps])
    assert "Linear(4, 3)" in refused(nn.Linear(4, 3), F.cross_entropy, (torch.rand(5, 3), y), plugins=[wraps])
    model = nn.Linear(3, 3).requires_grad_(False)
    data = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    assert "no parameter to train" in refused(model, F.cross_entropy, data, plugins=[wraps])


def test_a_dict_with_only_one_of_forward_and_compute_loss_replaced_is_told_as_such() -> None:
    class Forward:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch["x"])

    model = nn.Linear(3, 1)
    rows = [{"x": torch.rand(3), "y": torch.rand(1)} for _ in range(4)]
    told = refused(model, nn.MSELoss(), rows_of(rows), plugins=[Forward()], batch_size=2)
    assert told.startswith("a batch must be a pair (x, y), this one is 2 parts: batch['x'] (2, 3) float32 on cpu")
    assert "a plugin with forward and compute_loss can take others" in told


def rows_of(rows: list[Any]) -> torch.utils.data.Dataset[Any]:
    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    return Rows()


def test_what_is_computed_from_one_side_alone_is_no_mistake() -> None:
    """A pairwise ranking loss broadcasts outputs against outputs and targets against targets."""

    def ranking(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((output - output.T) * (y[:, None] - y)).mean()

    torch.manual_seed(0)
    assert fit(nn.Linear(3, 1), ranking, ROW).steps == 1


def test_the_two_sides_are_followed_through_a_hand_written_loss() -> None:
    def hidden(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (output.clamp(min=0) - y.float()).pow(2).mean()

    assert "they would be broadcast to (5, 5)" in refused(nn.Linear(3, 1), hidden, ROW)


def test_the_loss_of_a_plugin_is_looked_at_as_well() -> None:
    class Own:
        def compute_loss(self, trainer: Trainer, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return trainer.loss(output, batch[1])

    assert "they would be broadcast to (5, 5)" in refused(nn.Linear(3, 1), nn.MSELoss(), ROW, plugins=[Own()])
    told = refused(nn.Linear(3, 1), nn.MSELoss(reduction="none"), COLUMN, plugins=[Own()])
    assert told.startswith("the loss must be one number in a tensor, got a tensor of shape (5, 1)")


def test_a_model_without_data_is_told_to_be_on_meta() -> None:
    told = refused(nn.Linear(3, 1, device="meta"), nn.MSELoss(), COLUMN, kind=UsageError)
    assert told == ("the model (parameter 'weight') is on meta, which holds no data: build the model on a real device")


def test_an_error_in_the_data_set_is_not_explained_with_the_batch_before() -> None:
    class Breaks(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise RuntimeError("my own words: does not require grad")
            return torch.rand(3), torch.rand(1)

    with pytest.raises(RuntimeError, match="my own words") as caught:
        fit(nn.Linear(3, 1), nn.MSELoss(), Breaks(), batch_size=2, shuffle=False)
    assert not any("batch:" in note for note in getattr(caught.value, "__notes__", []))


def test_an_object_that_knows_how_to_move_is_moved_by_its_own_way() -> None:
    from framework.device import move

    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 2), torch.rand(1, 2)])
    moved = move((packed, torch.rand(2)), torch.device("meta"))
    assert moved[0].data.device.type == moved[1].device.type == "meta"
    assert moved[0].batch_sizes.device.type == "cpu"


def test_a_fit_inside_a_fit_is_refused() -> None:
    class Again:
        def on_epoch_start(self, trainer: Trainer) -> None:
            trainer.fit(COLUMN)

    assert "another one cannot begin inside it" in refused(
        nn.Linear(3, 1), nn.MSELoss(), COLUMN, kind=UsageError, plugins=[Again()]
    )


def test_workers_beside_a_data_loader_are_refused() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*COLUMN))
    told = refused(nn.Linear(3, 1), nn.MSELoss(), loader, kind=UsageError, num_workers=2)
    assert told == "the data is a DataLoader, which has its own batches: leave out num_workers=2"

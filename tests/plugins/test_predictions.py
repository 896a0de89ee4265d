"""predict on image files: each brought to what the model was trained on, and named by its classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from framework import rebuild
from framework.cli import main

QUICK = ("-p", "no:plot", "-p", "no:progress", "-q")
RUN = "runs/lab/001"

HEAD = """import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split
from torchvision import datasets, transforms
from framework import Recipe

class Model(nn.Sequential):
    def forward(self, x):
        x = x["ids"] if isinstance(x, dict) else x
        return super().forward(x / 255 if x.dtype == torch.uint8 else x)

def made(train, size, loss=None, classes=3, **settings):
    model = Model(nn.Flatten(), nn.Linear(size, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Recipe(model=model, loss=loss or nn.CrossEntropyLoss(), optimizer=optimizer, train=train, **settings)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "그림 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def lab() -> Callable[[str], None]:
    """Runs a recipe of which the return value is given."""

    def train(returned: str, before: str = "") -> None:
        lines = f"{before}\ndef recipe():\n    return {returned}\n"
        Path("lab.py").write_text(HEAD + lines, encoding="utf-8")
        assert main(["lab.py", *QUICK]) == 0

    return train


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that predict prints, without that of the weights."""

    def run(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(["predict", RUN, *words]) == 0, capsys.readouterr().err
        first, *others = capsys.readouterr().out.splitlines()
        assert first.startswith("weights   ")
        return others

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["predict", RUN, *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        return err

    return run


def said(x: Tensor, names: list[str], top: int = 3) -> str:
    """What is to be printed behind the name of a file, computed by hand."""
    made, _, _ = rebuild(Path(RUN))
    probabilities = F.softmax(made.model.eval()(x.unsqueeze(0)), dim=1)[0].tolist()
    order = sorted(range(len(names)), key=lambda index: -probabilities[index])[:top]
    return ", ".join(f"{names[index]} ({probabilities[index]:.4f})" for index in order)


def pixels(height: int, width: int, channels: int = 1, low: int = 0, high: int = 256) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------- real images


def test_a_picture_of_a_digit_is_told_by_its_class_and_its_probabilities(predict, monkeypatch) -> None:
    assert main(["digits", "--epochs", "5", *QUICK, "-p", "no:confusion_matrix", "-p", "no:top_losses"]) == 0
    monkeypatch.setitem(globals(), "RUN", "runs/digits/001")
    made, _, _ = rebuild(Path(RUN))
    x, y = made.test.tensors
    Image.fromarray((x[0].reshape(8, 8) * 255).round().byte().numpy()).save("digit.png")
    (line,) = predict("digit.png")
    seen = (x[0] * 255).round() / 255
    assert line == f"digit.png -> {said(seen, [str(digit) for digit in range(10)])}"
    assert re.fullmatch(r"digit\.png -> \d \(0\.\d{4}\), \d \(0\.\d{4}\), \d \(0\.\d{4}\)", line)
    assert line.startswith(f"digit.png -> {int(y[0])} ")
    larger = Image.open("digit.png").resize((80, 80), Image.Resampling.NEAREST)  # its tenth is the same again
    larger.save("large digit.png")
    (large,) = predict("large digit.png", "--top", "1")
    assert large.startswith(f"large digit.png -> {int(y[0])} (")
    assert large.count("(") == 1


def test_images_of_mnist_go_through_the_transform_of_its_data_set(mnist, lab, predict) -> None:
    transform = "transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])"
    known = f"datasets.MNIST({str(mnist)!r}, train=True, transform={transform})"
    lab(f"made(Subset({known}, range(2000)), 784, classes=10, epochs=2, batch_size=50)")
    from torchvision.datasets import MNIST
    from torchvision.transforms.functional import to_tensor

    test = MNIST(mnist, train=False)
    right = 0
    for index in range(10):
        test[index][0].save(f"{index}.png")
    lines = predict("*.png")
    for index, line in enumerate(lines):
        image, label = test[index]
        x = (to_tensor(image) - 0.1307) / 0.3081
        assert line == f"{index}.png -> {said(x, MNIST.classes)}"
        right += line.startswith(f"{index}.png -> {MNIST.classes[label]} (")
    assert len(lines) == 10
    assert right >= 8


def test_dark_strokes_on_white_paper_get_a_hint_and_inverted_they_get_none(mnist, lab, predict) -> None:
    lab(f"made(Subset(datasets.MNIST({str(mnist)!r}, transform=transforms.ToTensor()), range(200)), 784, classes=10)")
    from torchvision.datasets import MNIST

    image, _ = MNIST(mnist, train=False)[0]
    image.save("as trained.png")
    Image.eval(image, lambda value: 255 - value).save("on paper.png")
    plain, paper, hint = predict("as trained.png", "on paper.png")
    assert hint == (
        "hint      1 of 2 images look inverted beside the training images, such as on paper.png: try --invert"
    )
    (inverted,) = predict("on paper.png", "--invert")
    assert inverted.partition("->")[2] == plain.partition("->")[2] != paper.partition("->")[2]
    _, hint = predict("as trained.png", "--invert")
    assert hint.endswith("such as as trained.png: leave out --invert")


# ------------------------------------------------------------------------------------------------ what it is brought to


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ("1, 9, 12", "RGB"), ("3, 9, 12", "RGB"), ("3, 9, 12", "L"), ("9, 12", "L"), ("81", "L"), ("243", "RGB"),
        ("3, 9, 12", "CMYK"), ("1, 9, 12", "1"), ("3, 9, 12", "P"),
    ],
)  # fmt: skip
def test_an_image_is_brought_to_the_channels_and_the_size_of_the_samples(lab, predict, shape, mode) -> None:
    size = int(np.prod([int(part) for part in shape.split(",")]))
    lab(f"made((torch.rand(6, {shape}), torch.arange(6) % 3), {size}, class_names=['a', 'b', 'c'])")
    image = Image.fromarray(pixels(18, 24, 3)).convert(mode)
    image.save("image.tiff")
    height, width = (9, 12) if "," in shape else (9, 9)
    grey = shape.startswith(("1,", "9,", "81"))
    seen = image.convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(seen, dtype=np.float32) / 255
    x = torch.from_numpy(array if grey else array.transpose(2, 0, 1).copy())
    assert predict("image.tiff") == [f"image.tiff -> {said(x.flatten(), ['a', 'b', 'c'])}"]


def test_resizing_looks_at_every_pixel(lab, predict) -> None:
    lab("made((torch.rand(6, 1, 8, 8), torch.arange(6) % 3), 64)")
    fine = np.zeros((80, 80), dtype=np.uint8)
    fine[:, ::2] = 255  # without smoothing, all or none of the columns would be seen
    Image.fromarray(fine).save("fine.png")
    made, _, _ = rebuild(Path(RUN))
    (line,) = predict("fine.png")
    grey = F.softmax(made.model(torch.full((1, 1, 8, 8), 0.5)), dim=1)[0].tolist()
    shown = {int(index): float(value) for index, value in re.findall(r"class (\d) \((\S+)\)", line)}
    for index in range(3):
        assert shown[index] == pytest.approx(grey[index], abs=2e-3)


def test_samples_of_bytes_get_bytes(lab, predict) -> None:
    lab(
        "made((torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3), 64, loss=loss)",
        "def loss(output, y): return nn.functional.cross_entropy(output, y)\n",
    )
    Image.fromarray(pixels(8, 8)).save("a.png")
    made, _, _ = rebuild(Path(RUN))
    x = torch.from_numpy(pixels(8, 8)).reshape(1, 1, 8, 8)
    expected = [float(f"{value:.6g}") for value in made.model(x)[0].tolist()]
    assert predict("a.png") == [f"a.png -> {expected}"]


def test_what_lies_under_transparent_pixels_is_paper(lab, predict) -> None:
    lab("made((torch.rand(6, 1, 8, 8), torch.arange(6) % 3), 64)")
    drawn = np.zeros((8, 8, 4), dtype=np.uint8)  # black everywhere, and only a stroke of it can be seen
    drawn[2:4, :, 3] = 255
    Image.fromarray(drawn).save("drawn.png")
    on_paper = np.full((8, 8), 255, dtype=np.uint8)
    on_paper[2:4] = 0
    Image.fromarray(on_paper).save("paper.png")
    drawn_line, paper_line = predict("drawn.png", "paper.png")
    assert drawn_line.partition("->")[2] == paper_line.partition("->")[2]


def test_a_photograph_is_turned_as_it_says(lab, predict) -> None:
    lab("made((torch.rand(6, 1, 8, 8), torch.arange(6) % 3), 64)")
    upright = Image.fromarray(pixels(8, 8))
    upright.save("upright.png")
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    turned.save("turned.png", exif=exif)
    one, two = predict("upright.png", "turned.png")
    assert one.partition("->")[2] == two.partition("->")[2]


def test_an_image_folder_is_predicted_with_the_names_of_its_folders(lab, predict) -> None:
    for number, name in enumerate(("cat", "dog", "새")):
        Path("pictures", name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(pixels(20, 30, 3, high=80 * (number + 1))).save(f"pictures/{name}/{index}.png")
    resize = "transforms.Compose([transforms.Resize((12, 12)), transforms.ToTensor()])"
    lab(f"made(DataLoader(datasets.ImageFolder('pictures', {resize}), batch_size=2), 432)")
    lines = predict("pictures")
    assert [line.partition(" ->")[0] for line in lines] == [
        str(Path("pictures", name, f"{index}.png")) for name in ("cat", "dog", "새") for index in range(2)
    ]
    from torchvision.transforms import functional as V

    image = V.to_tensor(V.resize(Image.open("pictures/cat/0.png"), [12, 12]))
    assert lines[0].partition("-> ")[2] == said(image, ["cat", "dog", "새"])


def test_the_transform_of_the_validation_data_is_taken_before_that_of_the_training_data(lab, predict) -> None:
    fake = "datasets.FakeData(6, (3, 8, 8), 3, transform=transforms.Compose([transforms.ToTensor(), {}]))"
    augmented = fake.format("lambda x: 1 - x")
    lab(f"made(random_split({augmented}, [4, 2])[0], 192, val=Subset({fake.format('lambda x: x')}, [0, 1]))")
    Image.fromarray(pixels(8, 8, 3)).save("a.png")
    x = torch.from_numpy(pixels(8, 8, 3)).permute(2, 0, 1) / 255
    assert predict("a.png") == [f"a.png -> {said(x, ['class 0', 'class 1', 'class 2'])}"]


def test_transforms_of_a_wrapped_data_set_are_applied_from_the_inside_out(lab, predict) -> None:
    wrapper = (
        "class Doubled(Dataset):\n"
        "    def __init__(self, dataset): self.dataset, self.transform = dataset, lambda x: x * 2\n"
        "    def __len__(self): return len(self.dataset)\n"
        "    def __getitem__(self, index): return self.transform(self.dataset[index][0]), self.dataset[index][1]\n"
    )
    lab("made(Doubled(datasets.FakeData(4, (3, 8, 8), 3, transform=transforms.ToTensor())), 192)", wrapper)
    Image.fromarray(pixels(8, 8, 3)).save("a.png")
    x = torch.from_numpy(pixels(8, 8, 3)).permute(2, 0, 1) / 255 * 2
    assert predict("a.png") == [f"a.png -> {said(x, ['class 0', 'class 1', 'class 2'])}"]


def test_values_that_the_training_images_do_not_have_get_a_hint(lab, predict) -> None:
    lab("made((torch.rand(6, 1, 8, 8) * 15.5, torch.arange(6) % 3), 64)")
    Image.fromarray(pixels(8, 8)).save("a.png")
    _, hint = predict("a.png")
    assert re.match(r"hint      the values of the training images go from 0\.\d+ to 15\.\d+, and those of files", hint)


# -------------------------------------------------------------------------------------------------------- what it says


def test_without_names_a_class_is_a_number_and_no_more_are_shown_than_there_are(lab, predict) -> None:
    lab("made((torch.rand(6, 2), torch.arange(6) % 2), 2, classes=2)")
    (line,) = predict("[0.5, 0.5]", "--top", "9")
    assert re.fullmatch(r"\[0\.5, 0\.5\] -> class [01] \(0\.\d{4}\), class [01] \(0\.\d{4}\)", line)


@pytest.mark.parametrize(
    ("loss", "probability"),
    [
        ("nn.BCEWithLogitsLoss()", torch.sigmoid), ("nn.functional.binary_cross_entropy_with_logits", torch.sigmoid),
        ("functools.partial(nn.functional.binary_cross_entropy_with_logits)", torch.sigmoid),
    ],
)  # fmt: skip
def test_one_number_of_a_binary_loss_is_the_probability_of_the_second_class(lab, predict, loss, probability) -> None:
    data = "(torch.rand(6, 2), (torch.arange(6) % 2).float().unsqueeze(1))"
    lab(f"made({data}, 2, classes=1, loss={loss}, class_names=['no', 'yes'])", "import functools")
    made, _, _ = rebuild(Path(RUN))
    yes = probability(made.model(torch.tensor([[0.5, 0.5]]))).item()
    shown = {name: float(value) for name, value in re.findall(r"(no|yes) \((\S+)\)", predict("[0.5, 0.5]")[0])}
    assert shown == pytest.approx({"yes": yes, "no": 1 - yes}, abs=6e-5)


def test_log_probabilities_are_shown_as_probabilities(lab, predict) -> None:
    lab(
        "made((torch.rand(6, 2), torch.arange(6) % 3), 2, loss=nn.NLLLoss())",
        "plain = made\ndef made(*a, **k):\n    it = plain(*a, **k)\n"
        "    it.model.append(nn.LogSoftmax(1))\n    return it\n",
    )
    values = [float(value) for value in re.findall(r"\((\S+)\)", predict("[0.5, 0.5]")[0])]
    assert sum(values) == pytest.approx(1, abs=2e-4)


def test_the_output_of_a_regression_on_images_stays_numbers(lab, predict) -> None:
    lab("made((torch.rand(6, 1, 8, 8), torch.rand(6, 2)), 64, classes=2, loss=nn.MSELoss())")
    Image.fromarray(pixels(8, 8)).save("a.png")
    assert re.fullmatch(r"a\.png -> \[-?\d\.\d+, -?\d\.\d+\]", predict("a.png")[0])


def test_numbers_and_files_can_be_given_together(lab, predict) -> None:
    lab("made((torch.rand(6, 64), torch.arange(6) % 3), 64)")
    Image.fromarray(pixels(8, 8)).save("a.png")
    numbers, file = predict("a.png", str([0.5] * 64))
    assert numbers.startswith("[0.5, 0.5,")
    assert file.startswith("a.png -> class ")


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_file_that_is_not_there_is_named(lab, refused) -> None:
    lab("made((torch.rand(6, 64), torch.arange(6) % 3), 64)")
    assert "there is no file 'new.png'" in refused("new.png")
    assert "no file matches '*.png'" in refused("*.png")
    Path("empty").mkdir()
    assert "the folder empty has no image: no file with one of .jpg, .jpeg, .png" in refused("empty")
    assert "name an input: image files, a folder of them, or JSON" in refused()
    assert "--top must be a whole number from 1 up, got 0" in refused("empty", "--top", "0")


def test_a_file_that_is_no_image_is_named(lab, refused) -> None:
    lab("made((torch.rand(6, 64), torch.arange(6) % 3), 64)")
    Path("notes.txt").write_text("no image")
    assert "notes.txt is not an image that PIL can open" in refused("notes.txt")
    Image.fromarray(pixels(64, 64)).save("half.png")
    Path("half.png").write_bytes(Path("half.png").read_bytes()[:2000])
    assert "half.png cannot be read as an image: OSError: " in refused("half.png")
    Image.fromarray(pixels(8, 8).astype(np.uint16) * 256).save("deep.png")
    assert "deep.png has more than 8 bits for each value of a pixel (mode I;16)" in refused("deep.png")


@pytest.mark.parametrize(
    ("x", "shown"),
    [("rand(6, 4)", "torch.float32 of shape (4,)"), ("rand(6, 2, 8, 8)", "torch.float32 of shape (2, 8, 8)"),
     ("rand(6, 63)", "torch.float32 of shape (63,)")],
    ids=["features", "channels", "flat"],
)  # fmt: skip
def test_a_recipe_whose_samples_are_no_images_is_refused_with_their_shape(lab, refused, x, shown) -> None:
    lab(f"made((torch.{x}, torch.arange(6) % 3), torch.{x}[0].numel())")
    Image.fromarray(pixels(8, 8)).save("a.png")
    assert f"a sample of this recipe is no image: it is {shown}, and not" in refused("a.png")


def test_a_transform_that_gives_another_shape_is_refused_with_both(lab, refused) -> None:
    transform = "transforms.Compose([transforms.ToTensor(), transforms.Pad(2)])"
    lab(f"made(datasets.FakeData(4, (3, 8, 8), 3, transform={transform}), 432)")
    Image.fromarray(pixels(20, 20, 3)).save("a.png")
    assert (
        "a.png: the transform of the data set gives a tensor of shape (3, 16, 16), also for an image of 12 x 12 "
        "pixels; a sample of this recipe has shape (3, 12, 12)"
    ) in refused("a.png")


def test_a_transform_that_fails_is_told_with_the_file(lab, capsys) -> None:
    picky = "transforms.Compose([picky, transforms.ToTensor()])"
    lab(
        f"made(datasets.FakeData(4, (3, 8, 8), 3, transform={picky}), 192)",
        "def picky(image):\n    if image.size != (8, 8): raise ValueError('too large')\n    return image\n",
    )
    Image.fromarray(pixels(20, 20, 3)).save("a.png")
    assert main(["predict", RUN, "a.png"]) == 1
    err = capsys.readouterr().err
    assert "ValueError: too large\nin the transform of the recipe's data set, for a.png" in err


def test_an_image_that_only_the_data_set_can_make_is_left_alone(lab, refused) -> None:
    lab(
        "made(Texts(), 2, loss=lambda output, y: output.sum())",
        "class Texts(Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, index): return {'ids': torch.rand(2)}, 0\n",
    )
    Image.fromarray(pixels(8, 8)).save("a.png")
    assert "predict takes recipes whose x is one tensor; use Trainer.predict for others" in refused("a.png")

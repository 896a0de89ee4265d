from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.plot import Plot, compare, draw, plot

from framework import RunDirError, UsageError
from framework.testing import tiny_data, tiny_trainer


def rows(**figures: list[float]) -> list[dict[str, Any]]:
    count = len(next(iter(figures.values())))
    return [{"epoch": e, "step": e + 1, **{name: values[e] for name, values in figures.items()}} for e in range(count)]


def texts(path: Path) -> list[str]:
    """What is written in a picture; matplotlib draws its letters, and notes each text in a comment."""
    svg = path.read_text("utf-8")
    ElementTree.fromstring(svg)  # well-formed
    return re.findall(r"<!-- (.*?) -->", svg)


def panels(path: Path) -> int:
    return len(re.findall(r'<g id="axes_\d+">', path.read_text("utf-8")))


@pytest.fixture
def picture(tmp_path: Path) -> Any:
    def drawn(figures: list[dict[str, Any]], best: Any = None) -> Path:
        draw({"": figures}, tmp_path / "curves.svg", {"": best})
        return tmp_path / "curves.svg"

    return drawn


def test_a_fit_leaves_a_picture_with_a_panel_a_figure_and_both_splits_in_it(tmp_path: Path, scripted: Any) -> None:
    trainer = tiny_trainer([scripted([1, 2, 3], "lr"), Plot()], run_dir=tmp_path)
    trainer.fit(tiny_data(), tiny_data(seed=1), epochs=3)
    path = tmp_path / "curves.svg"
    assert panels(path) == 2
    said = texts(path)
    assert [text for text in said if text in ("loss", "lr", "train", "val", "epoch")] == [
        "loss", "train", "val", "epoch", "lr",
    ]  # fmt: skip


def test_the_same_run_gives_the_same_picture(picture: Any) -> None:
    figures = rows(train_loss=[3.0, 2.0, 1.0])
    assert picture(figures).read_bytes() == picture(figures).read_bytes()


def test_the_axis_is_logarithmic_where_values_span_decades(picture: Any) -> None:
    assert any("10^{-2}" in text for text in texts(picture(rows(train_loss=[10.0, 1.0, 0.1, 0.01]))))
    assert not any("10^" in text for text in texts(picture(rows(train_loss=[1.0, 0.5, 0.1]))))
    assert not any("10^" in text for text in texts(picture(rows(x=[1000.0, 1.0, -1.0]))))


def test_the_best_epoch_is_marked_in_the_panel_of_its_figure(picture: Any) -> None:
    figures = rows(train_loss=[3.0, 2.0, 1.0], val_loss=[3.0, 1.5, 2.0], val_accuracy=[0.1, 0.9, 0.8])
    assert "best: 1.5 in epoch 1" in texts(picture(figures))
    best = {**figures[1], "monitor": "val_accuracy", "value": 0.9}
    assert [text for text in texts(picture(figures, best)) if text.startswith("best:")] == ["best: 0.9 in epoch 1"]


def test_the_best_of_the_fit_is_the_one_that_is_marked(tmp_path: Path, scripted: Any) -> None:
    plugins = [scripted([0.1, 0.9, 0.5], "an_accuracy"), BestCheckpoint("an_accuracy"), Plot()]
    tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=3)
    assert "best: 0.9 in epoch 1" in texts(tmp_path / "curves.svg")


def test_values_that_are_not_finite_are_left_out_and_told(picture: Any) -> None:
    said = texts(picture(rows(train_loss=[3.0, math.inf, math.nan, 1.0])))
    assert "train_loss is inf or nan in 2 epochs" in said
    assert "best: 1 in epoch 3" in said
    assert "train_loss is inf or nan in 2 epochs" in texts(picture(rows(train_loss=[math.nan, math.nan])))


@pytest.mark.parametrize("epochs", [1, 2, 1001])
def test_a_run_of_any_length_is_drawn(epochs: int, picture: Any) -> None:
    values = [1.0 + 0.1 * math.sin(7 * e) for e in range(epochs)]
    path = picture(rows(train_loss=values, train_accuracy=values))
    assert panels(path) == 2
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_epochs_of_a_short_run_are_whole_numbers(epochs: int, picture: Any) -> None:
    said = texts(picture(rows(train_loss=[5.0, 6.0, 7.0][:epochs])))
    ticks = said[: said.index("epoch")]
    assert ticks == [str(epoch) for epoch in range(epochs)]


def test_names_that_are_no_figure_of_a_split_have_panels_of_their_own(picture: Any) -> None:
    path = picture(rows(train_loss=[1.0], val_loss=[1.0], train_top5_accuracy=[1.0], lr=[0.1], process_mib=[2.0]))
    assert [t for t in texts(path) if t in ("loss", "top5_accuracy", "lr", "process_mib")] == [
        "loss", "top5_accuracy", "lr", "process_mib",
    ]  # fmt: skip
    assert panels(path) == 4


def test_without_a_run_dir_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_trainer([Plot()]).fit(tiny_data(), epochs=2)
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_the_complete_epochs_are_drawn(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):
        tiny_trainer([Plot(), fails(epoch=2, batch=1)], run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert panels(tmp_path / "curves.svg") == 1


def test_an_error_before_the_first_epoch_is_over_draws_nothing(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):
        tiny_trainer([Plot(), fails(epoch=0)], run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert list(tmp_path.glob("*.svg")) == []


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "curves.svg").mkdir()
    with pytest.raises(RunDirError, match=r"cannot write .*curves\.svg"):
        tiny_trainer([Plot()], run_dir=tmp_path).fit(tiny_data(), epochs=2)


def test_a_second_fit_draws_anew(tmp_path: Path) -> None:
    trainer = tiny_trainer([Plot()], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=3)
    trainer.fit(tiny_data(), tiny_data(), epochs=2)
    assert "val" in texts(tmp_path / "curves.svg")


def test_evaluate_outside_a_fit_draws_nothing(tmp_path: Path) -> None:
    tiny_trainer([Plot()], run_dir=tmp_path).evaluate(tiny_data())
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from framework.testing import *; from framework_plugins.plot import Plot;"
        "assert 'matplotlib' not in sys.modules;"
        f"tiny_trainer([Plot()], run_dir={str(tmp_path)!r}).fit(tiny_data(), epochs=2);"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "curves.svg").is_file()


def test_it_changes_no_bit_of_training(trained: Any, tmp_path: Path) -> None:
    assert trained([Plot()], tmp_path) == trained([])


# ------------------------------------------------------------------------------------------------ the verbs


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    """Makes a run directory."""

    def make(name: str, lr: float, losses: list[float], figures: Any = None, **facts: Any) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        info = {"label": path.name, "seed": 0, "knobs": {"lr": lr, "epochs": 2}, "seconds": 1.5, **facts}
        (path / "run.json").write_text(json.dumps(info), encoding="utf-8")
        lines = [json.dumps(row) + "\n" for row in rows(train_loss=losses, **(figures or {}))]
        (path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        return path

    return make


def test_the_verb_plot_draws_runs_again(kept: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = kept("a", 0.1, [2.0, 1.0])
    plot((path,))
    assert "best: 1 in epoch 1" in texts(path / "curves.svg")
    assert capsys.readouterr().out == f"drawn     {path / 'curves.svg'}\n"
    with pytest.raises(UsageError, match="name at least one run"):
        plot(())


def test_the_verb_compare_tells_the_knobs_that_differ_and_draws_all_runs(
    kept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare((kept("a", 0.1, [2.0, 1.0]), kept("b", 0.5, [2.0, 0.5])))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        ["run", "lr", "epoch", "train_loss", "seconds"],
        ["a", "0.1", "1", "1", "1.5"],
        ["b", "0.5", "1", "0.5", "1.5"],
    ]
    said = texts(tmp_path / "compare.svg")
    assert [text for text in said if text in ("a", "b")] == ["a", "b"]
    with pytest.raises(UsageError, match="name at least two run"):
        compare((tmp_path / "a",))


def table(out: str) -> dict[str, dict[str, str]]:
    """A printed table by the first column, then by heading; each heading ends where its column does."""
    head, *lines = [line for line in out.splitlines() if not line.startswith("drawn")]
    ends = [match.end() for match in re.finditer(r"\S+", head)]
    starts = [0, len(head) - len(head[ends[0] :].lstrip()), *[end + 2 for end in ends[1:-1]]]
    names = head.split()
    cells = [
        [line[start:end].strip() for start, end in zip(starts, [starts[1], *ends[1:]], strict=True)] for line in lines
    ]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cells}


def test_compare_tells_the_test_figures_and_the_best_epoch_of_a_validation_set(
    kept: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    val = {"val_loss": [1.0, 3.0]}
    best = {"monitor": "val_loss", "value": 1.0, "epoch": 0, "val_loss": 1.0}
    one = kept("one", 0.1, [2.0, 1.0], val, best=best, test={"test_accuracy": 0.875})
    two = kept("two", 0.1, [2.0, 1.0], best={"monitor": "train_loss", "value": 1.0, "epoch": 1, "train_loss": 1.0})
    compare((one, two))
    found = table(capsys.readouterr().out)
    assert found["one"] == {
        "epoch": "1", "train_loss": "1", "val_loss": "3", "best_epoch": "0", "best_val_loss": "1",
        "test_accuracy": "0.875", "seconds": "1.5",
    }  # fmt: skip
    assert found["two"] == {**dict.fromkeys(found["one"], ""), "epoch": "1", "train_loss": "1", "seconds": "1.5"}


def test_compare_draws_each_split_in_axes_of_its_own_that_all_runs_share(kept: Any, tmp_path: Path) -> None:
    val = {"val_loss": [1.0, 3.0]}
    compare((kept("one", 0.1, [2.0, 1.0], val), kept("two", 0.1, [2.0, 1.0], val), kept("three", 0.1, [2.0, 1.0])))
    path = tmp_path / "compare.svg"
    assert panels(path) == 2
    said = texts(path)
    assert [text for text in said if text.endswith("_loss")] == ["train_loss", "val_loss"]
    assert [text for text in said if text in ("one", "two", "three", "best epoch")] == [
        "one",
        "two",
        "three",
        "best epoch",
    ]
    assert said.count("epoch") == 2


def test_compare_keeps_variants_of_one_label_in_two_runs_apart(
    kept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, lr in (("first", 0.1), ("second", 0.2)):
        for label in ("a", "b"):
            kept(f"{run}/{label}", lr, [2.0, 1.0])
        (tmp_path / run / "run.json").write_text(json.dumps({"variants": ["a", "b"]}), encoding="utf-8")
    compare((tmp_path / "first", tmp_path / "second"))
    lines = capsys.readouterr().out.splitlines()[1:-1]
    labels = [f"{tmp_path / run}/{label}" for run in ("first", "second") for label in ("a", "b")]
    assert all(line.startswith(f"{label}  ") for line, label in zip(lines, labels, strict=True))


def test_a_run_that_is_inf_is_named_in_the_picture(kept: Any, tmp_path: Path) -> None:
    compare((kept("fine", 0.1, [2.0, 1.0]), kept("wild", 9.0, [math.inf, math.nan])))
    assert "wild is inf or nan in 2 epochs" in texts(tmp_path / "compare.svg")


def strokes(path: Path) -> list[str]:
    """The widths of the curves, in the order in which they are drawn."""
    return re.findall(
        r"stroke: #(?:1f77b4|ff7f0e|2ca02c); stroke-width: ([\d.]+); stroke-linecap: square", path.read_text("utf-8")
    )


def test_of_runs_that_lie_on_each_other_the_lower_one_is_drawn_wider(kept: Any, tmp_path: Path) -> None:
    compare((kept("a", 0.1, [2.0, 1.0]), kept("b", 0.2, [5.0, 4.0]), kept("c", 0.3, [2.0, 1.0])))
    curves = strokes(tmp_path / "compare.svg")[:3]
    assert curves == ["3.5", "1.5", "1.5"]


def test_a_dollar_in_a_name_begins_no_formula(kept: Any, tmp_path: Path) -> None:
    figures = {"price_in_$x_": [1.0, 2.0]}
    runs = (kept("costs $x_$", 0.1, [2.0, 1.0], figures), kept("b", 0.2, [2.0, 1.0], figures))
    compare(runs)
    plot(runs)
    assert "costs $x_$" in " ".join(texts(tmp_path / "compare.svg")).replace("\\", "")


@pytest.mark.parametrize("output", ["x.png", "x"])
def test_a_picture_of_another_kind_is_refused(kept: Any, output: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"pictures are SVG files: name .*x\.svg"):
        compare((kept("a", 0.1, [2.0, 1.0]), kept("b", 0.2, [2.0, 1.0])), output)


def test_rows_without_figures_are_told(kept: Any, tmp_path: Path) -> None:
    path = kept("a", 0.1, [2.0, 1.0])
    for rows_ in ('{"epoch": 0, "step": 1}', '{"train_loss": 1.0}'):
        (path / "metrics.jsonl").write_text(rows_ + "\n", encoding="utf-8")
        with pytest.raises(RunDirError, match="no figures by epoch to draw"):
            plot((path,))


def test_one_run_named_twice_is_one(kept: Any) -> None:
    run = kept("a", 0.1, [2.0, 1.0])
    with pytest.raises(UsageError, match="name at least two run"):
        compare((run, run))


def test_each_of_many_runs_has_a_color_of_its_own(kept: Any, tmp_path: Path) -> None:
    compare(tuple(kept(f"r{number}", number / 10, [2.0, 1.0 + number]) for number in range(20)))
    colors = re.findall(
        r"stroke: (#[0-9a-f]{6}); stroke-width: 1\.5; stroke-linecap: square",
        (tmp_path / "compare.svg").read_text("utf-8"),
    )
    assert len(set(colors)) >= 20


def test_the_moving_median_of_a_zigzag_lies_in_its_middle_to_the_end(tmp_path: Path) -> None:
    from framework_plugins import plot as module

    class Axes:
        def __init__(self) -> None:
            self.lines: list[list[float]] = []

        def plot(self, x: list[float], y: list[float], **style: Any) -> None:
            self.lines.append(y)

    axes = Axes()
    module._curve(axes, [(e, float(e % 2)) for e in range(300)], "zigzag", {})  # type: ignore[arg-type]
    assert axes.lines[1] == [0.5] * 300

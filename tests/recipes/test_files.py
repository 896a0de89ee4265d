"""What every recipe file keeps to: short, explained, and nothing in it but torch and public names."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import docstring_parser
import pytest
from framework_recipes import COURSE

import framework
from framework import build

RECIPES = sorted(path for path in Path(__file__).resolve().parents[2].glob("recipes/*.py") if path.stem != "__init__")
OPTIONS = {"--seed", "--device", "--plugin", "-p"}  # of the command line itself

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def function_of(path: Path) -> tuple[ast.FunctionDef, str]:
    """The function recipe() of a file, and its docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "recipe")
    return function, ast.get_docstring(function, clean=False) or ""


def documentation_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def test_the_recipes_of_the_labs_are_there() -> None:
    assert sorted(COURSE) == [path.stem for path in RECIPES]
    assert {*COURSE} >= {
        "batch_norm", "batch_or_minibatch", "char_rnn", "checkpointing", "cpu_vs_gpu", "custom_dataset", "data_loader",
        "digits", "dropout", "gradient_descent", "initialization", "learning_rate", "linear_regression",
        "logistic_regression", "maximum_likelihood", "minibatch", "mnist_binary", "mnist_cnn", "mnist_mlp",
        "mnist_softmax", "multivariable_regression", "network_diagrams", "overfitting", "preprocessing", "sgd_variants",
        "softmax", "tensor_manipulation", "xor",
    }  # fmt: skip


@every_recipe
def test_a_recipe_is_short_and_ascii(path: Path) -> None:
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


@every_recipe
def test_a_recipe_names_its_lab_and_tells_what_to_expect(path: Path) -> None:
    documentation = documentation_of(path)
    assert re.match(r"(Lab|Week) \d\d(-\d)?: .+\.(\n|$)", documentation)
    (figure,) = re.findall(r"^Expect: (.+\.)$", documentation, flags=re.MULTILINE)  # a line that `recipes` prints
    assert re.search(r"\d", figure) or path.stem == "custom_dataset"  # that of another recipe, to the last bit


@every_recipe
def test_every_knob_is_typed_and_documented(path: Path) -> None:
    function, documentation = function_of(path)
    documented = {param.arg_name: param.description for param in docstring_parser.parse(documentation).params}
    knobs = [argument.arg for argument in function.args.args + function.args.kwonlyargs if argument.arg != "run_dir"]
    assert list(documented) == knobs
    assert all(documented.values())
    assert all(argument.annotation for argument in function.args.args)
    assert function.returns is not None


@every_recipe
def test_every_suggested_command_has_options_that_exist(path: Path) -> None:
    function, _ = function_of(path)
    known = {f"--{argument.arg.replace('_', '-')}" for argument in function.args.args} | OPTIONS
    suggestions = re.findall(r"^Next: (.+)$", documentation_of(path), flags=re.MULTILINE)
    assert suggestions
    for suggestion in suggestions:
        options = re.findall(r"(?<!\S)-{1,2}[a-z][\w-]*", suggestion)
        assert options
        assert set(options) <= known


@every_recipe
def test_a_recipe_imports_torch_and_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if node.module == "framework":
                assert {alias.name for alias in node.names} <= set(framework.__all__)
        else:
            continue
        allowed = {"torch", "torchvision", "framework_plugins", "psutil"} | sys.stdlib_module_names
        for module in modules:
            assert module == "framework" or module.partition(".")[0] in allowed


@every_recipe
def test_a_recipe_builds_from_its_defaults(path: Path, request: pytest.FixtureRequest) -> None:
    if path.stem.startswith("mnist"):
        request.getfixturevalue("mnist")
    made = build(path)
    variants = made.values() if isinstance(made, dict) else [made]
    assert all(variant is None or isinstance(variant, framework.Recipe) for variant in variants)


@every_recipe
def test_a_recipe_takes_no_argument_at_all(path: Path) -> None:
    from framework.cli.lab import find_lab
    from framework.cli.options import of_recipe

    lab = find_lab(path)
    knobs, options = of_recipe(lab, [])

    assert knobs == {name: parameter.default for name, parameter in lab.knobs.items()}
    assert (options.seed, options.plugin) == (0, ())

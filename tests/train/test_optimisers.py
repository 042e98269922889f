"""Each optimiser against a reference, resumed to the bit, and its state as the plan counts it."""

import copy
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vlm
from tests.conftest import LLAMA, perturb, toy_recipe
from tests.vlm_core.twins import RECIPES
from vlm import registry
from vlm.assembly import blueprint
from vlm.embedded import Handwriting
from vlm.errors import ConfigError
from vlm.planning.plan import plan
from vlm.recipe import PartSpec, StageSpec
from vlm.schema import construct
from vlm.train.galore import GaLoreSteps, projection
from vlm.train.groups import kinds, parameter_groups, states
from vlm.train.module import StageModule
from vlm.train.objectives import LanguageModelling, ReadSlots
from vlm.train.optimisers import Optimiser
from vlm.train.plots import read_metrics
from vlm.train.run import check, train

BETAS = (0.8, 0.9)
STAGE = {"name": "s", "data": [{"name": "handwriting"}], "steps": 6, "batch_size": 4, "precision": "32-true"}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "adamw, not fused": {"name": "adamw", "fused": False},
    "adafactor": {"name": "adafactor"},
    "adafactor, momentum": {"name": "adafactor", "momentum": 0.9, "scale_parameter": True},
    "muon": {"name": "muon"},
    "galore": {"name": "galore", "rank": 4, "every": 2},
}


def build(spec: dict[str, Any], groups: list[dict[str, Any]]) -> Any:
    return construct(registry.optimisers, PartSpec(**spec), {"betas": BETAS}).build(groups)


def group(*params: nn.Parameter, hidden: bool = False, lr: float = 1e-2, decay: float = 0.0) -> dict[str, Any]:
    own = {"lr": lr, "weight_decay": decay, "hidden": hidden, "key": "llm", "warmup": 0.0}
    return {"params": list(params), **own}


def toys(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def gradients(params: list[nn.Parameter], step: int) -> list[Tensor]:
    """The same for every run, and other ones at each step."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) * 0.3 for p in params]


def walk(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> None:
    for step in range(steps):
        for parameter, gradient in zip(params, gradients(params, step), strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("fused", [None, False, True])
def test_adamw_is_torch_s(fused: bool | None) -> None:
    ours = toys((6, 4), (5,))
    theirs = copy.deepcopy(ours)
    walk(build({"name": "adamw", "fused": fused}, [group(ours[0], decay=0.1), group(ours[1])]), ours, 5)
    options: Any = {"lr": 1e-2, "betas": BETAS, "foreach": False}
    walk(torch.optim.AdamW([theirs[0]], weight_decay=0.1, **options), theirs[:1], 5)
    for step in range(5):
        theirs[1].grad = gradients(ours, step)[1]
        if not step:
            vector = torch.optim.AdamW([theirs[1]], weight_decay=0.0, **options)
        vector.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_adafactor_by_the_slow_obvious_loop() -> None:
    """Of Shazeer and Stern (2018): a number at a time, with the rate and the decay from outside."""
    matrix, vector = toys((3, 4), (5,))
    found = [matrix.detach().clone().tolist(), vector.detach().clone().tolist()]
    optimizer = build({"name": "adafactor"}, [group(matrix, decay=0.1), group(vector)])
    rows, columns, squares = [0.0] * 3, [0.0] * 4, [0.0] * 5
    for step in range(6):
        pair = gradients([matrix, vector], step)
        forget = 1 - (step + 1) ** -0.8
        (g, h) = (one.double().tolist() for one in pair)
        rows = [forget * r + (1 - forget) * sum(x * x for x in g[i]) / 4 for i, r in enumerate(rows)]
        columns = [forget * c + (1 - forget) * sum(g[i][j] ** 2 for i in range(3)) / 3 for j, c in enumerate(columns)]
        squares = [forget * s + (1 - forget) * h[k] ** 2 for k, s in enumerate(squares)]
        mean = sum(rows) / 3
        update = [[g[i][j] / math.sqrt(rows[i] * columns[j] / mean) for j in range(4)] for i in range(3)]
        largest = max(1.0, math.sqrt(sum(x * x for row in update for x in row) / 12))
        found[0] = [
            [found[0][i][j] * (1 - 1e-2 * 0.1) - 1e-2 * update[i][j] / largest for j in range(4)] for i in range(3)
        ]
        flat = [h[k] / math.sqrt(squares[k]) for k in range(5)]
        largest = max(1.0, math.sqrt(sum(x * x for x in flat) / 5))
        found[1] = [found[1][k] - 1e-2 * flat[k] / largest for k in range(5)]
        matrix.grad, vector.grad = pair
        optimizer.step()
    torch.testing.assert_close(matrix, torch.tensor(found[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vector, torch.tensor(found[1]), rtol=1e-5, atol=1e-6)


def test_muon_is_torch_s_for_matrices_and_adamw_for_the_rest() -> None:
    ours = toys((6, 4), (4, 6), (9, 4), (5,))
    theirs = copy.deepcopy(ours)
    groups = [group(*ours[:2], hidden=True, decay=0.1), group(ours[2], decay=0.1), group(ours[3])]
    walk(build({"name": "muon", "momentum": 0.9}, groups), ours, 5)
    muon = torch.optim.Muon(theirs[:2], lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW(
        [{"params": theirs[2:3], "weight_decay": 0.1}, {"params": theirs[3:], "weight_decay": 0.0}],
        lr=1e-2,
        betas=BETAS,
    )
    for step in range(5):
        for parameter, gradient in zip(theirs, gradients(theirs, step), strict=True):
            parameter.grad = gradient
        muon.step()
        rest.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_muon_s_steps_are_nearly_orthogonal_and_as_large_as_adamw_s() -> None:
    matrix = toys((48, 32))[0]
    before = matrix.detach().clone()
    walk(build({"name": "muon"}, [group(matrix, hidden=True, lr=1.0)]), [matrix], 1)
    step = before - matrix.detach()
    values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(48))
    assert 0.5 < values.min() < values.max() < 1.3
    assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.25), "AdamW's typical root mean square"


def galore_by_svd(matrix: Tensor, *, rank: int, every: int, scale: float, decay: float, steps: int) -> Tensor:
    """The paper's algorithm 2 with torch's own decomposition, a number at a time where it is Adam's."""
    matrix = matrix.detach().double().clone()
    left = matrix.shape[0] <= matrix.shape[1]
    for step in range(steps):
        g = gradients([matrix], step)[0].double()
        if step % every == 0:
            u, _, v = torch.linalg.svd(g)
            basis = u[:, :rank] if left else v.T[:, :rank]
            for column in range(rank):
                entries = basis[:, column].tolist()
                if max(entries, key=abs) < 0:
                    basis[:, column] = -basis[:, column]
        small = basis.T @ g if left else g @ basis
        if step == 0:
            first, second = torch.zeros_like(small), torch.zeros_like(small)
        out = torch.zeros_like(small)
        for i in range(small.shape[0]):
            for j in range(small.shape[1]):
                first[i, j] = BETAS[0] * first[i, j] + (1 - BETAS[0]) * small[i, j]
                second[i, j] = BETAS[1] * second[i, j] + (1 - BETAS[1]) * small[i, j] ** 2
                mean = first[i, j] / (1 - BETAS[0] ** (step + 1))
                out[i, j] = mean / (math.sqrt(second[i, j] / (1 - BETAS[1] ** (step + 1))) + 1e-8)
        matrix = matrix - 1e-2 * decay * matrix - 1e-2 * scale * (basis @ out if left else out @ basis.T)
    return matrix.float()


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_galore_by_the_slow_obvious_loop(shape: tuple[int, int]) -> None:
    matrix = toys(shape)[0]
    options = {"rank": 3, "every": 3, "scale": 0.5}
    wanted = galore_by_svd(matrix, **options, decay=0.1, steps=8)  # type: ignore[arg-type]
    walk(build({"name": "galore", **options}, [group(matrix, hidden=True, decay=0.1)]), [matrix], 8)
    torch.testing.assert_close(matrix, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [4, 5])
def test_galore_of_full_rank_is_adamw(rank: int) -> None:
    ours = toys((6, 4), (4, 6), (9, 4), (5,))
    theirs = copy.deepcopy(ours)
    spread = [[*one[:2]] for one in (ours, theirs)], [[*one[2:]] for one in (ours, theirs)]
    for spec, (matrices, rest), params in (
        ({"name": "galore", "rank": rank}, (spread[0][0], spread[1][0]), ours),
        ({"name": "adamw"}, (spread[0][1], spread[1][1]), theirs),
    ):
        walk(build(spec, [group(*matrices, hidden=True, decay=0.1), group(*rest)]), params, 5)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_projection_keeps_a_gradient_of_its_rank() -> None:
    for m, n in ((6, 9), (9, 6)):
        gradient = torch.randn(m, 3) @ torch.randn(3, n)
        basis = projection(gradient, 3)
        torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)
        back = basis @ basis.T @ gradient if m <= n else gradient @ basis @ basis.T
        torch.testing.assert_close(back, gradient, rtol=1e-4, atol=1e-4)


def test_galore_follows_a_low_rank_gradient_as_well_as_adam_in_its_subspace() -> None:
    """With one subspace throughout, a step never leaves it."""
    matrix = toys((6, 9))[0]
    before = matrix.detach().clone()
    basis = torch.linalg.qr(torch.randn(6, 2)).Q
    optimizer = GaLoreSteps([group(matrix, hidden=True)], betas=BETAS, eps=1e-8, rank=2, every=1, scale=1.0)
    for _ in range(4):
        matrix.grad = basis @ torch.randn(2, 9)
        optimizer.step()
    moved = matrix.detach() - before
    torch.testing.assert_close(basis @ basis.T @ moved, moved, rtol=1e-4, atol=1e-5)
    assert moved.norm() > 0.1


@pytest.mark.parametrize("name", OPTIMISERS)
def test_without_a_gradient_only_matrices_shrink(name: str) -> None:
    model = perturb(vlm.assemble(toy_recipe()))
    spec = StageSpec.model_validate(
        {
            **STAGE,
            "train": {"llm": 1e-2, "encoders": 1e-2},
            "weight_decay": 0.5,
            "warmup": 0.0,
            "optimiser": OPTIMISERS[name],
        }
    )
    module = StageModule(model, LanguageModelling(), stage=spec, accumulate=1)
    scaled = OPTIMISERS[name].get("scale_parameter", False)
    optimizer = module.configure_optimizers()["optimizer"]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    decayed = set()
    for own, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            decayed.add(own)
            rate = 1e-2 * before[own].square().mean().sqrt() if scaled else 1e-2
            torch.testing.assert_close(parameter, before[own] * (1 - rate * 0.5), rtol=1e-6, atol=1e-7, msg=own)
        else:
            assert torch.equal(parameter, before[own]), own
    assert any("embed_tokens" in own for own in decayed)
    assert not any(own.startswith("connector") for own in decayed)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in optimizer.state} == trained, "frozen parts have no state"


@pytest.mark.parametrize("name", RECIPES)
def test_hidden_matrices_are_those_of_linear_layers(name: str) -> None:
    """No table, no head, no convolution: which class a weight belongs to says the same as its name does."""
    _, model = blueprint(RECIPES[name])
    objective = ReadSlots([encoder.width for encoder in model.encoders][:1], fields={"digits": (5, 11)})
    found = kinds(model, objective)
    head = {id(p) for p in model.llm.get_output_embeddings().parameters()}
    modules = dict(model.named_modules())
    for own, parameter in model.named_parameters():
        owner = modules[own.rpartition(".")[0]]
        linear = isinstance(owner, nn.Linear) or type(owner).__name__ in ("Conv1D", "MultiheadAttention")
        router = "Router" in type(owner).__name__  # a bare matrix, multiplied with as a linear layer's
        wanted = (linear or router) and parameter.ndim == 2 and id(parameter) not in head
        assert found[own].hidden == wanted, f"{own} of a {type(owner).__name__}"
    assert any(kind.hidden for kind in found.values())
    assert not any(kind.hidden for own, kind in found.items() if own.startswith("objective."))


class PowerCut(RuntimeError):
    pass


class Failing(Handwriting):
    """Fails at a sample, once."""

    at = -1

    def __getitem__(self, index: int) -> Any:
        if index == Failing.at:
            raise PowerCut
        return super().__getitem__(index)


def recipe(optimiser: Any, **changes: Any) -> dict[str, Any]:
    train_keys = {"llm": {"lr": 1e-3, "layer_decay": 0.8}, "connector": {"lr": 1e-2, "warmup": 0.5}}
    own = {"data": [{"name": f"{__name__}:Failing"}], "checkpoint_every": 2, "weight_decay": 0.1}
    stage = {**STAGE, **own, "train": train_keys, "optimiser": optimiser, **changes}
    return {**toy_recipe(), "stages": [stage]}


RESUMED = [(name, "32-true") for name in OPTIMISERS] + [(name, "bf16-true") for name in ("adafactor", "muon", "galore")]


@pytest.mark.parametrize(("name", "precision"), RESUMED)
def test_resumes_to_the_bit(name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recipe(OPTIMISERS[name], precision=precision)
    whole = train(spec, out=tmp_path / "whole")
    monkeypatch.setattr(Failing, "at", 18)
    with pytest.raises(PowerCut):
        train(spec, out=tmp_path / "run")
    assert list((tmp_path / "run").glob("stages/01-s/checkpoints/step=4.ckpt"))
    monkeypatch.setattr(Failing, "at", -1)
    again = train(spec, out=tmp_path / "run")
    assert read_metrics(again / "stages/01-s/metrics.csv") == read_metrics(whole / "stages/01-s/metrics.csv")
    found, wanted = vlm.load(again).state_dict(), vlm.load(whole).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    start = vlm.assemble(spec).state_dict()
    assert any(not torch.equal(wanted[key], start[key].to(wanted[key].dtype)) for key in wanted)


def test_a_fused_step_lets_gradients_be_clipped_in_mixed_precision(tmp_path: Path) -> None:
    """Lightning refuses to clip for an optimiser that may unscale gradients itself, as torch's fused ones may."""
    assert train(recipe("adamw", precision="bf16-mixed", clip=0.1, steps=1), out=tmp_path / "run").is_dir()


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_plan_counts_the_state_that_there_is(name: str, precision: str) -> None:
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": True}}
    spec = {**toy_recipe(llm=llm), "stages": recipe(OPTIMISERS[name], precision=precision)["stages"]}
    memory = plan(spec).training["s"].memory
    model = vlm.assemble(spec)
    if precision == "bf16-true":
        model.bfloat16()
    stage = StageSpec.model_validate(spec["stages"][0])
    module = StageModule(model, LanguageModelling(), stage=stage, accumulate=1)
    optimizer = module.configure_optimizers()["optimizer"]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    real = sum(tensor.numel() * tensor.element_size() for tensor in states(optimizer))
    assert memory.optimiser == real
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = 4 if precision == "32-true" else 2
    most = {"adamw": 2.0, "muon": 1.6, "galore": 1.6}.get(name.split(",")[0], 2.3)
    assert 0 < real <= most * trained * width
    if name == "adafactor":
        assert real < 0.3 * trained * width
    assert memory.step < 2 * trained * width


class Plain(Optimiser):
    """Steepest descent from outside: states nothing but how it is built.

    Args:
        momentum: of the gradients.
    """

    def __init__(self, *, momentum: float = 0.0) -> None:
        self.momentum = momentum

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum)


def test_an_optimiser_from_outside(tmp_path: Path) -> None:
    spec = recipe({"name": f"{__name__}:Plain", "momentum": 0.9}, steps=1)
    found = plan(spec)
    trained = sum(found.stages["s"].values())
    assert found.training["s"].memory.optimiser == 4 * trained, "one value a parameter, found by a step"
    run = train(spec, out=tmp_path / "run")
    assert "lr/connector" in (run / "stages/01-s/metrics.csv").read_text()


class Asking(Plain):
    """Looks at values as it steps."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        class Curious(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                return super().step(closure) if self.param_groups[0]["params"][0].sum().item() > 0 else None

        return Curious(groups)


def test_one_that_asks_for_values_is_counted_as_adamw_and_said_to_be() -> None:
    found = plan(recipe({"name": f"{__name__}:Asking"}))
    assert found.training["s"].memory.optimiser == 8 * sum(found.stages["s"].values())
    assert found.training["s"].flops.forward > 0
    (note,) = found.notes
    assert note.startswith(f"the state of `{__name__}:Asking` is counted as AdamW's, since it does not step without")


MISTAKES = {
    "adamv": r"stages\.0\.optimiser: unknown optimiser `adamv`; did you mean `adamw`",
    "adamw8bit": r"stages\.0\.optimiser: `adamw8bit` needs bitsandbytes, .*pip install bitsandbytes",
    "rank": r"stages\.0\.optimiser\.rank: `0`; allowed: 1 or more",
    "option": r"stages\.0\.optimiser\.rnak: unknown .* did you mean `rank`",
    "type": r"stages\.0\.optimiser\.every: `often` is wrong",
    "momentum": r"stages\.0\.optimiser\.momentum: `1\.5`; allowed: 0 to less than 1",
    "torch.optim:SGD": r"stages\.0\.optimiser: `torch\.optim:SGD` is .*must be a subclass of vlm\.train\.optimisers",
}
WRONG = {
    "rank": {"rank": 0},
    "option": {"rnak": 4},
    "type": {"every": "often"},
    "momentum": {"name": "muon", "momentum": 1.5},
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("command", [plan, lambda source: check(source, [])], ids=["plan", "train"])
def test_mistakes_have_their_dotted_place(kind: str, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # nor is it here where it is installed
    with pytest.raises(ConfigError, match=MISTAKES[kind]) as caught:
        command(recipe({"name": "galore", **WRONG[kind]} if kind in WRONG else kind))
    assert len(caught.value.problems) == 1


def test_betas_that_nothing_reads_are_refused() -> None:
    """Seen elsewhere: options that are declared and never used."""
    with pytest.raises(ConfigError, match=r"stages\.0\.betas: `adafactor` takes none, so they would do nothing"):
        check(recipe("adafactor", betas=[0.9, 0.99]), [])
    check(recipe("muon", betas=[0.9, 0.99]), [])


@pytest.mark.parametrize("name", ["muon", "galore", "adafactor"])
def test_flat_pieces_of_matrices_are_refused(name: str) -> None:
    """As a strategy with flat parameters keeps them: what was a matrix when the stage was made is none any more."""
    with pytest.raises(ConfigError, match=f"`{name}` works on whole matrices"):
        build({"name": name}, [group(nn.Parameter(torch.zeros(24)), hidden=True)])


def test_flat_pieces_decay_as_the_matrices_that_they_are_of() -> None:
    model = vlm.assemble(toy_recipe())
    spec = StageSpec.model_validate({**STAGE, "train": {"llm": 1e-3}, "weight_decay": 0.1})
    module = StageModule(model, LanguageModelling(), stage=spec, accumulate=1)
    pieces = {name: nn.Parameter(p.detach().flatten()[:3]) for name, p in model.named_parameters()}
    found = {
        id(p): one["weight_decay"]
        for one in parameter_groups(pieces, module.settings, module.kinds)
        for p in one["params"]
    }
    for name, parameter in model.named_parameters():
        if name.startswith("llm."):
            assert found[id(pieces[name])] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_adamw8bit_is_bitsandbytes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: what it is given, and the state by its layout (blocks of 256, two scales a block)."""
    fake, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    fake.__spec__ = ModuleSpec("bitsandbytes", None)
    optim.AdamW8bit = optim.PagedAdamW8bit = torch.optim.AdamW  # type: ignore[attr-defined]
    fake.optim = optim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    large, small = toys((64, 65), (10, 10))
    made = construct(registry.optimisers, PartSpec(name="adamw8bit"), {"betas": BETAS})
    optimizer = made.build([group(large, small)])
    assert optimizer.param_groups[0]["betas"] == BETAS
    assert made.footprint([group(large, small)])[0] == 2 * 64 * 65 + 2 * 4 * 17 + 8 * 100

"""Optimisers on parameters that FSDP2 spreads over two processes (gloo), beside one process with all of them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vlm import registry
from vlm.errors import ConfigError
from vlm.recipe import PartSpec
from vlm.schema import construct

SPECS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "muon": {"name": "muon"},
    "galore": {"name": "galore", "rank": 3, "every": 2},
    "adafactor": {"name": "adafactor"},
}
STEPS, RATE = 4, 1e-2


def optimiser(spec: dict[str, Any], net: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {
            **{"params": [p for p in net.parameters() if (p.ndim > 1) == hidden], "lr": RATE, "hidden": hidden},
            **{"weight_decay": 0.1 if hidden else 0.0, "key": "llm", "warmup": 0.0},
        }
        for hidden in (True, False)
    ]
    built: torch.optim.Optimizer = construct(registry.optimisers, PartSpec(**spec), {"betas": (0.9, 0.95)}).build(
        groups
    )
    return built


def walk(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        net(batch).square().sum().backward()
        optimizer.step()


def one_of_two(rank: int, folder: str) -> None:
    """Writes, for each optimiser, the largest difference from one process, or what it refuses with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    found: dict[str, Any] = {}
    for name, spec in SPECS.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
        alone = copy.deepcopy(net)
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        try:
            walk(net, optimiser(spec, net))
        except ConfigError as error:
            found[name] = str(error)
            continue
        walk(alone, optimiser(spec, alone))
        pairs = zip(net.parameters(), alone.parameters(), strict=True)
        found[name] = max(float((p.full_tensor() - q).abs().max()) for p, q in pairs)  # type: ignore[attr-defined]
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(one_of_two, (str(folder),), nprocs=2)
    read: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return read


@pytest.mark.parametrize(("name", "atol"), [("adamw", 1e-6), ("galore", 1e-5), ("muon", 0.2 * RATE)])
def test_pieces_step_as_the_whole(name: str, atol: float, found: dict[str, Any]) -> None:
    """Muon iterates in bfloat16: what is summed in another order differs by its rounding, some hundredths of a step,
    which is 0.7 * RATE times an orthogonal matrix."""
    assert found[name] < atol


def test_adafactor_refuses_pieces(found: dict[str, Any]) -> None:
    assert "`adafactor` cannot step parameters that are spread over devices" in found["adafactor"]

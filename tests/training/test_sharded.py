"""Two processes with weights sharded as in accelerate_fsdp.yaml, against one process with the whole model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from duet_training.modeling import DuetLlava
from tests.golden_cases import NUM_PATCHES
from tests.training.test_modeling import SETTINGS, batch, learning

CONFIG = Path("training/duet_training/configs/accelerate_fsdp.yaml")
WORLD = 2


def gradients(model: DuetLlava, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model(**inputs, compression=SETTINGS).loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}


def samples(rank: int) -> dict[str, Tensor]:
    """Pictures for one process, and text alone for the other, which must still call the same modules."""
    inputs = batch("llava_gqa", SETTINGS.num_entering(NUM_PATCHES))
    if rank == 0:
        return inputs
    return {name: tensor[-1:] for name, tensor in inputs.items() if name != "pixel_values"}


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    model, mesh = learning(), dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    wrapped = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    layers = [module for module in model.modules() if type(module).__name__ in wrapped]
    assert {type(layer).__name__ for layer in layers} == set(wrapped)
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh)
    torch.save(gradients(model, samples(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_sharded_gradients_are_the_mean_of_both(tmp_path: Path):
    mp.start_processes(run, (tmp_path,), nprocs=WORLD, start_method="spawn")
    alone = [gradients(learning(), samples(rank)) for rank in range(WORLD)]
    expected = {name: sum(grads[name] for grads in alone) / WORLD for name in alone[0]}
    for rank in range(WORLD):
        sharded = torch.load(tmp_path / f"{rank}.pt")
        assert sharded.keys() >= expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(sharded[name], grad, rtol=1e-4, atol=1e-6, msg=name)

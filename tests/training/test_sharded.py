"""Two processes with the weights sharded as accelerate_fsdp.yaml says, against one process with the whole model."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from duet_server.plan import CompressionSettings
from duet_training.modeling import DuetLlava
from tests.golden_cases import checkpoint_path
from tests.training.test_modeling import batch

CONFIG = Path("training/duet_training/configs/accelerate_fsdp.yaml")
SETTINGS = CompressionSettings(20, 6, 4, (0.6, 0.25), "all", "custom")
WORLD = 2


def gradients(model: DuetLlava, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model(**inputs, compression=SETTINGS).loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}


def load() -> DuetLlava:
    torch.manual_seed(0)
    return DuetLlava.from_pretrained(checkpoint_path("llava_gqa"), dtype=torch.float32).train()


def samples(rank: int) -> dict[str, Tensor]:
    """Pictures for one process, text alone for the other, which must call the same modules all the same."""
    inputs = batch("llava_gqa", SETTINGS.dominant + SETTINGS.contextual)
    if rank == 0:
        return inputs
    return {name: tensor[-1:] for name, tensor in inputs.items() if name != "pixel_values"}


def run(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    model = load()
    wrapped = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    layers = [module for module in model.modules() if type(module).__name__ in wrapped]
    assert {type(layer).__name__ for layer in layers} == set(wrapped)
    for module in [*layers, model]:
        fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (WORLD,)))
    torch.save(gradients(model, samples(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_sharded_gradients_are_the_mean_of_both(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(run, (port, tmp_path), nprocs=WORLD, start_method="spawn")
    alone = [gradients(load(), samples(rank)) for rank in range(WORLD)]
    expected = {name: sum(grads[name] for grads in alone) / WORLD for name in alone[0]}
    for rank in range(WORLD):
        sharded = torch.load(tmp_path / f"{rank}.pt")
        assert sharded.keys() >= expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(sharded[name], grad, rtol=1e-4, atol=1e-6, msg=name)

"""Three steps of each stage of DeepSpeed's ZeRO on the CPU, by torchrun in an image; rank 0 prints the losses as JSON.

DeepSpeed would compile a shared-memory all-reduce for CPUs, which its training never calls, as soon as it wraps the
process group. Its table of operators that can be built is made to be edited (deepspeed/ops/__init__.py says so): struck
out there, collectives go through gloo. torch's AdamW is handed in, so no optimizer is compiled either.
"""

from __future__ import annotations

import json
import os

import deepspeed
import deepspeed.ops
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.distributed.init_process_group("gloo")


def train(stage: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}},
    )
    # The same data on both ranks: the mean of the gradients is then that of one process, bit for bit.
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.mse_loss(engine(x), x)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    if os.environ["RANK"] == "0":
        print(json.dumps({"optimizer": type(engine.optimizer).__name__, "losses": losses}), flush=True)


for number in (1, 2, 3):
    train(number)
torch.distributed.barrier()
torch.distributed.destroy_process_group()

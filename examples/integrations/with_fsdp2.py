"""FSDP2 (fully_shard): shard the model, then build and wrap the optimizer.

    torchrun --nproc-per-node 2 examples/integrations/with_fsdp2.py

Prints the sparsity of the model and how many active weights each rank holds; seconds on a CPU.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

from sparseopt import SparseOptimizer


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = f"cuda:{dist.get_rank()}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)  # the same weights everywhere before they are sharded
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    fully_shard(model[0])
    fully_shard(model)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # The only new line. Masks are sharded like their parameters; at an update the ranks count
    # together, so that the topology is the one that a single process would choose.
    opt = SparseOptimizer(
        opt, algo="rigl", sparsity=0.9, total_steps=30, update_every=5, model=model
    )

    torch.manual_seed(dist.get_rank())  # every rank has data of its own
    for _ in range(30):
        inputs = torch.randn(32, 16, device=device)
        opt.zero_grad()
        mse_loss(model(inputs), inputs[:, :4].sin()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()

    mine = sum(int(mask.to_local().sum()) for mask in opt.masks.values())
    held: list = [None] * dist.get_world_size()
    dist.all_gather_object(held, mine)
    assert sum(held) == sum(layer.nnz for layer in opt.layers)
    if dist.get_rank() == 0:
        print(f"sparsity {opt.sparsity:.1%}, active weights per rank {held}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# %% [markdown]
# # A million classes on one machine
#
# As published, the HIST loss builds a tensor of samples x classes x dimensions. With 32 samples, a million
# classes and 512 dimensions that is 66 GB for every intermediate result. `HISTLoss` computes the same loss
# in chunks of classes and never holds a tensor of that size. Only the parameters of the classes remain.
#
# This tutorial runs with 20,000 classes. Set `TUPLET_CLASSES=1000000` for a million; it then takes about
# 16 GB of memory.

# %%
import os
import time

import torch

from tuplet import HISTLoss

num_classes = int(os.environ.get("TUPLET_CLASSES", "20000"))
samples, width = 32, 128
torch.manual_seed(0)
loss = HISTLoss(num_classes, embedding_dim=width, tau=16.0, hidden_dim=width)
parameters = sum(parameter.numel() for parameter in loss.parameters())
print(f"{num_classes:,} classes: {parameters:,} parameters, {4 * parameters / 1e6:,.0f} MB")

# %% [markdown]
# ## One step
# With many classes, the loss chooses the chunked computation by itself.

# %%
embeddings = torch.randn(samples, width, requires_grad=True)
labels = torch.randint(num_classes, (samples,))


def seconds_of(step, times=3):
    """Return the shortest time of a few steps."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return min(taken)


def forward_and_backward():
    """Compute the loss and its gradients, without an optimizer."""
    loss.zero_grad()
    loss(embeddings, labels).backward()


print(f"the loss, forward and backward: {1e3 * seconds_of(forward_and_backward):.0f} ms")
print(
    f"a tensor of samples x classes x dimensions would take {4 * samples * num_classes * width / 1e9:.1f} GB"
)

# %% [markdown]
# ## The optimizer
# Adam stores two numbers per parameter, twice the memory of the parameters. `RowwiseAdam` stores two numbers
# per *class* for the class distributions. In a run, use `--optimizer.class-update rowwise`.

# %%
from tuplet.training.optimizers import RowwiseAdam

rows = list(loss.class_parameters().values())
optimizers = {
    "Adam": torch.optim.Adam(rows, lr=3e-2, fused=True),
    "RowwiseAdam": RowwiseAdam([{"params": rows, "lr": 3e-2}]),
}
for name, optimizer in optimizers.items():
    taken = seconds_of(optimizer.step)
    state = [value for each in optimizer.state.values() for value in each.values() if torch.is_tensor(value)]
    held = sum(value.numel() * value.element_size() for value in state) / 1e6
    print(f"{name}: {1e3 * taken:.0f} ms per step, {held:,.1f} MB of state")

# %% [markdown]
# ## A sample of the classes
# `class_fraction=0.1` sums over the classes of the batch and a random sample of the others, together a tenth
# of all classes, drawn again at each step. This is faster, but no longer exact: on our characters Recall@1
# fell from 91.7 to 89.3 % ([measured](../scale.md#class-sampling)).

# %%
sampled = HISTLoss(num_classes, embedding_dim=width, tau=16.0, hidden_dim=width, class_fraction=0.1)


def sampled_step():
    """Compute the loss and its gradients over a tenth of the classes."""
    sampled.zero_grad()
    sampled(embeddings, labels).backward()


print(f"a tenth of the classes: {1e3 * seconds_of(sampled_step):.0f} ms")

# %% [markdown]
# ## More classes than one device can hold
# `--compute.devices 8 --compute.shard-classes True` divides the classes among processes: each stores an
# eighth of the parameters, and loss and gradients equal those of one process ([Several
# devices](../devices.md)).
#
# Measured costs up to a million classes, and computed ones up to a hundred million: [Cost of many
# classes](../scale.md).

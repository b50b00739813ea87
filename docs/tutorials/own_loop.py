# %% [markdown]
# # HIST in your own loop
#
# `HISTLoss` is a plain PyTorch module. This tutorial trains the same small network in a plain loop, in
# Lightning and in pytorch-metric-learning (`pip install 'tuplet[baselines]' lightning`).
#
# ## Data
# We use twenty generated characters for training and eight others for the test. Replace `train` and `test`
# by your own data sets of (uint8 RGB image, label), with training labels 0..C-1.

# %%
import torch
from torch.utils.data import DataLoader, TensorDataset

from tuplet import Embedder, HISTLoss, retrieval_metrics
from tuplet.config import DataConfig
from tuplet.data.glyphs import load_glyphs

config = DataConfig(
    source="glyphs",
    glyph_train_classes=20,
    glyph_test_classes=8,
    glyphs_per_class=12,
    image_size=24,
    resize=24,
)
split = load_glyphs(config)
train, test = (
    TensorDataset(torch.stack([table.image(i) for i in range(len(table))]), torch.from_numpy(table.labels))
    for table in (split.train, split.test)
)
print(f"{len(train)} images of {split.train.num_classes} classes to train on")
EPOCHS = 3


def new_parts():
    """Return a new network and a new loss."""
    torch.manual_seed(0)
    network = Embedder("tuplet_convnet", embedding_dim=64, pretrained=False)
    return network, HISTLoss(split.train.num_classes, embedding_dim=64, tau=16.0, hidden_dim=64)


def recall(network):
    """Compute Recall@1 among test images of classes that the network has never seen."""
    pixels, labels = test.tensors
    with torch.no_grad():
        return retrieval_metrics(network.eval()(pixels), labels)["recall_at_1"]


# %% [markdown]
# ## A plain loop
# The loss has trainable parameters: class distributions and a small hypergraph network. They need their own
# learning rates. Forgetting to give them to the optimizer is the most common mistake.

# %%
network, loss = new_parts()
optimizer = torch.optim.Adam(
    [
        {"params": network.parameters(), "lr": 3e-3},
        *loss.parameter_groups(lr_distributions=3e-2, lr_hgnn=1e-3),
    ]
)
print(f"before: {recall(network):.1%}")
for epoch in range(EPOCHS):
    network.train()
    for pixels, labels in DataLoader(train, batch_size=24, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        terms = loss.terms(network(pixels), labels)
        terms.total.backward()
        optimizer.step()
    halves = f"{terms.distribution.item():.2f} + {terms.cross_entropy.item():.2f}"
    print(f"epoch {epoch + 1}: loss {halves}, Recall@1 {recall(network):.1%}")

# %% [markdown]
# `loss(embeddings, labels)` returns the sum; `loss.terms(...)` returns the two halves, the distribution
# loss and the cross entropy of the hypergraph network ([the equations](../loss.md)).
#
# ## Lightning
# As a submodule, the loss is moved to the device and saved with the rest. Add its parameters in
# `configure_optimizers`. `gather_batch` matters with several processes: the hypergraph then spans the whole
# batch.

# %%
import logging
import warnings

from lightning.pytorch import LightningModule, Trainer

from tuplet import gather_batch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", ".*LeafSpec.*")


class MetricLearning(LightningModule):
    def __init__(self):
        super().__init__()
        self.network, self.loss = new_parts()

    def training_step(self, batch, step):
        pixels, labels = batch
        return self.loss(*gather_batch(self.network(pixels), labels))

    def configure_optimizers(self):
        groups = self.loss.parameter_groups(lr_distributions=3e-2, lr_hgnn=1e-3)
        return torch.optim.Adam([{"params": self.network.parameters(), "lr": 3e-3}, *groups])


module = MetricLearning()
trainer = Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(train, batch_size=24, shuffle=True, drop_last=True))
print(f"Lightning: {recall(module.network):.1%}")

# %% [markdown]
# ## pytorch-metric-learning
# Its trainers accept the loss without changes. Give them a `metric_loss_optimizer`; without it the loss does
# not learn, and there is no error.

# %%
from pytorch_metric_learning.trainers import MetricLossOnly

logging.getLogger("PML").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True")
network, loss = new_parts()
trainer = MetricLossOnly(
    models={"trunk": network},
    optimizers={
        "trunk_optimizer": torch.optim.Adam(network.parameters(), lr=3e-3),
        "metric_loss_optimizer": torch.optim.Adam(loss.parameter_groups(lr_distributions=3e-2, lr_hgnn=1e-3)),
    },
    batch_size=24,
    loss_funcs={"metric_loss": loss},
    dataset=train,
    data_device="cpu",
    dataloader_num_workers=0,
)
trainer.train(num_epochs=EPOCHS)
print(f"pytorch-metric-learning: {recall(network):.1%}")

# %% [markdown]
# More about each library, checkpoints, timm backbones and common mistakes: [HIST in your own
# loop](../elsewhere.md).

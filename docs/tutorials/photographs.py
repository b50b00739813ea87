# %% [markdown]
# # Train on your photographs and search them
#
# This tutorial trains an embedding model on a folder of pictures, puts other pictures into an index, and
# searches them. It needs the extra `search`: `pip install 'tuplet[search]'`.
#
# ## The pictures
# To use your own pictures, set the environment variable `PHOTOS` to a folder with `train/<class>/*` and
# `test/<class>/*`. Without it, we draw some characters, so that the tutorial runs anywhere within seconds.

# %%
import os
from pathlib import Path

from PIL import Image

from tuplet.data.glyphs import glyph

photos = Path(os.environ.get("PHOTOS", "photos"))
if not photos.exists():
    for character in range(30):
        folder = photos / ("train" if character < 20 else "test") / f"character {character:02}"
        folder.mkdir(parents=True)
        for copy in range(10):
            Image.fromarray(glyph(character, copy, seed=1, image_size=32)).save(folder / f"{copy:02}.png")
print(sorted(folder.name for folder in (photos / "test").iterdir())[:3])

# %% [markdown]
# The classes in `test` do not occur in `train`: a good embedding model separates classes that it has never
# seen.
#
# ## Train
# A recipe is a complete configuration. For photographs, use the recipe `folder`, which fine-tunes a
# pretrained ResNet-50. For the drawn characters, `omniglot` is enough: it trains a small network from random
# weights.

# %%
import tuplet

settings = {
    "data.image_size": 32,
    "data.resize": 32,
    "schedule.epochs": 3,
    "evaluation.every_epochs": 3,
    "evaluation.kmeans_runs": 1,
    "compute.num_workers": 0,
}
result = tuplet.fit("omniglot", data=photos, to="runs/first", overrides=settings)
for epoch in result.run.reports():
    if epoch.evaluation is not None:
        scores = epoch.evaluation.retrieval
        print(f"epoch {epoch.epoch}: Recall@1 {scores['recall_at_1']:.1%}, MAP@R {scores['map_at_r']:.1%}")

# %% [markdown]
# Epoch 0 is the network before training. The folder `runs/first` now holds the model, its settings and its
# metrics. The command `tuplet train` does the same and also writes an HTML report.
#
# ## Use the model
# `load` opens a trained model, and `encode` turns pictures into vectors of unit length. Their inner product
# is the cosine similarity.

# %%
model = tuplet.load("runs/first")
files = sorted((photos / "test").rglob("*.png"))[:3]
vectors = model.encode(files)
print(vectors.shape)
print((vectors @ vectors.T).round(2))

# %% [markdown]
# ## Build an index and search it
# The index stores a vector and a thumbnail of each picture, and records which model made the vectors.

# %%
from tuplet.search.indexing import index_pictures

report = index_pictures("photos-index", [photos / "test"], model, num_workers=0)
print(report)

# %%
index = tuplet.ImageIndex("photos-index")
query = files[0].absolute()
for found in index.nearest(model.encode([query])[0], top=6):
    print(f"{found.distance:.3f}  {found.picture.label}  {Path(found.picture.path).name}")

# %% [markdown]
# The first result is the query itself, at distance 0. Show the others:

# %%
import matplotlib.pyplot as plt

results = index.nearest(model.encode([query])[0], top=7)
figure, axes = plt.subplots(1, len(results), figsize=(1.5 * len(results), 1.9))
for axis, found in zip(axes, results, strict=True):
    axis.imshow(Image.open(found.picture.path), cmap="gray")
    axis.set_title(f"{found.picture.label}\n{found.distance:.2f}", fontsize=8)
    axis.axis("off")

# %% [markdown]
# ## The same on the command line
#
#     tuplet train folder --data.root PHOTOS --to runs/photos
#     tuplet index PHOTOS/test --model runs/photos --index photos-index
#     tuplet search PHOTOS/test/panda/image_0001.jpg --index photos-index --html found.html
#     tuplet serve photos-index
#
# The last command serves a search page in the browser. More: [Search pictures](../search.md), [Serve an
# index](../serve.md), and, before you rely on the numbers, [Honest numbers](../honest-numbers.md).

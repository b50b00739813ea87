# %% [markdown]
# # Is model B better than model A?
#
# Two models, two numbers, one larger than the other. Is the difference real? This tutorial answers three
# questions:
#
# 1. How sure is one number?
# 2. Is model B better than model A on classes like these?
# 3. Is *method* B better than method A, or was it this one training?
#
# ## Two models
# Both train on generated characters. A is the HIST loss without its hypergraph part (`lambda_s` = 0); B is
# the whole loss.

# %%
import tuplet
from tuplet.data.glyphs import load_glyphs

SETTINGS = {
    "data.glyph_train_classes": 20,
    "data.glyph_test_classes": 14,
    "data.glyphs_per_class": 8,
    "data.image_size": 24,
    "data.resize": 24,
    "schedule.epochs": 2,
    "evaluation.every_epochs": 2,
    "evaluation.kmeans_runs": 0,
    "compute.num_workers": 0,
}
METHODS = {"A": {"loss.lambda_s": 0.0}, "B": {"loss.lambda_s": 1.0}}


def train_and_score(method, seed):
    """Train one model and score every test image as a query."""
    settings = {**SETTINGS, **METHODS[method], "seed": seed}
    result = tuplet.fit("demo", to=f"runs/{method}{seed}", overrides=settings, progress=False)
    test = load_glyphs(result.run.config.data).test
    vectors = result.model.encode([test.image(i) for i in range(len(test))])
    return tuplet.retrieval_scores(vectors, test.labels)


a, b = train_and_score("A", seed=0), train_and_score("B", seed=0)
for name, scores in (("A", a), ("B", b)):
    print(f"{name}: MAP@R {scores.of_metric('map_at_r').mean():.1%}")

# %% [markdown]
# ## 1. How sure is one number?
# `retrieval_scores` keeps the score of every query. Queries of one class resemble each other, so the
# interval comes from a bootstrap over whole classes: how far would the number move with other classes of
# this kind?

# %%
for name, scores in (("A", a), ("B", b)):
    interval = scores.interval("map_at_r")
    print(f"{name}: MAP@R, 95 % interval over classes {interval.low:.1%} to {interval.high:.1%}")

# %% [markdown]
# ## 2. Is model B better than model A?
# Do not compare the two intervals with each other. They overlap even if B is better on every class, because
# hard classes are hard for both models. Compare the models query by query instead. The interval is that of
# the difference, and the p-value comes from a test that swaps the two models class by class.

# %%
for found in a.compare(b, ["recall_at_1", "map_at_r"]).differences:
    interval = found.over_classes
    print(
        f"{found.metric}: B - A = {100 * found.difference:+.1f} points, "
        f"95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f}, p = {found.p_value:.3f}"
    )

# %% [markdown]
# If the interval does not contain 0, these two *models* differ on classes like these. With more metrics or
# more models, use the adjusted `p_holm`.
#
# ## 3. Is method B better than method A?
# Another seed gives another model. A claim about the method needs several seeds of each, paired by seed,
# and a t interval of the differences. Three seeds show the principle; five or more are better.

# %%
from scipy import stats

differences = [100 * float(b.of_metric("map_at_r").mean() - a.of_metric("map_at_r").mean())]
for seed in (1, 2):
    values = [train_and_score(method, seed).of_metric("map_at_r").mean() for method in ("A", "B")]
    differences.append(100 * float(values[1] - values[0]))
test = stats.ttest_1samp(differences, 0.0)
interval = test.confidence_interval(0.95)
print("B - A for each seed, in points of MAP@R:", [round(one, 1) for one in differences])
mean = sum(differences) / len(differences)
print(f"mean {mean:+.1f}, 95 % interval {interval.low:+.1f} to {interval.high:+.1f}")
verdict = "differ" if interval.low > 0 or interval.high < 0 else "cannot be told apart"
print(f"With {len(differences)} seeds the methods {verdict}.")

# %% [markdown]
# An interval that contains 0 does not show that the methods are equal. It shows that this experiment cannot
# tell.
#
# ## The same on the command line
#
#     tuplet evaluate runs/x                 every metric with its interval over classes
#     tuplet compare runs/x runs/y           two models on the same images
#     tuplet train RECIPE --seeds 5          several seeds with mean, deviation and interval
#     tuplet bench RECIPE --losses hist,proxy-anchor --seeds 5 --trials 20
#
# `tuplet bench` also gives each loss the same number of trials to find its settings, on validation classes.
# Without that, the loss whose settings were searched longest may win. More: [Honest
# numbers](../honest-numbers.md).

"""What the training processes do in test_fp8."""

from alp_megatron.config.schema import Fp8Config
from tests.distributed.jobs import update_gradients


def gradients_of_recipes(config, rank, trajectories: list, recipes: tuple[str, ...]) -> dict:
    """`update_gradients` under each recipe, on rank 0."""
    results = {}
    for recipe in recipes:
        config.model.fp8 = Fp8Config(recipe=recipe)
        results[recipe] = update_gradients(config, rank, trajectories)
    return results

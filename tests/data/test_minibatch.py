"""Which samples an update gets."""

from types import SimpleNamespace

from alp_megatron.data.minibatch import minibatches

SAMPLES = [SimpleNamespace(sample_id=i) for i in range(10)]


def numbers(seed: int, step: int, size: int = 4) -> list[list[int]]:
    return [[t.sample_id for t in made] for made in minibatches(SAMPLES, size, seed, step)]


def test_every_sample_once():
    made = numbers(seed=3, step=0)
    assert [len(of_update) for of_update in made] == [4, 4, 2]
    assert sorted(sum(made, [])) == list(range(10))


def test_the_order_is_that_of_seed_and_step_alone():
    assert numbers(3, 5) == numbers(3, 5)
    orders = {str(numbers(seed, step)) for seed in (3, 4) for step in range(4)}
    assert len(orders) == 8
    assert sum(numbers(3, 5, size=10), []) == sum(numbers(3, 5, size=1), [])

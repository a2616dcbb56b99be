"""Corrections against values worked by hand; every number's arithmetic stands beside it."""

import math

import pytest
import torch

from alp_megatron.config.methods import needs_old_logprobs, with_method_defaults
from alp_megatron.config.schema import CorrectionConfig, ObjectiveConfig
from alp_megatron.data.microbatch import pack
from alp_megatron.data.minibatch import MiniBatch, as_sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.objectives.correction import correct, rejection_statistic
from alp_megatron.objectives.loss import policy_objective
from alp_megatron.objectives.ratios import log_ratio

# w = pi_old / pi_rollout of four sequences: A (its last token masked), B, C, D (all masked).
#   A: 2, 1/2, 3, (1000)   e^S = 2 * 1/2 * 3 = 3     e^G = 3^(1/3) = 1.442250
#   B: 1/4, 8              e^S = 2                   e^G = 2^(1/2) = 1.414214
#   C: 1e-5                e^S = e^G = 1e-5
#   D: (100)               e^S = e^G = 1
W = torch.tensor([2.0, 0.5, 3.0, 1000.0, 0.25, 8.0, 1e-5, 100.0], dtype=torch.float64)
MASK = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 0])
INDEX = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
ROLLOUT = torch.linspace(-3, -1, 8, dtype=torch.float64)
OLD = ROLLOUT + W.log()


def corrected(**settings) -> list[float]:
    return correct(CorrectionConfig(**settings), OLD, ROLLOUT, MASK, INDEX, 4).weight.tolist()


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        # min(w, 2) of each token
        ({"weight": "truncated", "weight_high": 2.0}, [2, 0.5, 2, 0, 0.25, 2, 1e-5, 0]),
        # min(e^S, 2.5): A min(3, 2.5), B min(2, 2.5)
        (
            {"weight": "truncated", "weight_level": "sequence", "weight_high": 2.5},
            [2.5, 2.5, 2.5, 0, 2, 2, 1e-5, 0],
        ),
        # MIS as a weight: w in [0.4, 5], else 0
        (
            {"weight": "masked", "weight_low": 0.4, "weight_high": 5.0},
            [2, 0.5, 3, 0, 0, 0, 0, 0],
        ),
        # MIS as a mask: 1 in the same window
        (
            {"weight": "window", "weight_low": 0.4, "weight_high": 5.0},
            [1, 1, 1, 0, 0, 0, 0, 0],
        ),
        # No lower bound: what is tiny is kept
        ({"weight": "masked", "weight_high": 2.5}, [2, 0.5, 0, 0, 0.25, 0, 1e-5, 0]),
        # The sequence's e^S: A's 3 is out, B's 2 is in
        (
            {
                "weight": "masked",
                "weight_level": "sequence",
                "weight_low": 0.4,
                "weight_high": 2.5,
            },
            [0, 0, 0, 0, 2, 2, 0, 0],
        ),
        # e^G of the same bounds keeps both: 3 is a product of three, 3^(1/3) one of them
        (
            {
                "weight": "masked",
                "weight_level": "geometric",
                "weight_low": 0.4,
                "weight_high": 2.5,
            },
            [3 ** (1 / 3)] * 3 + [0] + [2**0.5] * 2 + [0, 0],
        ),
        (
            {
                "weight": "window",
                "weight_level": "geometric",
                "weight_low": 1.42,
                "weight_high": 1.45,
            },
            [1, 1, 1, 0, 0, 0, 0, 0],
        ),
        # k1 = log 1/w <= log 3 bounds w from below: 1/4 and 1e-5 go, 8 stays
        ({"reject_by": "k1", "reject_high": math.log(3)}, [1, 1, 1, 0, 0, 1, 0, 0]),
        # k1 >= -log 2.5 bounds w from above: 3 and 8 go
        ({"reject_by": "k1", "reject_low": -math.log(2.5)}, [1, 1, 0, 0, 1, 0, 1, 0]),
        # Bounds of 1/w in [1/2.5, 3] are bounds of w in [1/3, 2.5]
        (
            {"reject_by": "k1", "reject_low": math.log(1 / 2.5), "reject_high": math.log(3)},
            [1, 1, 0, 0, 0, 0, 0, 0],
        ),
        # k2 max: A log(3)^2/2 = 0.60, B log(8)^2/2 = 2.16, C log(1e-5)^2/2 = 66
        (
            {"reject_by": "k2", "reject_over": "sequence_max", "reject_high": 0.7},
            [1, 1, 1, 0, 0, 0, 0, 0],
        ),
        # k3 mean: A 1.401388/3 = 0.47, B 5.556853/2 = 2.78, C 1e-5 - 1 + 11.51 = 10.5
        (
            {"reject_by": "k3", "reject_over": "sequence_mean", "reject_high": 3.0},
            [1, 1, 1, 0, 1, 1, 0, 0],
        ),
        # ... and their sum: A 1.40, B 5.56
        (
            {"reject_by": "k3", "reject_over": "sequence_sum", "reject_high": 3.0},
            [1, 1, 1, 0, 0, 0, 0, 0],
        ),
        # The veto looks at small w only, and not under the mask
        ({"veto": 1e-4}, [1, 1, 1, 0, 1, 1, 0, 0]),
        ({"veto": 0.3}, [1, 1, 1, 0, 0, 0, 0, 0]),
        # Together: the weight of what none of them rejects
        (
            {"weight": "truncated", "weight_high": 2.0, "veto": 1e-4, "reject_by": "k1",
             "reject_high": 1.0},
            [2, 0.5, 2, 0, 0, 2, 0, 0],
        ),
    ],
)  # fmt: skip
def test_weights_by_hand(settings, weights):
    assert corrected(**settings) == pytest.approx(weights, abs=1e-6)


# log 2 = 0.693147, log 3 = 1.098612, log 4 = 1.386294, log 8 = 2.079442
STATISTICS = {
    # A: -log 2, log 2, -log 3; B: log 4, -log 8
    ("k1", "token"): [-0.693147, 0.693147, -1.098612, 0, 1.386294, -2.079442],
    ("k1", "sequence_sum"): [-1.098612] * 4 + [-0.693147] * 2,
    ("k1", "sequence_mean"): [-0.366204] * 4 + [-0.346574] * 2,
    ("k1", "sequence_max"): [0.693147] * 4 + [1.386294] * 2,
    # squares over 2: 0.480453/2, 0.480453/2, 1.206949/2; 1.921812/2, 4.324077/2
    ("k2", "token"): [0.240227, 0.240227, 0.603474, 0, 0.960906, 2.162039],
    ("k2", "sequence_sum"): [1.083928] * 4 + [3.122945] * 2,
    ("k2", "sequence_mean"): [0.361309] * 4 + [1.561472] * 2,
    ("k2", "sequence_max"): [0.603474] * 4 + [2.162039] * 2,
    # w - 1 - log w: 2-1-0.693147, 0.5-1+0.693147, 3-1-1.098612; 0.25-1+1.386294, 8-1-2.079442
    ("k3", "token"): [0.306853, 0.193147, 0.901388, 0, 0.636294, 4.920558],
    ("k3", "sequence_sum"): [1.401388] * 4 + [5.556853] * 2,
    ("k3", "sequence_mean"): [0.467129] * 4 + [2.778426] * 2,
    ("k3", "sequence_max"): [0.901388] * 4 + [4.920558] * 2,
}


@pytest.mark.parametrize(("by", "over"), STATISTICS)
def test_rejection_statistics_by_hand(by, over):
    log_w = log_ratio(OLD, ROLLOUT, MASK, INDEX, 4, level="token")
    got = rejection_statistic(log_w, MASK, INDEX, 4, by=by, over=over).tolist()
    assert got[:6] == pytest.approx(STATISTICS[by, over], abs=1e-6)
    assert got[7] == 0  # D has no unmasked token


def test_exponents_stop_at_20():
    # log w = 30, -30; 15 and 15, whose sum is 30; 30 and -10, whose sum is 20 and mean 10.
    rollout = torch.zeros(6, dtype=torch.float64)
    old = torch.tensor([30.0, -30, 15, 15, 30, -10], dtype=torch.float64)
    mask, index = torch.ones(6), torch.tensor([0, 1, 2, 2, 3, 3])

    def weights(level):
        settings = CorrectionConfig(weight="truncated", weight_level=level, weight_high=1e30)
        return correct(settings, old, rollout, mask, index, 4).weight.log().tolist()

    assert weights("token") == pytest.approx([20, -20, 15, 15, 20, -10])
    assert weights("sequence") == pytest.approx([20, -20, 20, 20, 20, 20])
    assert weights("geometric") == pytest.approx([20, -20, 15, 15, 10, 10])
    for by, first in (("k1", -20), ("k2", 200), ("k3", math.exp(20) - 21)):
        log_w = log_ratio(old, rollout, mask, index, 4, level="token")
        got = rejection_statistic(log_w, mask, index, 4, by=by, over="token")
        assert got[0].item() == pytest.approx(first)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("kind", ["truncated", "masked", "window"])
def test_empty_mask_and_garbage_under_it(kind, level):
    old = torch.tensor([math.nan, -math.inf, math.inf])
    settings = CorrectionConfig(
        weight=kind, weight_level=level, weight_high=2.0,
        reject_by="k3", reject_over="sequence_max", reject_high=1.0, veto=0.5,
    )  # fmt: skip
    index = torch.tensor([0, 0, 1])
    got = correct(settings, old, torch.zeros(3), torch.zeros(3), index, 2)
    assert got.weight.eq(0).all() and not got.kept.any()
    half = correct(settings, old, torch.zeros(3), torch.tensor([0.0, 0, 0]), index, 2)
    assert torch.equal(half.weight, got.weight)


# --- Whole objectives, from the probabilities of three tokens to the loss -----------------------
#
#              A1     A2     B1
#   pi        0.44   0.50   0.27     advantage of A: +1, of B: -1
#   pi_old    0.40   0.25   0.30
#   rollout   0.50   0.20   0.10
#   r = pi/pi_old      1.1    2.0    0.9      (grpo clips 2.0 to 1.28)
#   w = pi_old/mu      0.8    1.25   3.0      e^S of A: 1.0; e^G of A: 1.0
#   pi/mu              0.88   2.5    2.7      their product over A: 2.2
PI, PI_OLD, MU = [[0.44, 0.5], [0.27]], [[0.4, 0.25], [0.3]], [[0.5, 0.2], [0.1]]


def logs(rows):
    return [[math.log(p) for p in row] for row in rows]


def loss_of(method, masks=((1, 1), (1,)), **settings):
    """Loss, gradient by the policy's log-probs, and the mini-batch it came from."""
    correction = CorrectionConfig(
        **{k: settings.pop(k) for k in list(settings) if k in CorrectionConfig.model_fields}
    )
    # Only what was given counts as given, as when a file is loaded.
    given = {"correction": correction} if correction.model_fields_set else {}
    objective = with_method_defaults(ObjectiveConfig(method=method, **settings, **given))
    trajectories = [
        Trajectory(i, 0, [1], [2] * len(row), list(masks[i]), row, 0, advantage=1.0 - 2 * i)
        for i, row in enumerate(logs(MU))
    ]
    old = {i: torch.tensor(row, dtype=torch.float64) for i, row in enumerate(logs(PI_OLD))}
    mini = MiniBatch.of(objective, trajectories, old)
    rows = [as_sequence(t) for t in trajectories]
    batch = pack(rows, packing=True, total_length=5, device=torch.device("cpu"))
    policy = torch.tensor(sum(logs(PI), []), dtype=torch.float64, requires_grad=True)
    loss = policy_objective(objective, mini.loss_inputs(batch, torch.float64)(policy)).loss
    return loss.item(), torch.autograd.grad(loss, policy)[0].tolist(), mini


@pytest.mark.parametrize(
    ("method", "settings", "loss"),
    [
        ("grpo", {}, (-1.1 - 1.28 + 0.9) / 3),
        ("bypass", {}, (-0.88 - 2.5 + 2.7) / 3),
        ("alp", {}, (-0.88 - 2.5 + 2.7) / 3),
        ("bypass", {"level": "sequence"}, (-2.2 - 2.2 + 2.7) / 3),
        # s of A sqrt(1.1 * 2) = 1.483 > 1.0004; of B 0.9 < 0.9997: both clipped
        ("gspo", {}, (-1.0004 + 0.9997) / 2),
        # wide bounds: -1.483240 + 0.9
        ("gspo", {"eps_low": 0.5, "eps_high": 1.0}, (-math.sqrt(2.2) + 0.9) / 2),
        ("tis", {}, (-1.1 * 0.8 - 1.28 * 1.25 + 0.9 * 2) / 3),
        ("tis", {"weight_high": 2.5}, (-1.1 * 0.8 - 1.28 * 1.25 + 0.9 * 2.5) / 3),
        ("tis", {"weight_level": "sequence"}, (-1.1 * 1 - 1.28 * 1 + 0.9 * 2) / 3),
        # mis: by sequence in [0, 5] as a weight; B's 3 out of [0, 2]; as a mask
        ("mis", {}, (-1.1 * 1 - 1.28 * 1 + 0.9 * 3) / 3),
        ("mis", {"weight_high": 2.0}, (-1.1 - 1.28) / 3),
        ("mis", {"weight": "window", "weight_low": 0.9}, (-1.1 - 1.28 + 0.9) / 3),
        ("mis", {"weight_level": "geometric", "weight_high": 2.0}, (-1.1 - 1.28) / 3),
        # ... the sequence may instead be the policy ratio's: 2.2 clipped to 1.28, masks by token
        (
            "mis",
            {"level": "sequence", "weight_level": "token", "weight_low": 0.9, "weight_high": 2.0},
            (0 - 1.28 * 1.25 + 0) / 3,
        ),
        ("icepop", {}, (-1.1 * 0.8 - 1.28 * 1.25 + 0.9 * 3) / 3),
        ("icepop", {"weight_low": 0.9}, (0 - 1.28 * 1.25 + 0.9 * 3) / 3),
        ("icepop", {"weight_low": 0.9, "denominator": "kept"}, (-1.28 * 1.25 + 0.9 * 3) / 2),
        # by sequence: A's mean is over two tokens, or over the one that is kept
        (
            "icepop",
            {"weight_low": 0.9, "loss_normalization": "sequence"},
            ((0 - 1.28 * 1.25) / 2 + 0.9 * 3) / 2,
        ),
        (
            "icepop",
            {"weight_low": 0.9, "loss_normalization": "sequence", "denominator": "kept"},
            (-1.28 * 1.25 + 0.9 * 3) / 2,
        ),
        # ... and B, wholly rejected, is a sequence of the denominator or not
        ("mis", {"weight_high": 2.0, "loss_normalization": "sequence"}, (-1.1 - 1.28) / 2 / 2),
        (
            "mis",
            {"weight_high": 2.0, "loss_normalization": "sequence", "denominator": "kept"},
            (-1.1 - 1.28) / 2,
        ),
        ("mis", {"weight_high": 2.0, "denominator": "kept"}, (-1.1 - 1.28) / 2),
        # rejection and veto go with a ratio to the rollout policy, too: 0.8 -> k1 = 0.22
        ("bypass", {"reject_by": "k1", "reject_high": 0.2}, (-2.5 + 2.7) / 3),
        ("alp", {"veto": 0.9}, 2.7 / 3),
        ("gspo", {"weight": "truncated", "weight_high": 2.0}, (-1.0004 * (0.8 + 1.25) / 2
                                                             + 0.9997 * 2) / 2),
    ],
)  # fmt: skip
def test_losses_by_hand(method, settings, loss):
    assert loss_of(method, **settings)[0] == pytest.approx(loss, abs=1e-6)


def test_weights_carry_no_gradient():
    # d loss / d logp: -A r w / 3 inside the clip, 0 at the clipped A2.
    _, gradient, _ = loss_of("icepop")
    assert gradient == pytest.approx([-1.1 * 0.8 / 3, 0, 0.9 * 3 / 3], abs=1e-9)


def test_gspo_has_the_gradient_of_the_whole_sequences_ratio():
    # d/d logp_t of -s = -s / |y|: A -1.483240 / 2 each, B 0.9 / 1, over two sequences.
    _, gradient, _ = loss_of("gspo", eps_low=0.5, eps_high=1.0)
    s = math.sqrt(2.2)
    assert gradient == pytest.approx([-s / 4, -s / 4, 0.9 / 2], abs=1e-9)


def test_a_masked_token_is_not_counted_as_rejected():
    # A1 masked: A is A2 alone, w = 1.25; nothing is rejected, so both denominators are 2.
    for denominator in ("all", "kept"):
        loss, _, mini = loss_of("icepop", masks=((0, 1), (1,)), denominator=denominator)
        assert loss == pytest.approx((-1.28 * 1.25 + 0.9 * 3) / 2, abs=1e-6)
        assert (mini.num_tokens, mini.num_sequences) == (2, 2)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("denominator", ["all", "kept"])
@pytest.mark.parametrize("masks", [((1, 1), (1,)), ((0, 0), (0,))])
def test_a_batch_of_which_nothing_is_left(normalization, denominator, masks):
    loss, gradient, _ = loss_of(
        "icepop", masks, weight_low=4.0, denominator=denominator, loss_normalization=normalization
    )
    assert loss == 0 and gradient == [0, 0, 0]


def test_who_needs_the_old_logprobs():
    def needs(method, **correction):
        objective = ObjectiveConfig(method=method, correction=CorrectionConfig(**correction))
        return needs_old_logprobs(with_method_defaults(objective))

    needed = {m: needs(m) for m in ("alp", "bypass", "grpo", "gspo", "tis", "mis", "icepop")}
    assert [m for m, value in needed.items() if not value] == ["alp", "bypass"]
    assert needs("alp", veto=1e-4) and needs("bypass", reject_by="k1", reject_high=1.0)
    assert loss_of("bypass")[2].old_logprobs is None

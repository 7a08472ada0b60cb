"""Bad input is refused where it enters, in a sentence."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.boards.names import board_name, threat_model_of_board
from gkl.catalog import DATASETS
from gkl.errors import InvalidInput
from gkl.recipes import RECIPES, recipe
from gkl.recipes.adversarial import digits
from gkl.spec import JOB_SPEC, AdamW, EvaluateSpec, Evaluation, Sgd, ThreatModel, TrainSpec, format_epsilon


def changed(path: str, value: Any) -> dict[str, Any]:
    """The digits recipe as JSON with one value changed."""
    spec = digits().model_dump(mode="json")
    *parents, last = path.split(".")
    place = spec
    for parent in parents:
        place = place[parent]
    place[last] = value
    return spec


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_survive_json(name: str) -> None:
    spec = recipe(name)
    assert JOB_SPEC.validate_json(spec.model_dump_json()) == spec
    assert JOB_SPEC.validate_python(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("architecture", "smal_cnn", "did you mean 'small_cnn'"),
        ("architecture", "wrn", "unknown architecture 'wrn'"),
        ("dataset", "digit", "did you mean 'digits'"),
        ("learning_rate", 0.1, "Extra inputs"),
        ("objective.beta", 20.0, "Extra inputs"),
        ("threat_model.epsilon", 0, "greater than 0"),
        ("threat_model.epsilon", -0.1, "greater than 0"),
        ("threat_model.epsilon", 8, "'8/255' instead of 8"),
        ("threat_model.epsilon", math.nan, "finite"),
        ("threat_model.epsilon", "eight", "fraction such as '8/255'"),
        ("threat_model.epsilon", "1e400", "fraction such as '8/255'"),
        ("threat_model.epsilon", "1e999999999", "fraction such as '8/255'"),
        ("threat_model.epsilon", "9" * 10_000, "fraction such as '8/255'"),
        ("threat_model.epsilon", "8/0", "fraction such as '8/255'"),
        ("threat_model", {"norm": "L2", "epsilon": 9.0}, "largest L2 distance"),
        ("evaluation.threat_model", {"norm": "L2", "epsilon": 9.0}, "largest L2 distance"),
        ("evaluation.num_points", 361, "exceeds the 360 test images"),
        ("evaluation.protocol", "Standard", "'standard'"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("batch_size", "128", "valid integer"),
        ("batch_size", True, "valid integer"),
        ("epochs", 0, "greater than or equal to 1"),
        ("name", "", "at least 1"),
        ("name", "two\nlines", "printable line"),
        ("name", "x" * 101, "at most 100"),
        ("kind", "destroy", "'train', 'distill', 'evaluate'"),
        ("architecture", "wrn_34_10", "cannot be built for digits; take one of tiny_cnn, small_cnn"),
        ("augmentation", {"kind": "autoaug"}, "policy for colour images, which digits has not"),
        ("augmentation", {"kind": "mixup"}, "'basic', 'autoaug', 'cutout'"),
        ("augmentation", {"kind": "basic", "size": 3}, "Extra inputs"),
        (
            "augmentation",
            {"kind": "resized_crop"},
            "for photographs of any size, and all images of digits have the same",
        ),
        ("imbalance", {}, "Field required"),
        ("imbalance", {"factor": 1}, "greater than 1"),
        (
            "imbalance",
            {"factor": 200},
            "factor 200 leaves the last class of digits without an image, since a class has",
        ),
        ("averaging", {"kind": "epoch", "tau": 1.0}, "less than 1"),
        ("selection", {"num_images": 1437}, "leaves none of the 1437 training images"),
        ("schedule", {"kind": "piecewise", "milestones": [30, 20]}, "milestones must rise"),
        ("schedule", {"kind": "piecewise", "milestones": [30, 60]}, "milestone 60 lies behind the last of the 50"),
        ("schedule", {"kind": "piecewise", "milestones": [1]}, "greater than or equal to 2"),
        ("synthetic", {"file": "../secret"}, "should match pattern"),
        ("synthetic", {"file": "/etc/passwd"}, "should match pattern"),
        ("synthetic", {"file": "1m", "fraction": 0.001}, "a batch of 128 cannot be 0.001 generated"),
        ("inner_maximization.start_noise", "gaussian", "'uniform'"),
        ("inner_maximization.network_mode", "test", "'eval' or 'train'"),
        ("schedule", {"kind": "cosine", "span": "E+1"}, "'epochs' or 'epochs_plus_one'"),
        ("schedule", {"kind": "one_cycle", "moves": "per_batch"}, "'per_step' or 'per_epoch'"),
        ("schedule", {"kind": "one_cycle", "low_momentum": 0.85}, "give both, or neither"),
        (
            "schedule",
            {"kind": "one_cycle", "low_momentum": 0.95, "high_momentum": 0.85},
            "low_momentum 0.95 is above high_momentum 0.85; exchange them",
        ),
        ("augmentation", {"kind": "basic", "rotation": 181.0}, "less than or equal to 180"),
        ("augmentation", {"kind": "basic", "fill": 128}, "Extra inputs"),
        ("averaging", {"kind": "step", "buffers": "none"}, "'averaged' or 'copied'"),
        ("batch_norm", {"momentum": 0.0}, "greater than 0"),
        ("selection", {"maximizes": "cw"}, "'cross_entropy' or 'margin'"),
        ("selection", {"ties": "both"}, "'first' or 'last'"),
        ("compute.precision", "float16", "'float32', 'tf32' or 'bfloat16'"),
        ("weight_perturbation", {"gamma": 0}, "greater than 0"),
        ("optimizer", {"kind": "adam"}, "'sgd', 'adamw'"),
        ("optimizer", {"kind": "adamw", "momentum": 0.9}, "Extra inputs"),
        ("optimizer", {"kind": "adamw", "betas": [0.9, 1.0]}, "less than 1"),
        ("threat_model", None, "the objective 'gkl' needs a threat_model; give one"),
        ("objective", {"loss": "ce"}, "trains without an adversary; leave out threat_model"),
    ],
)
def test_bad_input_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(")):
        JOB_SPEC.validate_python(changed(path, value))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"inner_maximization": {"num_steps": 5}}, "inner_maximization"),
        ({"weight_perturbation": {}}, "weight_perturbation"),
        ({"epsilon_ramp": False}, "epsilon_ramp"),
        ({"epsilon_ramp": False, "weight_perturbation": {}}, "weight_perturbation, epsilon_ramp"),
        ({"selection": {"num_steps": 5, "maximizes": "margin"}}, "selection.num_steps, selection.maximizes"),
        ({"augmentation": {"kind": "cutout", "robust_weight": 0.25}}, "augmentation.robust_weight"),
    ],
)
def test_without_an_adversary_what_is_for_one_is_refused(changes: dict[str, Any], named: str) -> None:
    natural = RECIPES["digits-ce"]().model_dump(mode="json")
    says = f"the objective 'ce' trains without an adversary; leave out {named}, or take another objective"
    with pytest.raises(ValidationError, match=re.escape(says)):
        JOB_SPEC.validate_python(natural | changes)
    allowed = natural | {"selection": {"num_images": 50, "ties": "last"}, "augmentation": {"kind": "cutout"}}
    assert TrainSpec.model_validate(allowed).threat_model is None


def test_sgd_is_the_optimizer_of_a_spec_that_names_none_and_is_not_written() -> None:
    """So that a spec of an earlier version stays the same JSON, by which a job sent twice is known."""
    for optimizer in ({"momentum": 0.5}, {"kind": "sgd", "momentum": 0.5}):
        spec = TrainSpec.model_validate(changed("optimizer", optimizer))
        assert spec.optimizer == Sgd(momentum=0.5)
        assert "kind" not in spec.model_dump(mode="json")["optimizer"]
        assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    adamw = TrainSpec.model_validate(changed("optimizer", {"kind": "adamw", "betas": [0.8, 0.9]}))
    assert adamw.optimizer == AdamW(kind="adamw", betas=(0.8, 0.9))
    assert TrainSpec.model_validate_json(adamw.model_dump_json()) == adamw


def test_a_last_batch_is_dropped_only_where_there_is_one_and_others_remain() -> None:
    dropping = changed("drop_last_batch", True)
    assert TrainSpec.model_validate(dropping | {"batch_size": 1437}).drop_last_batch
    for changes, says in (
        ({"batch_size": 1438}, "a batch of 1438 is more than the 1437 training images; lower batch_size"),
        ({"batch_size": 1000, "selection": {"num_images": 500}}, "more than the 937 training images"),
        ({"synthetic": {"file": "1m"}}, "every batch with generated images is whole; leave drop_last_batch out"),
    ):
        with pytest.raises(ValidationError, match=says):
            TrainSpec.model_validate(dropping | changes)


def test_an_imbalance_that_may_leave_every_class_an_image_is_taken() -> None:
    assert TrainSpec.model_validate(changed("imbalance", {"factor": 150})).imbalance is not None
    few = changed("imbalance", {"factor": 150}) | {"selection": {"num_images": 1300}}
    with pytest.raises(ValidationError, match="since a class has about 14 to train on; lower it"):
        TrainSpec.model_validate(few)


# Fields that older specs have not, and the value that stands for what was done without them.
NEWER: dict[str, Any] = {
    "inner_maximization.project_start": True,
    "inner_maximization.network_mode": "eval",
    "schedule.span": "epochs",
    "schedule.moves": "per_step",
    "schedule.low_momentum": None,
    "schedule.high_momentum": None,
    "augmentation.rotation": 0.0,
    "augmentation.fill": 0,
    "augmentation.shear": "nearest",
    "averaging.buffers": "averaged",
    "selection.maximizes": "cross_entropy",
    "selection.ties": "first",
    "drop_last_batch": False,
    "batch_norm": None,
    "imbalance": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": {"kind": "autoaug"}, "averaging": {"kind": "step"}, "schedule": {"kind": "one_cycle"}},
        {"augmentation": {"kind": "basic"}, "averaging": {"kind": "epoch"}, "schedule": {"kind": "cosine"}},
    ],
)
def test_a_spec_of_an_earlier_version_means_what_it_meant(changes: dict[str, Any]) -> None:
    earlier = recipe("cifar10").model_dump(mode="json") | {"selection": {"num_images": 100}} | changes
    for field in NEWER:
        part, _, name = field.rpartition(".")
        (earlier[part] if part else earlier).pop(name, None)
    opened = TrainSpec.model_validate(earlier).model_dump(mode="json")
    for field, value in NEWER.items():
        part, _, name = field.rpartition(".")
        place = opened[part] if part else opened
        assert place.get(name, value) == value, field


def test_epsilon_may_be_a_fraction() -> None:
    assert ThreatModel.model_validate({"epsilon": "8/255"}).epsilon == 8 / 255
    assert format_epsilon(ThreatModel.model_validate({"epsilon": "0.5"}).epsilon) == "0.5"


def test_boards_are_named_for_their_budget() -> None:
    def name(threat_model: ThreatModel) -> str:
        return board_name("digits", Evaluation(threat_model=threat_model))

    assert name(ThreatModel(norm="Linf", epsilon=0.2)) == "Linf"
    assert name(ThreatModel(norm="Linf", epsilon=0.1)) == "Linf-0.1"
    assert name(ThreatModel(norm="Linf", epsilon=4 / 255)) == "Linf-4-255"
    assert name(ThreatModel(norm="L1", epsilon=12.0)) == "L1-12"
    assert board_name("cifar10", Evaluation(protocol="corruptions")) == "corruptions"
    # As in every version so far.
    for epsilon, board in (
        (8 / 255, "Linf-8-255"),
        (1 / 255, "Linf-1-255"),
        (0.15, "Linf-0.15"),
        (0.031, "Linf-0.031"),
        (1.0, "Linf-1"),
        (1e-5, "Linf-1e-05"),
        (9e-5, "Linf-9e-05"),
        (0.123456, "Linf-0.123456"),
    ):
        assert name(ThreatModel(norm="Linf", epsilon=epsilon)) == board
    assert name(ThreatModel(norm="L2", epsilon=0.5)) == "L2-0.5"


WIDEST = {"Linf": 1.0, "L2": 387.98, "L1": 150_528.0}
BUDGETS = st.floats(min_value=0, max_value=1, exclude_min=True)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["Linf", "L2", "L1"]), st.sampled_from(sorted(DATASETS)), BUDGETS, st.integers(0, 2))
@example("Linf", "cifar10", 8 / 255, 1)
@example("Linf", "cifar10", 8 / 255 + 1e-12, 1)
@example("Linf", "digits", 1 / 3, 0)
@example("Linf", "digits", 1e-10, 0)
@example("L1", "imagenet", 5e-324, 0)
@example("L2", "cifar10", 0.1234567891, 0)
def test_a_boards_name_leads_back_to_its_budget(norm: Any, dataset: str, share: float, kind: int) -> None:
    """Anything that a number can be, in the whole range, near the fractions and near the data set's own."""
    near = {1: round(share * 255) / 255 or 1 / 255, 2: DATASETS[dataset].epsilon.get(norm, 0.5)}
    epsilon = share * WIDEST[norm] if kind == 0 else near[kind] * (1 + (share - 0.5) * 1e-7)
    assume(0 < epsilon <= WIDEST[norm])
    threat_model = ThreatModel(norm=norm, epsilon=epsilon)
    board = board_name(dataset, Evaluation(threat_model=threat_model))
    assert threat_model_of_board(dataset, board) == threat_model
    assert len(board) <= 50
    assert re.fullmatch(r"[A-Za-z0-9.+-]+", board)
    numerator, _, denominator = format_epsilon(epsilon).partition("/")
    assert float(numerator) / float(denominator or 1) == epsilon


@settings(max_examples=200, deadline=None)
@given(st.text("Linf L20123456789.e+-/", max_size=60) | st.text(max_size=20))
def test_any_other_name_is_none_or_one_that_can_be(name: str) -> None:
    for text in (name, f"Linf-{name}", f"L2-{name}"):
        found = threat_model_of_board("digits", text)
        assert found is None or 0 < found.epsilon < math.inf


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"protocol": "Standard"}, "'standard', 'plus'"),
        ({"protocol": "custom"}, "needs attacks; name some of apgd-ce"),
        ({"protocol": "custom", "attacks": []}, "needs attacks; name some of apgd-ce"),
        ({"protocol": "custom", "attacks": ["pgd"]}, "'apgd-ce'"),
        ({"protocol": "custom", "attacks": ["square", "square"]}, "names one twice"),
        ({"attacks": ["square"]}, "attacks are for the protocol 'custom'; 'standard' has its own"),
        ({"threat_model": None}, "'standard' needs a threat_model, such as"),
        ({"protocol": "clean"}, "'clean' has no threat_model; leave it out"),
        ({"protocol": "corruptions"}, "'corruptions' has no threat_model; leave it out"),
        ({"protocol": "corruptions", "threat_model": None}, "no corrupted version of digits"),
        ({"threat_model": {"norm": "L1", "epsilon": 65.0}}, "exceeds 64, the largest L1 distance"),
    ],
)
def test_an_evaluation_that_would_mislead_is_refused(evaluation: dict[str, Any], says: str) -> None:
    spec = {
        "kind": "evaluate",
        "name": "x",
        "dataset": "digits",
        "architecture": "small_cnn",
        "weights": "0" * 64,
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.2}, **evaluation},
    }
    with pytest.raises(ValidationError, match=re.escape(says)):
        JOB_SPEC.validate_python(spec)


def test_published_weights_are_those_of_the_zoo() -> None:
    spec = {
        "kind": "evaluate",
        "name": "x",
        "dataset": "cifar10",
        "architecture": "cifar10/Linf/Carmon2019Unlabeled",
        "weights": "robustbench",
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": "8/255"}},
    }
    assert JOB_SPEC.validate_python(spec)
    with pytest.raises(ValidationError, match="not of 'resnet_18'; give the sha256 of a file"):
        JOB_SPEC.validate_python(spec | {"architecture": "resnet_18"})


def test_l1_is_for_evaluations() -> None:
    with pytest.raises(ValidationError, match="train under 'Linf' or 'L2'"):
        JOB_SPEC.validate_python(changed("threat_model", {"norm": "L1", "epsilon": 1.0}))


def test_a_training_names_the_evaluation_that_follows() -> None:
    spec = digits()
    follow_up = spec.follow_up("a" * 64)
    assert follow_up == EvaluateSpec(
        name=spec.name, dataset="digits", architecture="small_cnn", weights="a" * 64, evaluation=spec.evaluation
    )
    alone = TrainSpec.model_validate(spec.model_dump() | {"evaluation": None})
    assert alone.follow_up("a" * 64) is None


def test_a_mistyped_recipe_is_offered_its_neighbors() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'digits'"):
        recipe("digit")


def test_published_weights_are_of_one_network() -> None:
    spec = {
        "kind": "evaluate",
        "name": "a",
        "dataset": "cifar10",
        "architecture": "cifar10/Linf/Carmon2019Unlabeled",
        "weights": "robustbench",
        "evaluation": {"protocol": "clean"},
        "weights_key": "ema",
    }
    with pytest.raises(ValidationError, match="leave it out with weights 'robustbench'"):
        EvaluateSpec.model_validate(spec)
    with pytest.raises(ValidationError, match="one printable line"):
        EvaluateSpec.model_validate(spec | {"weights": "a" * 64, "weights_key": "a\u202eb"})
    assert EvaluateSpec.model_validate(spec | {"weights": "a" * 64}).weights_key == "ema"

"""The command line by hand: help, the engine without a service, one sentence for each mistake."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import cli, main
from gkl.files import sha256_of
from gkl.models import build_model
from gkl.recipes.adversarial import digits_ce
from gkl.spec import EvaluateSpec
from tests.commands import run
from tests.specs import tiny_train_spec

COMMANDS = [
    "up",
    "demo",
    "serve",
    "worker",
    "relay",
    "migrate",
    "check_settings",
    "health",
    "storage",
    "list",
    "status",
    "logs",
    "board",
    "doctor",
    "import_robustbench",
    "export_robustbench",
    "submit",
    "attack",
    "transfer",
    "completion",
    "cancel",
    "retry",
    "recipe",
    "train",
    "evaluate",
    "verify",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name.replace("_", "-"), "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output


def test_all_commands_are_listed() -> None:
    commands = get_command(cli).commands  # type: ignore[attr-defined]
    names = [name.replace("-", "_") for name, command in commands.items() if not command.hidden and name != "token"]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.system
def test_plain_training_without_a_service(tmp_path: Path) -> None:
    spec = digits_ce().model_copy(update={"architecture": "tiny_cnn", "epochs": 2, "evaluation": None})
    done = run("train", "-", "--output", tmp_path, "--device", "cpu", stdin=spec.model_dump_json())
    assert done.returncode == 0, done.stderr
    assert re.search(r"epoch    2 of 2: loss \d\.\d{3}, clean \d+\.\d %, learning rate 0\.05\n", done.stdout)


@pytest.mark.system
def test_train_and_evaluate_without_a_service(tmp_path: Path) -> None:
    spec = tiny_train_spec()
    done = run("train", "-", "--output", tmp_path, "--device", "cpu", stdin=spec.model_dump_json())
    assert done.returncode == 0, done.stderr
    for text in ("epoch    2 of 2", "APGD-CE", "clean  accuracy", "robust accuracy"):
        assert text in done.stdout
    weights = tmp_path / "weights.safetensors"
    follow_up = spec.follow_up(sha256_of(weights))
    assert isinstance(follow_up, EvaluateSpec)
    (tmp_path / "evaluate.json").write_text(follow_up.model_dump_json())
    arguments = ["evaluate", tmp_path / "evaluate.json", "--weights", weights, "--device", "cpu", "--output"]
    again = run(*arguments, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    verdict = [line for line in done.stdout.splitlines() if "robust accuracy" in line]
    assert [line for line in again.stdout.splitlines() if "robust accuracy" in line] == verdict

    certificate = tmp_path / "again" / "certificate.safetensors"
    proven = run("verify", certificate, "--weights", weights)
    assert proven.returncode == 0, proven.stderr
    assert "It holds: " in proven.stdout
    assert "robust accuracy at most" in proven.stdout
    certificate.write_bytes(certificate.read_bytes()[:-1] + b"\x7f")
    tampered = run("verify", certificate, "--weights", weights)
    assert tampered.returncode == 1
    assert "certificate.safetensors does not hold: " in tampered.stderr

    # The spec need not name the weights that stand beside it; shards are put together by the same command.
    (tmp_path / "evaluate.json").write_text(follow_up.model_dump_json(exclude={"weights"}))
    part = run(*arguments, tmp_path / "shards", "--shard", "1/1")
    assert part.returncode == 0, part.stderr
    assert "Shard 1/1 is done" in part.stdout
    merged = run(*arguments, tmp_path / "shards")
    assert [line for line in merged.stdout.splitlines() if "robust accuracy" in line] == verdict


@pytest.mark.system
def test_which_network_of_a_file_is_asked_and_told(tmp_path: Path) -> None:
    networks = {key: build_model("tiny_cnn", "digits").state_dict() for key in ("state_dict", "state_dict_ema")}
    torch.save(networks, tmp_path / "model.pt")
    (tmp_path / "evaluate.json").write_text(
        '{"kind": "evaluate", "name": "a", "dataset": "digits", "architecture": "tiny_cnn", '
        '"evaluation": {"threat_model": {"epsilon": 0.9}, "num_points": 20}}'
    )
    common = ["--weights", tmp_path / "model.pt", "--device", "cpu"]
    arguments = ["evaluate", tmp_path / "evaluate.json", *common, "--output", tmp_path / "run"]
    asked = run(*arguments)
    assert asked.returncode == 1
    assert "model.pt holds 2 networks that fit the architecture, at 'state_dict', 'state_dict_ema'" in asked.stderr
    done = run(*arguments, "--weights-key", "state_dict_ema")
    assert done.returncode == 0, done.stderr
    assert "weights: the file's network at 'state_dict_ema' was loaded" in done.stdout
    # The parts there are of one network, and the certificate knows which.
    other = run(*arguments, "--weights-key", "state_dict")
    assert "its weights_key is 'state_dict_ema', not 'state_dict'" in other.stderr
    proven = run("verify", tmp_path / "run" / "certificate.safetensors", *common)
    assert proven.returncode == 0, proven.stderr
    swapped = {key: networks[other] for key, other in zip(networks, reversed(networks), strict=True)}
    torch.save(swapped, tmp_path / "model.pt")
    assert run("verify", tmp_path / "run" / "certificate.safetensors", *common).returncode == 1
    train = run("submit", "-", "--weights-key", "ema", stdin=tiny_train_spec().model_dump_json())
    assert "is not an evaluation; --weights-key is for evaluations only" in train.stderr


def test_recipe_prints_a_spec_that_is_one() -> None:
    done = run("recipe", "digits")
    assert json.loads(done.stdout)["dataset"] == "digits"


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        (["recipe", "digit"], None, "unknown recipe 'digit'; did you mean 'digits'"),
        (["train", "SPEC"], "{", "is not JSON"),
        (["train", "SPEC"], "[" * 100_000, "nested too deeply for a spec"),
        (["train", "absent.json"], None, "absent.json cannot be read (No such file or directory)"),
        (["train", "SPEC"], '{"kind": "evaluate"}', "weights: field required."),
        (["submit", "SPEC"], "VALID", "no service answers at http://127.0.0.1:1"),
        (["train", "SPEC", "--output", "/proc/nowhere"], "VALID", "nothing can be written to /proc/nowhere"),
        (["train", "SPEC", "--device", "cuda:9"], "VALID", "the device 'cuda:9' cannot be used here"),
        (["train", "SPEC", "--device", "nonsense"], "VALID", "the device 'nonsense' cannot be used here"),
        (["evaluate", "SPEC", "--weights", "w"], "VALID", "is a spec of kind 'train'; use 'gklbench train'"),
        (["evaluate", "SPEC", "--weights", "w"], "EVALUATE", "there is no file w; name the weights to attack"),
        (["evaluate", "SPEC", "--shard", "0/3"], "EVALUATE", "there is no shard 0 of 3; take 1 to 3"),
        (["evaluate", "SPEC", "--shard", "half"], "EVALUATE", "--shard is a number of a total, such as 1/3"),
        (["evaluate", "SPEC"], "EVALUATE", f"the spec asks for weights {'0' * 64}; name their file"),
        (["verify", "absent", "--weights", "w"], None, "there is no file absent; name a certificate"),
        (["verify", "SPEC", "--weights", "SPEC"], "VALID", "cannot be read as safetensors"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    content: str | None,
    says: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: another one for each would spend its time on importing torch."""
    path = tmp_path / "spec.json"
    specs = {"VALID": tiny_train_spec(), "EVALUATE": tiny_train_spec().follow_up("0" * 64)}
    spec = specs.get(content or "")
    path.write_text(content or "" if spec is None else spec.model_dump_json())
    if arguments[0] == "submit":
        arguments = [*arguments, "--url", "http://127.0.0.1:1"]
    if arguments[0] in ("train", "evaluate") and "--output" not in arguments:
        arguments = [*arguments, "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["gklbench", *(str(path) if a == "SPEC" else a for a in arguments)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("gklbench: ")
    assert says in error


@pytest.mark.system
def test_a_terminal_that_cannot_show_a_letter_gets_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"kind": "train", "name": "Имя", "datasett": "Данные"}', encoding="utf-8")
    for source in (["train", path], ["train", "-"]):
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *map(str, source), "--output", tmp_path / "Имя"],
            env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"},
            input=path.read_bytes(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert b"is not a valid spec" in done.stderr
    absent = subprocess.run(
        [sys.executable, "-m", "app.cli", "train", tmp_path / "Имя.json"],
        env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert absent.returncode == 1
    assert absent.stderr.startswith(b"gklbench: ")
    assert b"???.json cannot be read" in absent.stderr


def test_a_database_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GKLBENCH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GKLBENCH_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    done = run("migrate")
    assert done.returncode == 1
    assert "gklbench: the database cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_is_nonsense_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKLBENCH_PORT", "eighty")
    done = run("migrate")
    assert done.returncode == 1
    assert "gklbench: GKLBENCH_PORT: input should be a valid integer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_asks_this_command(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_GKLBENCH_COMPLETE=complete_{shell}" in done.stdout


def test_a_shell_completes_commands_options_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_GKLBENCH_COMPLETE", "complete_bash")
    for words, number, expected in (
        ("gklbench exp", "1", ["export-robustbench"]),
        ("gklbench submit --we", "2", ["--weights", "--weights-key"]),
        ("gklbench list data", "2", ["datasets"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", number)
        assert run("completion").stdout.split() == expected

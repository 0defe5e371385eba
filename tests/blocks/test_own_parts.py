"""Parts of your own: what names and identifies them, what is checked before they train, and when their code runs."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.storage import create_study
from ablations.engine.worker import Job, work
from lit_simplified import BlockConfig, ConfigError, ModelConfig, RunConfig, Transformer, build_block, fit
from lit_simplified.__main__ import NOT_OF_RUN, build_parser, main, with_preset
from lit_simplified.blocks import own as loading
from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.check import check_own
from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.blocks.own import load_class
from lit_simplified.checkpoint import load_model, read_config
from lit_simplified.config import (
    CHOICES,
    PRESETS,
    SWITCHES,
    DataConfig,
    OptimConfig,
    TrainerConfig,
    allow,
    block_id,
    checked_fields,
    describe,
    from_dict,
    from_record,
    in_setting,
    own,
    own_files,
    parse_assignments,
    plain,
    preset_of,
    run_id,
    set_fields,
    to_dict,
)
from lit_simplified.config.own import digest_bytes
from lit_simplified.finetuning.checkpoint import read_checkpoint
from lit_simplified.generate import draw, generate
from lit_simplified.inspection.board import block_text, experiment, hyperparameters, layout
from lit_simplified.inspection.snapshot import load_snapshots
from lit_simplified.inspection.subjects import parse_blocks
from lit_simplified.module import LitTransformer

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from lit_simplified.blocks import NO_CONTEXT, Context
from lit_simplified.blocks.attention import SoftmaxMixing, attend
"""
GOOD = HEAD + '''
class Mix(nn.Module):
    """Softmax attention with a trained temperature per head."""
    def __init__(self, *, heads, width, causal):
        super().__init__()
        self.causal = causal
        self.heat = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, query, key, value, context=NO_CONTEXT):
        return attend(query * self.heat, key, value, causal=self.causal, context=context)


class Norm(nn.Module):
    def __init__(self, *, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x, context=NO_CONTEXT):
        return torch.tanh(x) * self.weight


class Squared(nn.Module):
    def forward(self, x):
        return x.relu() ** 2


class Block(nn.Module):
    """With a parameter of its own, and none of the project's parts."""
    def __init__(self, *, width, index, causal):
        super().__init__()
        self.index, self.causal = index, causal
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.mix = nn.Linear(width, width)

    def forward(self, x, context=NO_CONTEXT):
        attention_mask = 1.0 if context.attention_mask is None else context.attention_mask[..., None]
        total = (x * attention_mask).cumsum(1) if self.causal else (x * attention_mask).sum(1, keepdim=True)
        return x + self.scale * self.mix(total / x.shape[1])
'''
CLASSES = {"attention": "Mix", "norm": "Norm", "activation": "Squared", "own": "Block"}
SMALL = ModelConfig(depth=2, width=16, heads=2, vocab_size=32, context=8)
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget what was named and loaded, as a new process would: before every test, and when it is called."""

    def forget() -> None:
        monkeypatch.setattr(own, "_ALLOWED", {})
        monkeypatch.setattr(loading, "_MODULES", {})

    forget()
    return forget


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file in the current folder; gives its name."""
    monkeypatch.chdir(tmp_path)

    def written(text: str = GOOD, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return name

    return written


def block_of(field: str, file: str = "mine.py", **fields: Any) -> BlockConfig:
    return BlockConfig(**{field: f"{file}:{CLASSES[field]}"}, **fields)


# What a configuration holds.


@pytest.mark.parametrize("field", CLASSES)
def test_a_spec_gets_the_digest_of_its_file(write: Write, field: str) -> None:
    write()
    digest = digest_bytes(GOOD.encode())
    block = block_of(field)
    assert getattr(block, field) == f"mine.py:{CLASSES[field]}@{digest}"
    assert len(digest) == 12
    assert block == block_of(field, "./mine.py")
    assert from_dict(BlockConfig, to_dict(block)) == block
    Path("mine.py").unlink()
    assert replace(block, dropout=0.1) == replace(block, dropout=0.1)  # with a digest the file is not read


def test_the_digest_is_in_the_names_of_runs_and_blocks(write: Write) -> None:
    write()
    runs = [RunConfig(model=ModelConfig(block=block_of("norm")))]
    write(GOOD + "\n# another thought\n")
    runs.append(RunConfig(model=ModelConfig(block=block_of("norm"))))
    assert len({run_id(run) for run in runs}) == len({block_id(run.model.block) for run in runs}) == 2
    assert {describe(run.model.block) for run in runs} == {"seq-skips-softmax-vL-pL-Norm"}
    assert run_id(runs[0]).startswith("seq-skips-softmax-vL-pL-Norm-s0-")
    assert preset_of(runs[0].model.block) == ""


def test_names_are_safe_in_files(write: Write) -> None:
    write(HEAD + "class Größe(nn.Identity): ...\n")
    assert describe(BlockConfig(attention="mine.py:Größe")) == "seq-skips-Gr__e-vL-pL-rms"


@pytest.mark.parametrize("field", ["attention", "norm", "activation"])
@pytest.mark.parametrize("value", ["flash", "mine:Mix", "mine.py", "Mix"])
def test_what_is_neither_a_position_nor_a_spec_is_refused(field: str, value: str) -> None:
    positions = ", ".join(map(str, CHOICES[field].positions))
    told = f"block.{field}='{value}': choose one of {positions}, or FILE.py:CLASS of your own"
    with pytest.raises(ConfigError) as refused:
        BlockConfig(**{field: value})
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("none.py:Mix", r"block\.attention='none\.py:Mix': .*no such file"),
        ("mine.py:1Mix", "is no name of a class: write FILE.py:CLASS"),
        ("mine.py:", "is no name of a class"),
        ("mine.py:Mix@123", "choose one of softmax"),
    ],
)
def test_a_spec_that_names_nothing_is_refused(write: Write, spec: str, told: str) -> None:
    write()
    with pytest.raises(ConfigError, match=told):
        BlockConfig(attention=spec)


def test_only_some_fields_take_a_part_of_your_own(write: Write) -> None:
    spec = f"{write()}:Mix"
    for field in ("layout", "value", "projection", "mlp_skip"):
        with pytest.raises(ConfigError, match=f"block.{field}"):
            BlockConfig(**{field: spec})
    with pytest.raises(ConfigError, match=r"block\.own='softmax': write FILE\.py:CLASS"):
        BlockConfig(own="softmax")


def test_a_switch_makes_a_position_of_a_spec(write: Write) -> None:
    write(HEAD + "class LinearAttention(nn.Identity): ...\n")
    block = BlockConfig(attention="mine.py:LinearAttention")
    position = SWITCHES["attention"][block.attention]
    assert (str(position), position.words, position.short) == (block.attention, "LinearAttention", "LinearAttention")
    assert (position.symbol, position.absent, position.grid) == ("LinearA…", False, False)
    assert block.attention not in SWITCHES["attention"].names
    with pytest.raises(KeyError):
        SWITCHES["layout"][block.attention]
    assert not block.identity_like
    assert block.resolved_query_init == "normal"


def test_a_whole_block_leaves_nothing_to_its_parts(write: Write) -> None:
    write()
    block = block_of("own")
    assert block == block_of("own", attention="shaped", value="identity", mlp_ratio=2.0)  # one model, one configuration
    assert block != block_of("own", norm="layer")  # the norm before the head
    assert describe(block) == "Block"
    assert block_id(block).startswith("Block-")
    assert plain(in_setting(block, "mlm")) == block


@pytest.mark.parametrize("field", CLASSES)
def test_the_setting_of_a_task_leaves_a_part_of_your_own(write: Write, field: str) -> None:
    write()
    block = block_of(field)
    assert getattr(in_setting(block, "mlm"), field) == getattr(block, field)
    assert plain(in_setting(block, "mlm")) == block


def test_flags_files_assignments_and_blocks_of_signal_name_a_part(write: Write, tmp_path: Path) -> None:
    write()
    wanted = block_of("attention")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"preset": "pre_ln", "model": {"block": {"attention": "mine.py:Mix"}}}))

    def parsed(*arguments: str) -> BlockConfig:
        options = build_parser().parse_args(with_preset(["fit", *arguments])).fit.as_dict()
        return from_dict(RunConfig, {k: v for k, v in options.items() if k not in NOT_OF_RUN}).model.block

    assert parsed("--model.block.attention=mine.py:Mix") == parsed("--config", str(file)) == wanted
    assert parsed("--model.block.own=mine.py:Block") == block_of("own")
    for values in (
        parse_assignments(RunConfig, ["model.block.attention=mine.py:Mix"], where="set"),
        checked_fields(RunConfig, {"model.block.attention": "mine.py:Mix"}),
    ):
        assert set_fields(RunConfig(), values).model.block == wanted
    assert parse_blocks(["pre_ln,attention=mine.py:Mix"]) == {"pre_ln,attention=mine.py:Mix": wanted}


def test_help_lists_the_positions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Literal['rms', 'layer', 'none']" in text
    assert "A whole block of your own, FILE.py:CLASS" in text


def test_reading_configurations_needs_no_torch(write: Write) -> None:
    write()
    code = (
        "import sys; from lit_simplified.config import BlockConfig, own_files, RunConfig, ModelConfig;"
        "print(own_files(RunConfig(model=ModelConfig(block=BlockConfig(norm='mine.py:Norm')))), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == f"('{Path('mine.py').absolute()}',) False"


# Whose code runs.


@pytest.mark.parametrize("field", CLASSES)
def test_a_model_with_a_part_of_your_own(write: Write, field: str) -> None:
    write()
    config = replace(SMALL, block=block_of(field, glu=field == "activation"))
    check_own(config)
    model = Transformer(config)
    assert sum(type(part).__name__ == CLASSES[field] for part in model.modules()) == {"norm": 5}.get(field, 2)
    model(torch.zeros(2, 8, dtype=torch.int64)).sum().backward()
    block = build_block(config.block, width=16, heads=2, index=0, depth=2)
    assert block(torch.randn(1, 5, 16)).shape == (1, 5, 16)


def test_a_file_is_executed_once(write: Write) -> None:
    write(f"print('executed')\n{GOOD}")
    spec = block_of("norm").norm
    first = load_class(spec, field="norm")
    write("raise RuntimeError")
    assert load_class(spec, field="norm") is first  # what a run has begun with stays
    assert first.__module__ in sys.modules


@pytest.mark.parametrize("field", CLASSES)
def test_a_recorded_configuration_runs_no_code(write: Write, field: str, new_process: Callable[[], None]) -> None:
    write()
    config = replace(SMALL, block=block_of(field))
    values = to_dict(config)
    new_process()
    recorded = from_record(ModelConfig, values)
    assert recorded == config
    told = rf"block\.{field}='mine\.py:{CLASSES[field]}@.*name the file again, with --own mine\.py"
    for build in (Transformer, check_own):
        with pytest.raises(ConfigError, match=told):
            build(recorded)
    with pytest.raises(ConfigError, match=told):
        fit(RunConfig(model=recorded))
    with pytest.raises(ConfigError, match=told):
        build_block(recorded.block, width=16, heads=2, index=0, depth=2)
    with pytest.raises(ConfigError, match=told):
        LitTransformer(to_dict(RunConfig(model=recorded)))
    allow("mine.py")
    Transformer(recorded)


def test_a_record_without_a_digest_names_nothing(write: Write) -> None:
    write()
    values = to_dict(RunConfig())
    values["model"]["block"]["norm"] = "mine.py:Norm"
    with pytest.raises(ConfigError, match=r"block\.norm='mine\.py:Norm': a recorded configuration has the digest"):
        from_record(RunConfig, values)
    with pytest.raises(ConfigError, match="a recorded configuration has the digest"):
        LitTransformer(values)
    assert own._ALLOWED == {}
    assert from_dict(RunConfig, values).model.block == block_of("norm")  # but a user who writes it has named it


def test_a_changed_file_is_refused(write: Write, new_process: Callable[[], None]) -> None:
    write()
    block = block_of("attention")
    write(GOOD + "\n")
    then, now = digest_bytes(GOOD.encode()), digest_bytes(f"{GOOD}\n".encode())
    told = rf"mine\.py has changed since \(digest {then} then, {now} now\)"
    with pytest.raises(ConfigError, match=told):
        Transformer(replace(SMALL, block=block))
    new_process()
    allow("mine.py:Mix")
    with pytest.raises(ConfigError, match=told):
        Transformer(replace(SMALL, block=block))
    Path("mine.py").unlink()
    with pytest.raises(ConfigError, match=r"mine\.py is gone"):
        Transformer(replace(SMALL, block=block))
    with pytest.raises(ConfigError, match=r"own='mine\.py': .*no such file"):
        allow("mine.py")


def test_a_file_may_be_named_at_another_place(write: Write, tmp_path: Path, new_process: Callable[[], None]) -> None:
    write()
    run = RunConfig(model=replace(SMALL, block=block_of("attention")))
    assert own_files(run) == (str(tmp_path / "mine.py"),)
    new_process()
    Path("mine.py").rename("moved.py")
    allow(tmp_path / "moved.py")
    assert own_files(run) == (str(tmp_path / "moved.py"),)
    Transformer(run.model)
    assert own_files(RunConfig()) == ()


# What is checked.

MIXING = """
class Mix(nn.Module):
    def __init__(self, *, heads, width, causal):
        super().__init__()
        self.causal = causal
        self.gain = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, query, key, value, context=NO_CONTEXT):
        {body}
"""
ATTEND = "attend(query, key, value, causal=self.causal, context=context)"
BODIES = [
    ("return value + self.gain * value.mean(2, keepdim=True)", "output at position 0 depends on value 1: the model is"),
    ("return value * (1 + self.gain) + key.flip(2)", r"output at position 0 depends on key 11"),
    (f"return {ATTEND}", "no gradient reaches the parameter gain"),
    (f"return {ATTEND} * self.gain.detach() + self.gain * 0", "no gradient reaches the parameter gain"),
    (f"return self.gain * {ATTEND}.detach()", "no gradient reaches the input"),
    (f"return self.gain * {ATTEND}[..., :-1]", r"shape \(2, 2, 12, 8\) and type torch.float32 gives \(2, 2, 12, 7\)"),
    (f"return (self.gain * {ATTEND}).double()", "torch.float64: return what is shaped like the input"),
    (f"return ({ATTEND}, self.gain)", "forward gives a tuple: return one tensor"),
    (f"return {ATTEND} / self.gain", "the output is not finite"),
    ("return (value - value).sqrt() + self.gain * value", "the gradient of the value is not finite"),
    ("return self.gain @ value", r"Mix raises RuntimeError: .*\(.*mine\.py, line 15\)"),
]


@pytest.mark.parametrize(("body", "told"), BODIES)
def test_a_mixing_that_does_not_hold_is_refused(write: Write, body: str, told: str) -> None:
    write(HEAD + MIXING.format(body=body))
    with pytest.raises(ConfigError, match=rf"block\.attention='mine\.py:Mix@[0-9a-f]{{12}}': .*{told}") as refused:
        check_own(replace(SMALL, context=16, block=block_of("attention")))
    assert "\n" not in str(refused.value)


def test_what_is_seen_is_where_it_is(write: Write) -> None:
    write(HEAD + MIXING.format(body=(
        "late = torch.zeros_like(value); late[:, :, 3] = value[:, :, 5]\n"
        "        return value + (1 + self.gain) * late"
    )))
    with pytest.raises(ConfigError, match="output at position 3 depends on value 5"):
        check_own(replace(SMALL, block=block_of("attention")))


def test_padding_concerns_the_masked_task_alone(write: Write) -> None:
    write(HEAD + MIXING.format(body="return (1 + self.gain) * attend(query, key, value, causal=self.causal)"))
    config = replace(SMALL, block=block_of("attention"))
    check_own(config)
    said = r"output at position \d changes with inputs at padding.*context\.attention_mask"
    with pytest.raises(ConfigError, match=said):
        check_own(replace(config, causal=False))
    write(HEAD + MIXING.format(body=f"return (1 + self.gain) * {ATTEND}"))
    check_own(replace(SMALL, block=block_of("attention"), causal=False))


SIGNATURES = [
    ("norm", "def __init__(self, *, width, heads):\n        super().__init__()", "requires 'heads', which it is not"),
    ("activation", "def __init__(self, slope):\n        super().__init__()", "requires 'slope', which it is not"),
    ("own", "def __init__(self, *, width):\n        super().__init__()\n        self.w = wdith", r"Error: .*line 11\)"),
    ("norm", "def forward(self, x, context):\n        return x", "missing a required argument: 'context'"),
    ("norm", "def forward(self, x):\n        return x", r"write forward\(self, x, context=NO_CONTEXT\)"),
    ("activation", "def forward(self, x, y):\n        return x", r"write forward\(self, x\)"),
    ("attention", "def forward(self, x, context=NO_CONTEXT):\n        return x", r"write forward\(self, query, key, v"),
    ("own", "def forward(self, x, context=NO_CONTEXT):\n        return x.mean(1, True) + x", "depends on input 1"),
    ("norm", "def forward(self, x, context=NO_CONTEXT):\n        return x - x.mean((0, 1))", "depends on input"),
    ("activation", "def forward(self, x):\n        return x - x.mean(1, keepdim=True)", "depends on input"),
]


@pytest.mark.parametrize(("field", "method", "told"), SIGNATURES)
def test_a_class_that_does_not_fit_its_field_is_refused(write: Write, field: str, method: str, told: str) -> None:
    write(f"{HEAD}\nclass {CLASSES[field]}(nn.Module):\n    {method}\n")
    with pytest.raises(ConfigError, match=rf"block\.{field}=.*{told}"):
        check_own(replace(SMALL, block=block_of(field)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Mix: ...", "Mix is no nn.Module in mine.py: its modules are|it has none"),
        ("Mix = 3", r"Mix is no nn.Module in mine.py: it has none: write class NAME\(nn.Module\)"),
        ("from torch import nn\nclass Other(nn.Identity): ...", "Mix is not there in mine.py: its modules are Other"),
        ("import torch\nclass Mix(\n", r"Mix raises SyntaxError: .*mine\.py, line 2\)"),
        ("x = 1\ny = x / 0", r"Mix raises ZeroDivisionError: division by zero \(.*mine\.py, line 2\)"),
    ],
)
def test_a_file_that_does_not_serve_is_refused(write: Write, text: str, told: str) -> None:
    write(text)
    with pytest.raises(ConfigError, match=rf"block\.attention='mine\.py:Mix@.*{told}"):
        check_own(replace(SMALL, block=block_of("attention")))


def test_a_constructor_may_take_any_keywords(write: Write) -> None:
    write(f"""{HEAD}
class Norm(nn.Module):
    def __init__(self, **given):
        super().__init__()
        assert sorted(given) == ["eps", "width"]

    def forward(self, x, context=NO_CONTEXT):
        return x
""")
    check_own(replace(SMALL, block=block_of("norm")))


def test_the_check_takes_no_random_numbers_and_no_time(write: Write) -> None:
    write()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_own(ModelConfig(block=block_of("attention"), depth=24, width=4096, heads=32, context=8192))
    check_own(ModelConfig())
    assert torch.equal(torch.rand(4), expected)


# What follows a training.


@pytest.fixture
def run(corpus: DataConfig, write: Write, tmp_path: Path) -> RunConfig:
    write()
    return RunConfig(
        model=ModelConfig(block=block_of("attention"), depth=2, width=16, heads=2, vocab_size=300, context=16),
        data=corpus, optim=OptimConfig(steps=4, learning_rate=1e-2), out_dir=str(tmp_path / "runs"),
        trainer=TrainerConfig(
            accelerator="cpu", val_every=2, log_every=1, checkpoint_every=2, inspect_every=2, progress_bar=False,
            threads=1,
        ),
    )


@pytest.mark.parametrize("field", CLASSES)
@pytest.mark.parametrize("task", ["clm", "mlm"])
def test_fit(run: RunConfig, field: str, task: str) -> None:
    block = in_setting(block_of(field), task)  # type: ignore[arg-type]
    config = replace(run, task=task, model=replace(run.model, block=block))  # type: ignore[arg-type]
    result = fit(config)
    assert result.state == "complete"
    assert result.curve[0].val_loss != result.curve[-1].val_loss
    first, *_ = load_snapshots(Path(result.run_dir))
    assert bool(first.weights) == (field in ("norm", "activation"))  # else there is no attention matrix
    assert not first.heads
    assert "signal/block_01/cosine" in first.scalars
    assert ("update/block_01/block" in load_snapshots(Path(result.run_dir))[-1].scalars) == (field == "own")


def test_fit_checks_before_it_makes_a_folder(run: RunConfig, write: Write) -> None:
    write(HEAD + MIXING.format(body="return value * self.gain + value.mean(2, keepdim=True)"))
    with pytest.raises(ConfigError, match="depends on value 1"):
        fit(replace(run, model=replace(run.model, block=block_of("attention"))))
    assert not Path(run.out_dir).exists()


def test_an_interrupted_run_goes_on_if_its_file_is_named(run: RunConfig, new_process: Callable[[], None]) -> None:
    whole = fit(replace(run, out_dir=f"{run.out_dir}-whole"))

    def crash(point: Any) -> None:
        if point.step == 4:
            raise KeyError("a crash")

    with pytest.raises(KeyError):
        fit(run, on_validation=crash)
    new_process()
    file = Path(run.out_dir, run_id(run), "config.yaml")
    arguments = ["fit", "--config", str(file), "--out_dir", run.out_dir]
    with pytest.raises(SystemExit, match=r"name the file again, with --own mine\.py"):
        main(arguments)
    assert (file.parent / "checkpoints" / "last.ckpt").is_file()  # nothing was lost by the refusal
    main([*arguments, "--own", "mine.py"])
    again = yaml.safe_load((file.parent / "result.json").read_text())
    assert again["val_loss"] == pytest.approx(whole.val_loss)


def test_readers_of_checkpoints_ask_for_the_file(
    run: RunConfig, capsys: pytest.CaptureFixture[str], new_process: Callable[[], None]
) -> None:
    folder = fit(run).run_dir
    new_process()
    told = r"block\.attention='mine\.py:Mix@.*name the file again, with --own mine\.py"
    for read in (load_model, read_config):
        with pytest.raises(ConfigError, match=told):
            read(Path(folder, "checkpoints", "last.ckpt"))
    with pytest.raises(ConfigError, match=told):
        read_checkpoint(Path(folder))
    with pytest.raises(ConfigError, match=told):
        generate(Path(folder), prompt="def ", tokens=2)
    commands = {
        "generate": ["--prompt", "def ", "--tokens", "3"],
        "signal": ["--tensorboard", "false", "--sequences", "2", "--out", "signal"],
    }
    for command, arguments in commands.items():
        given = [command, "--checkpoint", folder, *arguments]
        with pytest.raises(SystemExit, match=told):
            main(given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main([*given, "--own", "mine.py"])
        new_process()
    assert "def " in capsys.readouterr().out
    csv = Path("signal/signal.csv").read_text()
    assert "seq-skips-Mix-vL-pL-rms,0,2" in csv


def test_fine_tuning_takes_the_file(run: RunConfig, new_process: Callable[[], None]) -> None:
    folder = fit(run).run_dir
    new_process()
    Path("texts").mkdir()
    for split in ("train", "validation"):
        rows = [json.dumps({"sentence": f"value {i % 2}", "label": i % 2, "idx": i}) for i in range(8)]
        Path("texts", f"{split}.jsonl").write_text("\n".join(rows))
    arguments = [
        "finetune", "--checkpoint", folder, "--task", "glue/sst2", "--data_dir", "texts", "--epochs", "1", "--seeds",
        "0", "--out_dir", "scores", "--accelerator", "cpu", "--cache_dir", "cache", "--progress_bar", "false",
    ]
    with pytest.raises(SystemExit, match=r"--own mine\.py"):
        main(arguments)
    main([*arguments, "--own", "mine.py"])
    assert "Mix" in Path("scores/glue/sst2/table.md").read_text()


@pytest.mark.parametrize("named", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_worker_runs_what_its_job_names(run: RunConfig, tmp_path: Path, named: bool) -> None:
    """In a process of its own, which has the run from the study's storage."""
    storage, files = str(tmp_path / "journal.log"), own_files(run)
    study = create_study(storage, name="s", spec={})
    Queue(study, storage=storage, folder=tmp_path).enqueue(
        [QueuedCell("cell", to_dict(run), {"seed": 0, "learning_rate": 1e-2})]
    )
    job = Job(
        study="s", storage=storage, folder=tmp_path, name="worker", threads=1, gpu=None, log=tmp_path / "log",
        cache_dir=run.data.cache_dir, **({"own": files} if named else {}),
    )
    process = multiprocessing.get_context("spawn").Process(target=work, args=(job,))
    process.start()
    process.join()
    attrs = study.trials[0].user_attrs
    if named:
        assert attrs["state"] == "complete"
    else:
        assert attrs["state"] == "failed"
        assert "name the file again, with --own mine.py" in attrs["reason"]


CACHED = """
class Mix(SoftmaxMixing):
    def __init__(self, *, causal, heads):
        super().__init__(causal=causal)
        self.gain = nn.Parameter(torch.full((heads, 1, 1), 2.0))

    def forward(self, query, key, value, context=NO_CONTEXT):
        return self.gain * super().forward(query, key, value, context)
"""
STEP = """
    def step(self, query, value, past):
        return self.gain * super().step(query, value, past)
"""


def test_a_mixing_has_a_cache_if_it_says_how(write: Write) -> None:
    write(HEAD + CACHED)
    with pytest.raises(ConfigError, match="`cached` gives other numbers than forward"):
        check_own(replace(SMALL, block=block_of("attention")))
    write(HEAD + CACHED + "    cached = None\n")
    check_own(replace(SMALL, block=block_of("attention")))
    assert not Transformer(replace(SMALL, block=block_of("attention"))).takes_cache
    write(HEAD + CACHED + STEP)
    check_own(replace(SMALL, block=block_of("attention")))
    assert Transformer(replace(SMALL, block=block_of("attention"))).takes_cache


@pytest.mark.parametrize("field", CLASSES)
def test_without_a_cache_the_whole_text_is_read_again(write: Write, field: str) -> None:
    write()
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, block=block_of(field))).eval()
    assert not model.takes_cache
    options: dict[str, Any] = {"tokens": 12, "temperature": 0, "top_k": 1, "generator": torch.Generator()}
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.warns(UserWarning, match="takes no cache") as warned:
        drawn = torch.cat(list(draw(model, ids, **options)), dim=1)
    assert len(warned) == 1
    assert torch.equal(drawn, torch.cat(list(draw(model, ids, **options, cached=False)), dim=1))
    with pytest.raises(ValueError, match="cannot go on from one"):
        model(ids, kv_cache=KVCache(8))


@pytest.mark.parametrize("field", CLASSES)
def test_tensorboard_shows_a_part_of_your_own(write: Write, field: str) -> None:
    write()
    config = RunConfig(model=replace(SMALL, block=block_of(field)))
    assert CLASSES[field] in block_text(config)
    layout(config)
    row = hyperparameters(config)
    assert row["parameters"] == sum(p.numel() for p in Transformer(config.model).parameters())
    domains = {info.name: [v.string_value for v in info.domain_discrete.values] for info in experiment().hparam_infos}
    if field in SWITCHES:
        assert row[field] == "own"
        assert row[field] in domains[field]
    assert row["preset"] == describe(config.model.block)


def test_the_blocks_of_the_project_are_as_they_were() -> None:
    for block in PRESETS.values():
        assert block.own is None
        model = Transformer(replace(SMALL, block=block))
        assert model.takes_cache
        assert all(hasattr(part.mixing, "cached") for part in model.modules() if isinstance(part, SelfAttention))

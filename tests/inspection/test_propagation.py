"""Signal propagation: what is exactly true at initialisation, the same tokens for all, files, refusals, commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from lit_simplified import PRESETS, BlockConfig, ConfigError, ModelConfig, RunConfig, RunResult
from lit_simplified.__main__ import main
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig
from lit_simplified.datamodules import WindowDataModule
from lit_simplified.inspection.propagation import MEASURES, findings, propagate, run, table, uniform_entropy
from lit_simplified.inspection.subjects import BLOCKS, Request, Subject, list_subjects, parse_blocks, read_windows
from lit_simplified.objectives import CausalLM
from lit_simplified.signals import ATTENTION_MEASURES, TOKEN_MEASURES

pytestmark = pytest.mark.usefixtures("one_thread")
DEPTH = 12


@pytest.fixture(scope="module")
def base(corpus: DataConfig) -> RunConfig:
    model = ModelConfig(depth=DEPTH, width=32, heads=4, vocab_size=300, context=32)
    return RunConfig(model=model, data=corpus)


def measured(base: RunConfig, *blocks: str, seeds: tuple[int, ...] = (0,), sequences: int = 3) -> pd.DataFrame:
    subjects = list_subjects(Request(blocks=blocks, base=base, seeds=seeds))
    return propagate(subjects, read_windows(subjects, sequences=sequences))


def column(frame: pd.DataFrame, block: str, name: str) -> np.ndarray:
    return frame[frame["block"] == block].groupby("depth")[name].mean().to_numpy()


@pytest.fixture(scope="module")
def frame(base: RunConfig) -> pd.DataFrame:
    return measured(base, "pre_ln", "naive_skipless", "sas", "sas,mlp_gain=0", "sas,mlp_skip=false", "sas_p")


def test_skipless_collapses_and_pre_ln_lies_between(frame: pd.DataFrame) -> None:
    naive, pre_ln, sas = (column(frame, block, "cosine") for block in ("naive_skipless", "pre_ln", "sas"))
    assert naive[0] < 0.8
    assert naive[-1] > 0.99
    assert sas[-1] + 0.05 < pre_ln[-1] < naive[-1] - 0.05
    assert column(frame, "naive_skipless", "effective_rank")[-1] < 1.5
    without = column(frame, "sas,mlp_skip=false", "cosine")
    assert pre_ln[-1] < without[-1] < naive[-1]


def test_shaped_attention_alone_moves_no_token(frame: pd.DataFrame) -> None:
    """At initialisation its mixing is the identity: without the MLP branch angles between tokens stay as they were,
    however deep, and nothing but rounding changes behind the first norm."""
    still = frame[frame["block"] == "sas,mlp_gain=0"]
    np.testing.assert_allclose(still["cosine"], still["cosine"].iloc[0], rtol=1e-5)
    for name in TOKEN_MEASURES:
        np.testing.assert_allclose(still[name].iloc[1:], still[name].iloc[1], rtol=1e-5)
    assert still["rms"].iloc[-1] == pytest.approx(1, rel=1e-5)
    for block in ("sas", "sas_p", "sas,mlp_gain=0", "sas,mlp_skip=false"):
        np.testing.assert_allclose(column(frame, block, "identity")[1:], 1, rtol=1e-6)
        np.testing.assert_allclose(column(frame, block, "entropy")[1:], np.log(np.arange(1, 33)).mean(), rtol=1e-6)
    assert column(frame, "pre_ln", "identity")[1:].max() < 0.5


def test_sas_p_equals_sas_at_initialisation_in_all_but_its_gradients(frame: pd.DataFrame) -> None:
    for name in TOKEN_MEASURES:
        np.testing.assert_allclose(column(frame, "sas_p", name), column(frame, "sas", name), rtol=1e-4)


def test_every_block_reads_the_same_tokens(frame: pd.DataFrame, base: RunConfig) -> None:
    """The first block's input depends on the seed, through the embedding, and on nothing else."""
    inputs = frame[frame["depth"] == 0]
    for name in TOKEN_MEASURES:
        assert inputs[name].nunique() == 1
    assert inputs[[*ATTENTION_MEASURES, "gradient_norm"]].isna().all(axis=None)
    assert not frame[frame["depth"] > 0].isna().any(axis=None)
    subjects = list_subjects(Request(blocks=["sas", "pre_ln"], base=base, seeds=[0, 5]))
    windows = read_windows(subjects, sequences=3)
    data = WindowDataModule(base.data, vocab_size=300, context=32, extra=1, seed=0)
    data.setup()
    validation = data.windows["validation"]
    expected = validation.__getitems__([place * len(validation) // 3 for place in range(3)])
    assert torch.equal(windows, expected)
    assert windows.shape == (3, 33)


def test_a_seed_decides_the_initialisation(base: RunConfig) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    frame, again = (measured(base, "pre_ln", seeds=(0, 1)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pd.testing.assert_frame_equal(frame, again)
    first, second = (frame[frame["seed"] == seed].reset_index(drop=True) for seed in (0, 1))
    assert (first["cosine"] != second["cosine"]).all()


def test_gradient_norms_are_those_by_hand(base: RunConfig) -> None:
    (subject,) = list_subjects(Request(blocks=["sas"], base=base, seeds=[2]))
    windows = read_windows([subject], sequences=3)
    found = propagate([subject], windows)["gradient_norm"].to_numpy()[1:]
    model = subject.build()
    logits = model(windows[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    for index, block in enumerate(model.blocks):
        gradients = torch.autograd.grad(
            loss, [p for p in block.parameters() if p.requires_grad], retain_graph=True
        )
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        assert found[index] == pytest.approx(norm, rel=1e-4)


def test_masked_models_hide_the_same_tokens_at_every_seed(base: RunConfig) -> None:
    masked = replace(base, task="mlm", model=replace(base.model, depth=2))
    subjects = list_subjects(Request(blocks=["pre_ln", "sas"], base=masked, seeds=[0, 1]))
    assert not subjects[0].config.model.causal
    windows = read_windows(subjects, sequences=3)
    assert windows.shape == (3, 32)
    seen: list[torch.Tensor] = []
    models = [subject.build() for subject in subjects]
    for subject, model in zip(subjects, models, strict=True):
        model.embedding.register_forward_hook(lambda _, arguments, output: seen.append(arguments[0]))
        propagate([Fixed(label=subject.label, config=subject.config, model=model)], windows)
    assert len(seen) == 4
    assert all(torch.equal(inputs, seen[0]) for inputs in seen)
    assert not torch.equal(seen[0], windows)
    assert uniform_entropy(masked.model) == math.log(32)


class Fixed(Subject):
    """A subject whose model is there already."""

    def __init__(self, *, label: str, config: RunConfig, model: Any) -> None:
        super().__init__(label=label, config=config)
        object.__setattr__(self, "model", model)

    def build(self) -> Any:
        return self.__dict__["model"]


def test_uniform_entropy_is_the_mean_over_positions() -> None:
    assert uniform_entropy(ModelConfig(context=7)) == pytest.approx(np.log(np.arange(1, 8)).mean())


def test_blocks_are_presets_with_changes() -> None:
    kinds = parse_blocks(["sas, mlp_skip=false", "pre_ln,norm=none", "sas_p,mlp_gain=1e-3,query_init=null", "sas"])
    assert list(kinds) == ["sas,mlp_skip=false", "pre_ln,norm=none", "sas_p,mlp_gain=1e-3,query_init=null", "sas"]
    expected = [
        replace(PRESETS["sas"], mlp_skip=False), replace(PRESETS["pre_ln"], norm="none"),
        replace(PRESETS["sas_p"], mlp_gain=0.001), PRESETS["sas"],
    ]
    assert list(kinds.values()) == expected
    assert len(parse_blocks(BLOCKS)) == 8


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (["sas-p"], r"preset='sas-p': choose one of pre_ln"),
        (["sas,mlp_skp=false"], r"blocks='mlp_skp': no such field: the fields are layout"),
        (["sas,mlp_skip"], r"blocks='sas,mlp_skip': write changes as sas,mlp_skip=false: 'mlp_skip' has no ="),
        (["sas,"], r"blocks='sas,': .*'' has no ="),
        (["sas,mlp_skip=perhaps"], r"blocks: mlp_skip='perhaps': give true or false"),
        (["sas,mlp_ratio=wide"], r"blocks: mlp_ratio='wide': give a number"),
        (["sas,alpha=inf"], r"blocks: alpha='inf': give a number"),
        (["sas,norm=batch"], r"norm='batch': choose one of rms, layer, none"),
        (["sas,norm=["], r"norm='\[': choose one of rms"),
        (["sas_p,mlp_skip=true"], r"block.mlp_skip=True: a parallel block has one skip"),
        (["sas", "sas"], r"blocks='sas': is the same block as sas"),
        (["sas_p_no_norm", "sas_p,norm=none"], r"is the same block as sas_p_no_norm"),
        ([], r"name at least one of pre_ln"),
    ],
)
def test_blocks_that_cannot_be_built(specs: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_blocks(specs)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(seeds=[]), "seeds=.*at least one"),
        (Request(seeds=[1, 1]), "seeds=.*different numbers"),
        (Request(changes={"heads": 5}), "model.heads=5: must divide"),
        (Request(changes={"context": 1}), "context=1: .*at least 2"),
        (Request(checkpoints=[Path("no")], blocks=["sas"]), "blocks=.*leave this out"),
        (Request(checkpoints=[Path("no")], seeds=[0]), "seeds=.*leave this out"),
        (Request(checkpoints=[Path("no")], base=RunConfig()), "config=.*leave this out"),
        (Request(checkpoints=[Path("no")], changes={"depth": 3}), "depth=3: a checkpoint has its own"),
        (Request(checkpoints=[Path("no")]), "checkpoint='no': no such file"),
        (Request(checkpoints=[Path(__file__)]), "is not a checkpoint of `fit`"),
    ],
)
def test_requests_that_cannot_serve(request_: Request, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list_subjects(request_)


def test_too_few_sequences_and_tokens_that_differ(base: RunConfig) -> None:
    subjects = list_subjects(Request(blocks=["sas"], base=base, seeds=[0]))
    with pytest.raises(ConfigError, match=r"sequences=0: give at least 1"):
        read_windows(subjects, sequences=0)
    with pytest.raises(ConfigError, match=r"sequences=100000: the validation split of .*tiny.yaml has \d+ windows"):
        read_windows(subjects, sequences=100_000)
    longer = replace(subjects[0], label="longer", config=replace(base, model=replace(base.model, context=64)))
    with pytest.raises(ConfigError, match=r"model.context=\[32, 64\]: sas and longer differ"):
        read_windows([*subjects, longer], sequences=1)


@pytest.fixture
def trained(corpus: DataConfig, finished_run: Callable[[RunConfig], RunResult]) -> Callable[..., Path]:
    """Trains a tiny model; gives the folder of its run."""

    def train(block: BlockConfig, *, seed: int = 0, steps: int = 3) -> Path:
        return Path(finished_run(RunConfig(
            model=ModelConfig(block=block, depth=3, width=16, heads=2, vocab_size=300, context=16), data=corpus,
            optim=OptimConfig(steps=steps), seed=seed,
            trainer=TrainerConfig(accelerator="cpu", tensorboard=False, progress_bar=False, threads=1),
        )).run_dir)

    return train


def test_trained_models_are_probed_as_they_are(trained: Callable[..., Path], tmp_path: Path) -> None:
    runs = [trained(PRESETS["sas"], seed=seed) for seed in (0, 1)]
    frame = run(Request(checkpoints=runs, sequences=2), out=tmp_path, tensorboard=False)
    assert set(frame["block"]) == {"sas"}  # seeds of one configuration
    assert sorted(set(frame["seed"])) == [0, 1]
    assert frame["depth"].max() == 3
    assert not (tmp_path / "tensorboard").exists()
    record = json.loads((tmp_path / "signal.json").read_text())
    assert [subject["checkpoint"] for subject in record["subjects"]] == [
        str(folder / "checkpoints" / "last.ckpt") for folder in runs
    ]
    (at_start,) = list_subjects(Request(checkpoints=runs[:1]))
    model = at_start.build()
    assert model.blocks[1].token_mixing.attention.query.weight.abs().max() > 0  # it was zero before training
    windows = read_windows([at_start], sequences=2)
    CausalLM().loss(model, windows).backward()
    own = frame[(frame["seed"] == 0) & (frame["depth"] == 1)]["gradient_norm"].item()
    norms = torch.stack([p.grad.norm() for p in model.blocks[0].parameters() if p.grad is not None])
    assert own == pytest.approx(float(norms.norm()), rel=1e-4)


def test_checkpoints_of_one_block_but_of_other_settings_keep_their_names(trained: Callable[..., Path]) -> None:
    runs = [trained(PRESETS["sas"]), trained(PRESETS["sas"], steps=4), trained(PRESETS["pre_ln"])]
    labels = [subject.label for subject in list_subjects(Request(checkpoints=runs))]
    assert labels == [runs[0].name, runs[1].name, "pre_ln"]
    with pytest.raises(ConfigError, match="named twice"):
        list_subjects(Request(checkpoints=[runs[0], runs[0] / "checkpoints" / "last.ckpt"]))


def test_a_corpus_that_changed_since_training_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "moved"
    shutil.copytree(trained(PRESETS["sas"]), folder)
    subjects = list_subjects(Request(checkpoints=[folder]))
    read_windows(subjects, sequences=1)
    (folder / "tokenizer.json").write_text("another")
    with pytest.raises(ConfigError, match=r"tiny.yaml has changed since it was trained"):
        read_windows(subjects, sequences=1)


def rows(block: str, cosines: list[float], **measures: list[float]) -> Iterator[dict[str, Any]]:
    for depth, cosine in enumerate(cosines):
        row = {"block": block, "seed": 0, "depth": depth, **dict.fromkeys(MEASURES, 1.0), "cosine": cosine}
        yield row | {name: values[depth] for name, values in measures.items()}


def test_findings_follow_from_the_numbers() -> None:
    frame = pd.DataFrame([
        *rows("a", [0.2, 0.5, 0.995, 1.0], effective_rank=[50, 20, 2, 1.5]),
        *rows("b", [0.2, 0.21, 0.2, 0.19], gradient_norm=[math.nan, 0.5, 0.01, 0.1]),
        *rows("c", [0.2, 0.3, 0.4, 0.1], rms=[1, 10, 100, 1000]),
        *rows("d", [0.2, math.nan, math.nan, math.nan], rms=[1, math.inf, math.nan, math.nan]),
        *rows("e", [0.2, 0.3, 0.4, 0.5], gradient_norm=[math.nan, 0.5, 0, 0.1]),
    ])
    assert findings(frame) == [
        "a collapses to rank one after 2 blocks (mean cosine above 0.99): cosine 1.000 at depth 3 against 0.200 at the "
        "input, effective rank 1.5 of 50.0.",
        "b preserves the input's geometry: cosine 0.190 at depth 3 against 0.200 at the input, effective rank 1.0 of "
        "1.0; gradient norms differ by a factor of 50 between blocks (largest in block 1 of 3, smallest in "
        "block 2).",
        "c makes tokens less similar: cosine 0.100 at depth 3 against 0.200 at the input, effective rank 1.0 of 1.0; "
        "the RMS goes from 1 to 1e+03.",
        "d is out of numerical range at depth 1 (RMS inf).",
        "e makes tokens more similar: cosine 0.500 at depth 3 against 0.200 at the input, effective rank 1.0 of 1.0; "
        "no gradient reaches block 2 of 3.",
    ]


def test_the_table_shows_the_first_the_twelfth_and_the_last(frame: pd.DataFrame) -> None:
    deeper = pd.concat([frame, frame[frame["depth"] == DEPTH].assign(depth=DEPTH + 1, cosine=0.125)])
    shown = table(deeper)
    assert list(shown.columns[1].cells) == ["0", "12", "13"] * 6
    assert list(shown.columns[2].cells)[2::3] == ["0.125"] * 6
    assert list(table(frame).columns[1].cells) == ["0", "12"] * 6


def test_command_line(base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "with a space"
    arguments = [
        "signal", "--blocks", "naive_skipless", "sas,mlp_skip=false", "--depth", "8", "--width", "32", "--heads", "2",
        "--context", "24", "--vocab_size", "300", "--sequences", "2", "--seeds", "3", "4", "--recipe", base.data.recipe,
        "--cache_dir", base.data.cache_dir, "--out", str(out),
    ]
    main(arguments)
    printed = capsys.readouterr().out
    assert "naive_skipless collapses to rank one after" in printed
    frame = pd.read_csv(out / "signal.csv")
    assert list(frame.columns) == ["block", "seed", "depth", *MEASURES]
    assert len(frame) == 2 * 2 * 9
    record = json.loads((out / "signal.json").read_text())
    assert record["command"].startswith("python -m lit_simplified signal --blocks naive_skipless sas,mlp_skip=false")
    assert f"--out '{out}'" in record["command"]
    assert [(s["block"], s["seed"]) for s in record["subjects"]] == [
        ("naive_skipless", 3), ("naive_skipless", 4), ("sas,mlp_skip=false", 3), ("sas,mlp_skip=false", 4),
    ]
    assert record["subjects"][2]["model"]["block"]["mlp_skip"] is False
    assert all(sentence in printed for sentence in record["findings"])
    for name in ("signal.png", "collapse.png"):
        assert min(Image.open(out / name).size) > 300
    events = EventAccumulator(str(out / "tensorboard" / "naive_skipless"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {f"signal/{name}" for name in MEASURES}
    means = frame[frame["block"] == "naive_skipless"].groupby("depth")["cosine"].mean()
    shown = events.Scalars("signal/cosine")
    assert [event.step for event in shown] == list(range(9))
    np.testing.assert_allclose([event.value for event in shown], means, rtol=1e-4)
    figures = EventAccumulator(str(out / "tensorboard" / "figures")).Reload()
    assert set(figures.Tags()["images"]) == {"signal/signal", "signal/collapse"}
    main(arguments)  # again: TensorBoard's files replace the older ones
    assert len(list(out.rglob("events.out.tfevents.*"))) == 3
    assert not list(out.glob(".*"))


def test_command_line_with_a_run_of_a_file(base: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({
        "preset": "sas_p", "model": {"depth": 4, "width": 16, "heads": 2, "context": 16, "vocab_size": 300,
                                     "block": {"norm": "layer"}},
        "data": {"recipe": base.data.recipe, "cache_dir": base.data.cache_dir},
    }))
    shared = ["--config", str(file), "--seeds", "0", "--sequences", "2", "--tensorboard", "false"]
    main(["signal", *shared, "--out", str(tmp_path / "own"), "--depth", "3"])
    record = json.loads((tmp_path / "own" / "signal.json").read_text())
    (subject,) = record["subjects"]
    assert subject["block"] == "par-noskip-shaped-vI-pI-layer"
    assert (subject["model"]["depth"], subject["model"]["width"], subject["model"]["block"]["norm"]) == (3, 16, "layer")
    main(["signal", *shared, "--out", str(tmp_path / "other"), "--blocks", "pre_ln", "--task", "mlm"])
    (subject,) = json.loads((tmp_path / "other" / "signal.json").read_text())["subjects"]
    assert (subject["block"], subject["task"], subject["model"]["depth"]) == ("pre_ln", "mlm", 4)
    assert subject["model"]["causal"] is False


def test_mistakes_end_the_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, told in [
        (["--blocks", "sas,norm=batch"], "error: block.norm='batch'"),
        (["--checkpoint", str(tmp_path), "--depth", "3"], "error: depth=3: a checkpoint has its own"),
        (["--out", str(tmp_path / "file")], "is a file: name a folder"),
    ]:
        with pytest.raises(SystemExit, match=told):
            main(["signal", *arguments])

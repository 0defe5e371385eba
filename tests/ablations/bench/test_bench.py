"""The benchmark: what is compared is equal where it must be, counted right, and written down whatever happens."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ablations.bench import __main__ as command
from ablations.bench import plan as planning
from ablations.bench.explicit import explicit_bytes, make_explicit, plain_loss
from ablations.bench.measure import COLUMNS, Comparison, Measurement, from_record, measure
from ablations.bench.peers import MATCHED, PEERS
from ablations.bench.plan import plan, select
from ablations.bench.plots import draw_all
from ablations.bench.presets import BENCH_PRESETS, LENGTHS
from ablations.bench.results import BenchRecord, derived, text_table, to_csv
from ablations.bench.subjects import Parts, Subject, explicit, ours
from ablations.bench.subprocess_side import SubprocessSide
from ablations.timing import peak
from ablations.timing.flops import block_weights, forward_flops, training_flops
from ablations.timing.peak import Matmul
from ablations.timing.step import Step, build_with_peak_memory
from lit_simplified.config import PRESETS, BlockConfig, ConfigError, DataConfig, ModelConfig, RunConfig, TrainerConfig
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective

pytestmark = pytest.mark.usefixtures("one_thread")

B, T, V = 2, 12, 40
CPU = TrainerConfig(accelerator="cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """All presets at a size that takes no time."""
    def shrink(name: str) -> Any:
        preset = BENCH_PRESETS[name]
        model = replace(preset.model, depth=2, width=16, heads=2, context=T, vocab_size=V)
        return replace(preset, model=model, batch=B, cut={})

    monkeypatch.setattr(command, "bench_preset", shrink)
    monkeypatch.setattr(peak, "SIDES", {"cpu": 32})
    monkeypatch.setattr(planning, "LENGTHS", (8, 16))


def run_of(block: BlockConfig = PRESETS["pre_ln"], *, task: Any = "clm", **model: Any) -> RunConfig:
    shape = ModelConfig(**{"block": block, "depth": 2, "width": 16, "heads": 2, "vocab_size": V, "context": T} | model)
    return RunConfig(task=task, model=shape, data=DataConfig(batch_size=B), trainer=CPU)


def under(subject_run: RunConfig, **trainer: Any) -> RunConfig:
    return replace(subject_run, trainer=replace(subject_run.trainer, **trainer))


# Equality of what is compared


@pytest.mark.parametrize("task", ["clm", "mlm"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_explicit_formula_is_the_same_function(name: str, task: str) -> None:
    run, found = run_of(PRESETS[name], task=task), {}
    for kind in ("ours", "explicit"):
        torch.manual_seed(0)
        model = Transformer(run.model).double()
        with torch.no_grad():  # away from the initialisation, at which A = C and many terms vanish
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        windows = torch.randint(V, (B, T + (task == "clm")))
        objective = build_objective(run)
        if kind == "ours":
            loss = objective.loss(model, windows)
        else:
            loss = plain_loss(make_explicit(model), windows, objective=objective)
        loss.backward()
        found[kind] = (loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    (loss, gradients), (other_loss, other_gradients) = found.values()
    torch.testing.assert_close(loss, other_loss, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == other_gradients.keys()
    for gradient_name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(other_gradients[gradient_name], gradient, rtol=1e-10, atol=1e-12)


def test_the_explicit_formula_builds_the_matrices_and_ours_does_not() -> None:
    length = 256
    run = run_of(PRESETS["sas_p"], context=length, width=8, vocab_size=8)
    weighed = [build_with_peak_memory(kind("sas_p", run).build)[1] for kind in (ours, explicit)]
    assert weighed[0] is not None
    assert weighed[1] is not None
    estimate = explicit_bytes(batch=B, heads=2, positions=length, depth=2) / 2**20
    assert 0.7 * estimate < weighed[1] - weighed[0] < 1.5 * estimate


def test_explicit_attention_takes_no_mask() -> None:
    model = make_explicit(Transformer(run_of().model))
    with pytest.raises(ValueError, match="leave it out"):
        model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))


# Peers


def peer_parts(name: str, run: RunConfig) -> Parts:
    pytest.importorskip(PEERS[name].package)
    torch.manual_seed(0)
    return PEERS[name].assemble(run)


def matched(*, task: str = "clm", **block: Any) -> RunConfig:
    return run_of(replace(MATCHED, **block), task=task, width=32, positions="learned", vocab_size=64)


def seen_by_the_last_but_two(forward: Any, tokens: Tensor) -> set[int]:
    """Positions whose token changes the logits at position T - 3."""
    found = set()
    with torch.no_grad():
        before = forward(tokens)[0, T - 3]
        for position in range(T):
            changed = tokens.clone()
            changed[0, position] = (tokens[0, position] + 1) % 64
            if not torch.allclose(forward(changed)[0, T - 3], before, atol=1e-6):
                found.add(position)
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_causal(name: str, training: bool) -> None:
    parts = peer_parts(name, matched())
    parts.model.train(training)
    tokens = torch.randint(64, (1, T + 1))
    assert parts.forward(tokens).shape == (1, T, 64)
    assert seen_by_the_last_but_two(parts.forward, tokens) == set(range(T - 2))


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.causal_only])
def test_a_peer_of_the_masked_task_sees_everything(name: str) -> None:
    parts = peer_parts(name, matched(task="mlm", glu=True))
    assert seen_by_the_last_but_two(parts.forward, torch.randint(64, (1, T))) == set(range(T))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_the_blocks_and_the_parameters_of_ours(name: str) -> None:
    counts = []
    for depth in (1, 3):
        run = matched()
        run = replace(run, model=replace(run.model, depth=depth))
        own = sum(p.numel() for p in Transformer(run.model).parameters())
        count = sum(p.numel() for p in peer_parts(name, run).model.parameters())
        assert abs(count / own - 1) < 0.05  # biases here, positions there
        counts.append((own, count))
    per_block = [(counts[1][side] - counts[0][side]) / 2 for side in (0, 1)]
    assert abs(per_block[1] / per_block[0] - 1) < 0.05


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.causal_only])
def test_a_peer_with_a_gated_mlp_has_the_parameters_of_ours(name: str) -> None:
    run = matched(task="mlm", glu=True)
    own = sum(p.numel() for p in Transformer(run.model).parameters())
    assert abs(sum(p.numel() for p in peer_parts(name, run).model.parameters()) / own - 1) < 0.05


@pytest.mark.parametrize("task", ["clm", "mlm"])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_trains_on_the_loss_of_ours(name: str, task: str) -> None:
    if task == "mlm" and PEERS[name].causal_only:
        return
    pytest.importorskip(PEERS[name].package)
    step = PEERS[name].subject(name, matched(task=task)).build()
    before = step.loss(step.batch).item()
    assert 3 < before < 7  # log(64) is 4.2
    for _ in range(10):
        step.step()
    assert step.loss(step.batch).item() < before - 0.1
    assert {group["weight_decay"] for group in step.optimizer.param_groups} == {0.1, 0.0}


# FLOPs


@pytest.mark.parametrize("changes", [{}, {"glu": True}, {"value": "residual"}, {"mlp_ratio": 3.0}])
@pytest.mark.parametrize("name", PRESETS)
def test_flops_are_those_that_torch_counts(name: str, changes: dict[str, Any]) -> None:
    config = replace(run_of(replace(PRESETS[name], **changes)).model, causal=False)  # all scores count in full
    model = make_explicit(Transformer(config))
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(B, T, dtype=torch.long))
    assert counter.get_total_flops() == forward_flops(config, batch=B)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() + counter.get_total_flops() == training_flops(config, batch=B)


def test_flops_by_hand() -> None:
    config = ModelConfig(depth=1, width=4, heads=1, vocab_size=10, context=8)
    blocks, scores, head = 2 * 8 * (4 + 8) * 16, 2 * 2 * 8 * 8 * 4 // 2, 2 * 8 * 4 * 10
    assert forward_flops(config, batch=1) == blocks + scores + head
    assert forward_flops(config, batch=1, head_tokens=2) == blocks + scores + head // 4
    identity = replace(config, depth=2, block=PRESETS["sas"])
    assert [block_weights(identity, index=index) for index in (0, 1)] == [(3 + 8) * 16, (2 + 8) * 16]
    kept = replace(identity, block=replace(PRESETS["sas"], last_projection_delta_gain=0.5))
    assert [block_weights(kept, index=index) for index in (0, 1)] == [(3 + 8) * 16, (3 + 8) * 16]


def test_the_head_of_a_masked_model_sees_the_hidden_tokens() -> None:
    run = run_of(task="mlm")
    hidden = round(B * T * run.optim.mask_probability)
    assert ours("x", run).flops == training_flops(run.model, batch=B, head_tokens=hidden)
    peer = PEERS["torch"].subject("torch", run)
    assert peer.flops == training_flops(run.model, batch=B)


# Measurement


def comparison(**changes: Any) -> Comparison:
    deep = run_of(depth=8)
    return Comparison(**{"group": "blocks", "subject": ours("deep", deep), "baseline": ours("one", run_of())} | changes)


def matmul() -> Matmul:
    return Matmul(side=32, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that this process times, each as often as it does."""
    found: list[Step] = []
    real = Step.time

    def spy(self: Step, steps: int, mode: Any = "train") -> float:
        found.append(self)
        return real(self, steps, mode)

    monkeypatch.setattr(Step, "time", spy)
    return found


@pytest.mark.timed
def test_a_comparison_fills_its_row() -> None:
    rounds: list[int] = []
    row = measure(
        comparison(), rounds=5, seconds=0.01, matmul=matmul(), on_round=lambda: rounds.append(1)
    )
    assert len(rounds) == 5
    for mode in ("train", "inference"):
        ratio, low, high = (getattr(row, f"{mode}_{part}") for part in ("ratio", "low", "high"))
        assert 0 < low <= ratio <= high
        assert ratio < 0.7  # eight times as deep, and what does not grow with depth
    assert row.flop_ratio is not None
    assert row.flops is not None
    assert row.baseline_flops == pytest.approx(row.flop_ratio * row.flops)
    assert row.flop_share == pytest.approx((row.train_ratio or 0) / row.flop_ratio)
    assert row.mfu is not None
    assert row.train_ms is not None
    paired = zip(row.samples["train_name"], row.samples["peak"], strict=True)
    assert row.mfu == pytest.approx(median([row.flops / seconds / peak for seconds, peak in paired]))
    assert row.train_tokens_per_second == pytest.approx(1000 * B * T / row.train_ms)
    assert row.memory_mib is not None
    assert row.baseline_memory_mib is not None
    assert row.memory_mib > row.baseline_memory_mib
    assert row.parameters == sum(p.numel() for p in Transformer(run_of(depth=8).model).parameters())
    assert row.train_burst is not None
    assert row.train_burst >= 1
    assert {len(values) for values in row.samples.values()} == {5}


@pytest.mark.timed
def test_a_side_in_its_own_process_has_the_c_librarys_memory_management(timed: list[Step]) -> None:
    together = measure(comparison(), rounds=3, seconds=0.02, matmul=matmul())
    assert len(set(timed)) == 2
    timed.clear()
    separate = measure(comparison(own_process=True), rounds=3, seconds=0.02, matmul=matmul())
    [here] = set(timed)
    assert here.parameters == separate.parameters
    assert separate.own_process
    assert separate.baseline_memory_mib == together.baseline_memory_mib
    assert separate.baseline_parameters == together.baseline_parameters
    assert together.train_ratio is not None
    assert separate.train_ratio is not None
    assert 0.1 < separate.train_ratio / together.train_ratio < 10  # the same work; a busy machine may do it in fits


@pytest.mark.parametrize("compiled", [None, "default"])
def test_an_error_in_the_other_process_is_raised_here_and_its_compiler_does_not_give_up(compiled: str | None) -> None:
    with pytest.raises(RuntimeError, match=f"fails at its limit: {compiled is not None}"):
        SubprocessSide(Subject(name="broken", run=run_of(), assemble=broken), compiled=compiled, threads=1)


def broken(run: RunConfig) -> Any:
    raise ValueError(f"the compiler fails at its limit: {torch._dynamo.config.fail_on_recompile_limit_hit}")


def test_no_round_is_begun_after_the_limit() -> None:
    row = measure(comparison(), rounds=9, seconds=0, matmul=matmul(), limit=0)
    assert row.rounds == 2
    assert {len(values) for values in row.samples.values()} == {2}


def test_only_two_models_live_and_they_take_turns(timed: list[Step]) -> None:
    measure(comparison(modes=("train",)), rounds=2, seconds=0.0, matmul=matmul())
    first, second = dict.fromkeys(timed)
    assert timed[-12:] == [second, first, first, second, second, first] * 2  # two steps that do not count, P X X P


def test_both_sides_have_the_same_batch_weights_and_optimiser() -> None:
    first, second = ours("x", run_of()).build(), explicit("x", run_of()).build()
    assert torch.equal(first.batch, second.batch)
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.optimizer.defaults == second.optimizer.defaults
    other = ours("x", replace(run_of(), seed=1)).build()
    assert not torch.equal(first.batch, other.batch)


def test_inference_trains_nothing() -> None:
    step = ours("x", run_of()).build()
    before = [p.clone() for p in step.model.parameters()]
    step.time(2, "inference")
    assert not step.model.training
    assert all(torch.equal(p, q) for p, q in zip(before, step.model.parameters(), strict=True))
    step.time(1)
    assert step.model.training
    assert not all(torch.equal(p, q) for p, q in zip(before, step.model.parameters(), strict=True))


# The plan


def planned(name: str, **options: Any) -> list[Comparison]:
    return plan(BENCH_PRESETS[name].on("cpu"), **{"trainer": CPU, "seed": 3, "clip": None} | options)


def test_every_group_is_planned_under_the_same_conditions() -> None:
    found = planned("small")
    assert {c.group for c in found} == {"blocks", "terms", "explicit", "peers", "decode"}
    assert [c.subject.name for c in found if c.group == "blocks"] == list(PRESETS)
    for side in [side for c in found for side in (c.subject, c.baseline)]:
        assert (side.run.seed, side.run.optim.clip, side.run.trainer) == (3, None, CPU)
    assert not [c for c in planned("small", peers=False) if c.group == "peers"]
    compiled = planned("small", compiled=["default"])
    assert {c.compiled for c in compiled} == {"", "default"}
    assert not [c for c in compiled if c.compiled and c.group == "decode"]
    assert len({c.key for c in compiled}) == len(compiled)


def test_terms_differ_in_the_terms_alone() -> None:
    [terms] = [c for c in planned("small") if c.group == "terms"]
    with_terms, without = terms.subject.run.model, terms.baseline.run.model
    assert with_terms.block.attention == "shaped"
    assert without == replace(with_terms, block=replace(
        with_terms.block, attention="softmax", mlp_gain=with_terms.block.resolved_mlp_gain(with_terms.depth)
    ))
    head = training_flops(with_terms, batch=1) - training_flops(with_terms, batch=1, head_tokens=0)
    assert head < 0.001 * training_flops(with_terms, batch=1)


def test_lengths_have_the_same_tokens_and_what_is_too_large_says_why() -> None:
    found = planned("long", available=10 * 2**30)
    assert {c.subject.run.model.context for c in found} == set(LENGTHS)
    assert {c.subject.run.data.batch_size * c.subject.run.model.context for c in found} == {8192}
    skipped = [c for c in found if c.skip]
    assert [c.key for c in skipped] == ["length/sas_p/sas_p explicit/8192"]
    assert "need about 14.0 GiB, 10.0 are free" in skipped[0].skip
    short = planned("long", available=2 * 2**30)
    assert {c.subject.run.data.batch_size * c.subject.run.model.context for c in short} == {4096}
    assert not [c for c in planned("long") if c.skip]


def test_the_crammed_preset_is_bidirectional_gated_and_masked() -> None:
    for c in planned("crammed"):
        for side in (c.subject, c.baseline):
            assert side.run.task == "mlm"
            assert not side.run.model.causal
            assert side.run.model.block.glu
            assert side.run.model.block.activation == "gelu"
    assert {c.baseline.name for c in planned("crammed") if c.group == "peers" and c.skip} >= {"transformers", "litgpt"}


def test_only_selects_by_group_name_and_pattern() -> None:
    found = planned("small")
    assert {c.group for c in select(found, only=["explicit"])} == {"explicit"}
    assert {c.subject.name for c in select(found, only=["pre_ln"])} == {"pre_ln"}
    assert [c.key for c in select(found, only=["blocks/sas_p/*", "torch"])] == [
        "blocks/sas_p/pre_ln", "peers/pre_ln (LayerNorm, GELU)/torch"
    ]
    with pytest.raises(ConfigError, match=r"--only='sax'.*sas_p"):
        select(found, only=["sax"])


def test_a_peer_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.bench.peers.find_spec", lambda name: None)
    peers = [c for c in planned("small") if c.group == "peers"]
    assert "python -m pip install transformers" in peers[0].skip


# The command


@pytest.mark.slow
def test_the_command_measures_and_writes(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "2", "--burst", "0", "--device", "cpu", "--out", str(tmp_path), "--only", "sas_p", "torch"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "sas_p explicit" in out
    assert str(tmp_path / "bench.md") in out
    record = json.loads((tmp_path / "bench.json").read_text())
    assert {row["group"] for row in record["rows"]} == {"blocks", "explicit", "peers", "decode"}
    assert record["conditions"]["precision"] == "32-true"
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"].startswith("python -m ablations.bench --rounds 2")
    rows = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(record["rows"])
    assert float(rows[0]["train_low"]) <= float(rows[0]["train_ratio"]) <= float(rows[0]["train_high"])
    assert "| sas_p | pre_ln |" in (tmp_path / "bench.md").read_text()
    assert {path.stem for path in tmp_path.glob("*.png")} == {"blocks", "explicit", "peers", "decode"}


def test_lengths_give_a_plot_and_the_ratio_of_memory(tiny: None, tmp_path: Path) -> None:
    arguments = ["--preset", "long", "--rounds", "1", "--burst", "0", "--device", "cpu", "--out", str(tmp_path)]
    arguments.append("--together")  # what runs apart is in the test above; memory is counted alike
    assert command.main(arguments) == 0
    assert (tmp_path / "length.png").stat().st_size > 0
    found = json.loads((tmp_path / "bench.json").read_text())["derived"]["memory_ratio_longest_to_shortest"]
    assert found["sas_p explicit, T 16 to 8"] > found["sas_p, T 16 to 8"]
    assert 0.9 < found["sas_p, T 16 to 8"] < 1.1


def test_what_fails_or_is_interrupted_leaves_the_other_rows(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def fake(comparison: Comparison, **options: Any) -> Measurement:
        calls.append(comparison.subject.name)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Measurement(
            group="blocks", name="first", baseline="pre_ln", train_ratio=1.0, train_low=1.0, train_high=1.0
        )

    monkeypatch.setattr(command, "measure", fake)
    arguments = ["--only", "blocks", "--device", "cpu", "--out", str(tmp_path), "--no-plots"]
    assert command.main(arguments) == 130
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["error"] for row in rows] == ["", "RuntimeError: out of memory"]
    assert "Interrupted; 2 of 8" in capsys.readouterr().err


def test_wrong_flags_are_refused_with_a_remedy(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert command.main(["--precision", "bf16-mixed"]) == 2
    assert "--precision='bf16-mixed'" in capsys.readouterr().err
    assert command.main(["--device", "cuda"]) == 2
    assert "use cpu" in capsys.readouterr().err
    assert command.main(["--only", "nothing"]) == 2
    assert "there are blocks" in capsys.readouterr().err
    assert command.choose_precision(None, device=torch.device("cuda")) == "bf16-mixed"
    assert command.choose_precision(None, device=torch.device("cpu")) == "32-true"


def test_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--preset", "long", "--list"]) == 0
    assert "length/sas_p/pre_ln/4096" in capsys.readouterr().out


def test_empty_tables_and_missing_values_are_written(tmp_path: Path) -> None:
    record = BenchRecord(folder=tmp_path, about={"preset": "small"})
    record.rows.append(Measurement(group="blocks", name="x", baseline="y", error="RuntimeError: no"))
    record.write()
    assert "RuntimeError: no" in text_table(record.rows)
    assert to_csv(record.rows).count("\n") == 2
    assert derived([])["memory_ratio_longest_to_shortest"] == {}
    assert draw_all(record.rows, folder=tmp_path) == []


def test_records_of_older_versions_are_read() -> None:
    row = from_record({"group": "peers", "name": "x", "baseline": "y", "apart": True, "train_ratio": 1.5})
    assert row == Measurement(group="peers", name="x", baseline="y", own_process=True, train_ratio=1.5)



"""Which comparisons a preset has: its groups, as lists of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from ablations.bench.decode import decoding, missing
from ablations.bench.explicit import explicit_bytes
from ablations.bench.measure import Comparison
from ablations.bench.peers import MATCHED, PEERS
from ablations.bench.presets import LENGTHS, Preset
from ablations.bench.subjects import explicit, ours
from lit_simplified.config import PRESETS, ConfigError, DataConfig, RunConfig, TrainerConfig

MAIN = ("pre_ln", "sas", "sas_p")
"""The blocks of the groups in which every further one would say little new."""
FEW_TOKENS = 16
"""A vocabulary that leaves embedding and head nothing to do."""
MEMORY_IS_SHORT = 8 * 2**30
"""With fewer free bytes the group `length` takes half the tokens per step."""


def plan(
    preset: Preset, *, trainer: TrainerConfig, seed: int, clip: float | None, peers: bool = True,
    own_process: bool = True, available: int | None = None, compiled: Sequence[str] = (),
) -> list[Comparison]:
    """Every comparison of a preset, each again for every mode of torch.compile, except decoding.

    Args:
        preset: as it is measured on the device (`Preset.on`).
        trainer: device and precision.
        seed: of initialisation and tokens.
        clip: largest gradient norm, for all models; None for none.
        peers: whether the other libraries are asked for; those that are not installed are listed as skipped.
        own_process: whether peers and explicit formula run in a process of their own, as their users run them.
        available: free bytes, beyond which the explicit formula is skipped; None if unknown.
        compiled: modes of torch.compile.
    """
    builders = {
        "blocks": lambda: _blocks(preset), "terms": lambda: _terms(preset),
        "explicit": lambda: _explicit(preset, own_process=own_process),
        "peers": lambda: _peers(preset, own_process=own_process) if peers else iter(()),
        "length": lambda: _length(preset, available=available, own_process=own_process),
        "decode": lambda: _decode(preset),
    }
    found = [comparison for group in preset.groups for comparison in builders[group]()]
    found += [
        replace(comparison, compiled=mode) for mode in compiled for comparison in found if comparison.group != "decode"
    ]
    return [_under(comparison, trainer=trainer, seed=seed, clip=clip) for comparison in found]


def _under(comparison: Comparison, *, trainer: TrainerConfig, seed: int, clip: float | None) -> Comparison:
    """The comparison under the conditions of this run, the same for both sides."""
    def under(run: RunConfig) -> RunConfig:
        return replace(run, trainer=trainer, seed=seed, optim=replace(run.optim, clip=clip))

    subject, baseline = comparison.subject, comparison.baseline
    return replace(
        comparison, subject=replace(subject, run=under(subject.run)),
        baseline=replace(baseline, run=under(baseline.run)),
    )


def _blocks(preset: Preset) -> Iterator[Comparison]:
    """Every named block against Pre-LN; that of Pre-LN with itself shows the noise."""
    baseline = ours("pre_ln", preset.run(PRESETS["pre_ln"]))
    for name, block in PRESETS.items():
        yield Comparison(group="blocks", subject=ours(name, preset.run(block)), baseline=baseline)


def _terms(preset: Preset) -> Iterator[Comparison]:
    """Shaped attention against plain softmax in the same block: what the identity and the centring cost.

    The blocks are nearly alone in these models, as the vocabulary has few tokens: 1 less the ratio is the terms' share.
    """
    sas_p = preset.block(PRESETS["sas_p"])
    softmax = replace(sas_p, attention="softmax", mlp_gain=sas_p.resolved_mlp_gain(preset.model.depth))
    with_terms, without = (preset.run(block, vocab_size=FEW_TOKENS) for block in (sas_p, softmax))
    yield Comparison(
        group="terms", subject=ours("sas_p, blocks alone", with_terms),
        baseline=ours("the same with softmax", without), modes=("train",),
    )


def _explicit(preset: Preset, *, own_process: bool) -> Iterator[Comparison]:
    """A baseline and skipless blocks against the (T, T) formula of the same block."""
    for name in MAIN:
        run = preset.run(PRESETS[name])
        yield Comparison(
            group="explicit", subject=ours(name, run), baseline=explicit(name, run), own_process=own_process
        )


def _peers(preset: Preset, *, own_process: bool) -> Iterator[Comparison]:
    """Our Pre-LN with the peers' activation and norm, against each peer."""
    run = preset.run(MATCHED, positions="learned")
    subject = ours("pre_ln (LayerNorm, GELU)", run)
    for name, peer in PEERS.items():
        skip = ""
        if not peer.installed:
            skip = f"not installed; to measure it: python -m pip install {peer.install}"
        elif peer.causal_only and not run.model.causal:
            skip = "it is causal only"
        yield Comparison(
            group="peers", subject=subject, baseline=peer.subject(name, run), own_process=own_process, note=peer.note,
            skip=skip,
        )


def _length(preset: Preset, *, available: int | None, own_process: bool) -> Iterator[Comparison]:
    """SAS-P against Pre-LN and against its explicit formula, for every T at the same number of tokens."""
    short = available is not None and available < MEMORY_IS_SHORT
    tokens = LENGTHS[-1] // 2 if short else LENGTHS[-1]
    for length in LENGTHS:
        if length > tokens:
            continue
        pre_ln, sas_p = (
            replace(preset.run(PRESETS[name], context=length), data=DataConfig(batch_size=tokens // length))
            for name in ("pre_ln", "sas_p")
        )
        subject = ours("sas_p", sas_p)
        yield Comparison(group="length", subject=subject, baseline=ours("pre_ln", pre_ln), modes=("train",))
        yield Comparison(
            group="length", subject=subject, baseline=explicit("sas_p", sas_p), modes=("train",),
            own_process=own_process, skip=_too_large(sas_p, available=available),
        )


def _too_large(run: RunConfig, *, available: int | None) -> str:
    """Why the explicit formula is not measured, or nothing."""
    model = run.model
    needed = explicit_bytes(batch=run.data.batch_size, heads=model.heads, positions=model.context, depth=model.depth)
    if available is None or needed <= available:
        return ""
    return f"its (T, T) matrices need about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} are free"


def _decode(preset: Preset) -> Iterator[Comparison]:
    """Decoding with the cache against without, and against Pre-LN with it."""
    runs = {name: preset.run(PRESETS[name]) for name in MAIN}
    baseline, skip = decoding("pre_ln", runs["pre_ln"], cached=True), missing()
    for name, run in runs.items():
        subject = decoding(name, run, cached=True)
        for other in (decoding(name, run, cached=False), baseline):
            if other != subject:
                yield Comparison(group="decode", subject=subject, baseline=other, modes=("inference",), skip=skip)


def select(comparisons: Sequence[Comparison], *, only: Sequence[str]) -> list[Comparison]:
    """The comparisons whose key or one of whose names matches a pattern; all without one.

    Raises:
        ConfigError: a pattern that matches none.
    """
    found = list(comparisons)
    if only:
        found = [c for c in comparisons if any(_matches(c, pattern) for pattern in only)]
    for pattern in only:
        if not any(_matches(c, pattern) for c in comparisons):
            names = dict.fromkeys(name for c in comparisons for name in c.names)
            raise ConfigError("--only", pattern, f"it matches nothing; there are {', '.join(names)} (or see --list)")
    return found


def _matches(comparison: Comparison, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (comparison.key, *comparison.names))

"""Frozen dataclasses that describe a run. Everything that decides a result is a field here.

Imports nothing outside the standard library, so that the study, its summary and its report can read configurations
without torch. The positions of the switches are in `switches`, what a `fit` makes of a run in `train`.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from lit_simplified.config.checks import Range, Words, check_fields
from lit_simplified.config.errors import ConfigError
from lit_simplified.config.own import FIELDS, parse, with_digest
from lit_simplified.config.switches import CHOICES, SWITCHES, Activation, Attention, Layout, Matrix, Norm
from lit_simplified.config.words import ACCELERATORS, PRECISIONS, STRATEGIES

OuterNorm = Literal["rms", "layer"]
Windowing = Literal["packed", "document"]
MatrixInit = Literal["normal", "lecun", "orthogonal", "identity"]
ProjectionInit = Literal["normal", "lecun", "orthogonal", "identity", "tied", "last_tied"]
QueryInit = Literal["normal", "zero"]
Positions = Literal["learned", "sinusoidal", "scaled_sinusoidal"]
Schedule = Literal["linear", "cosine", "constant"]
Task = Literal["clm", "mlm"]
MaskRule = Literal["80-10-10", "all"]
MaskCount = Literal["independent", "exact"]


END_GAINS = MappingProxyType({"value": "first_value_delta_gain", "projection": "last_projection_delta_gain"})
"""The fields with a matrix's own b at one end of the stack, by matrix."""
LARGEST_SIZE = 2**20
"""Of a width or a number of windows."""
Size: TypeAlias = Annotated[int, Range(1, LARGEST_SIZE)]
Length: TypeAlias = Annotated[int, Range(1, 2**24)]
Count: TypeAlias = Annotated[int, Range(1, 10**9)]
CountOrNone: TypeAlias = Annotated[int, Range(0, 10**9)]
Positive: TypeAlias = Annotated[float, Range(above=0, most=1e3)]
Share: TypeAlias = Annotated[float, Range(0, below=1)]
Gain: TypeAlias = Annotated[float, Range(-1e3, 1e3)]
"""In float32 its products stay finite."""
Epsilon: TypeAlias = Annotated[float, Range(1e-30, 1)]
"""Above 0 in float32, too."""
Threads: TypeAlias = Annotated[int, Range(1, 1024)]
Seed: TypeAlias = Annotated[int, Range(0, 2**32 - 1)]
"""What the generators of Python, numpy and torch take."""
LONGEST_RAMP = 10**7
"""Steps."""


class MatrixParts(NamedTuple):
    """The value or projection matrix of a block: its kind, a and b of a residual one, and whether they are trained."""

    kind: Matrix
    gain: float = 1.0
    delta_gain: float = 1.0
    trainable: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The switches of one transformer block; the defaults are Pre-LN (paper, Eq. 1)."""

    layout: Layout = "sequential"
    """sequential: attention, then MLP. parallel: both read one norm and share one skip (GPT-J)."""
    attention_skip: bool = True
    """x + attention(norm(x)) when true, attention(norm(x)) when false. Parallel: must equal mlp_skip."""
    mlp_skip: bool = True
    """x + mlp(norm(x)) when true, mlp(norm(x)) when false. Parallel: must equal attention_skip."""
    attention: Attention = "softmax"
    """softmax: A. skipinit: alpha*I + beta*A (Eq. 4). shaped: alpha*I + beta*A - gamma*C (Eq. 5). Gains per head."""
    value: Matrix = "linear"
    """linear: a trained matrix. identity: none. residual: a*W_init + b*dW (Eq. 6)."""
    projection: Matrix = "linear"
    """As `value`, for the matrix behind the heads."""
    norm: Norm = "rms"
    """The normalisation at the start of each sub-block."""

    norm_eps: Epsilon = 1e-8
    """Epsilon of the normalisation."""
    norm_eps_outside: bool = False
    """RMSNorm divides by rms(x) + eps, as in the authors' code, not by sqrt(mean(x^2) + eps)."""
    first_norm: bool = True
    """With norm=none: keep one norm at the first block's input, as the authors do."""
    outer_norm: OuterNorm | None = None
    """The norm in front of the head, and the one that first_norm keeps. None: the blocks' own, RMSNorm with norm=none.
    The authors' code has a LayerNorm in both places."""
    first_value: bool = True
    """With value=identity: keep the first block's value matrix, as identity + dW (paper, Fig. 21)."""

    query_init: QueryInit | None = None
    """None: zero with skipinit and shaped attention (so that A = C at initialisation), normal with softmax."""
    value_init: MatrixInit | None = None
    """W_V at initialisation. None: orthogonal where identity-like attention has lost its skip, else normal
    (identity for residual). normal has the model's init_std, lecun 1/sqrt(width)."""
    projection_init: ProjectionInit | None = None
    """As `value_init`, for W_P. tied: the transpose of the block's W_V, so that each block's product is the identity.
    last_tied: in the last block alone, the transpose of the product of all other W_V and W_P, so that the product of
    the whole stack is the identity; the others are orthogonal (paper, Fig. 3)."""
    value_gain: Gain = 1.0
    """a of a residual value matrix a*W_init + b*dW."""
    value_delta_gain: Gain = 1.0
    """b of a residual value matrix; 0 leaves W_init alone."""
    first_value_delta_gain: Gain | None = None
    """b of the first block's value matrix, residual or kept by first_value. None: that of the others, 1 if kept."""
    projection_gain: Gain = 1.0
    """a of a residual projection matrix."""
    projection_delta_gain: Gain = 1.0
    """b of a residual projection matrix; 0 leaves W_init alone."""
    last_projection_delta_gain: Gain | None = None
    """b of the last block's projection. None: that of the others. With projection=identity: keep it, as identity +
    b*dW."""
    residual_gains_trainable: bool = False
    """Train a and b of the residual matrices (paper, Fig. 4)."""

    alpha: Gain = 1.0
    """Initial weight of the identity in skipinit and shaped attention."""
    beta: Gain | None = None
    """Initial weight of A. None: 1 for shaped, 0 for skipinit."""
    gamma: Gain = 1.0
    """Initial weight of C in shaped attention."""
    attention_gain: Gain | None = None
    """Trainable weight b_SA of the attention branch. None: absent, but 1 in a parallel block without its skip."""
    mlp_gain: Gain | None = None
    """Trainable weight b_FF of the MLP branch. None: absent (fixed to 1), but mlp_gain_at_18*sqrt(18/depth) where
    identity-like attention has lost its skip and the MLP is added to something (its own skip, or the parallel
    attention)."""
    mlp_gain_at_18: Positive = 0.1
    """The initial b_FF that blocks which need one get in a stack of 18. The paper's causal blocks have 0.1."""
    gains_trainable: bool = True
    """False fixes the gains of the branches and of the MLP's skip at their initial values."""
    all_gains: bool = False
    """Where identity-like attention has lost its skip, train every gain that the authors' code trains: attention_gain
    (from 1) and the weight a_FF of the MLP's skip (from 1) in a sequential block, too, and a and b of the residual
    matrices and of the kept first value and last projection."""

    query_key_bias: bool = False
    """Biases on queries and keys, as in the authors' code (their other matrices have none)."""
    activation: Activation = "relu"
    """Non-linearity of the MLP."""
    leaky_slope: Annotated[float, Range(0, 1e3)] = 0.2
    """Negative slope of leaky_relu."""
    glu: bool = False
    """Gated MLP; halves the hidden width, as the crammed setting does."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP over the model's width."""
    dropout: Share = 0.0
    """Dropout on the output of each branch."""
    own: str | None = None
    """A whole block of your own, FILE.py:CLASS, in place of all parts. The fields of the parts then take their
    defaults; dropout and the fields of the norm in front of the head still serve."""

    def __post_init__(self) -> None:
        check_fields(self, "block")
        self._take_own_parts()
        self._check_positions()
        if self.layout == "parallel" and self.attention_skip != self.mlp_skip:
            raise ConfigError(
                "block.mlp_skip", self.mlp_skip,
                f"a parallel block has one skip: set it to {self.attention_skip}, like attention_skip, "
                "or choose layout='sequential'",
            )
        self._check_matrix("value")
        self._check_matrix("projection")

    def _take_own_parts(self) -> None:
        """Put the digests of their files into the specs of parts of your own."""
        for name in FIELDS:
            spec = parse(getattr(self, name))
            if spec is not None:
                object.__setattr__(self, name, with_digest(spec, field=f"block.{name}"))
        if self.own is None:
            return
        if parse(self.own) is None:
            raise ConfigError("block.own", self.own, "write FILE.py:CLASS, a file and a class in it, or null")
        for field_ in fields(self):  # so that two configurations of one model are equal
            if field_.name not in ("own", "norm", "norm_eps", "norm_eps_outside", "outer_norm", "dropout"):
                object.__setattr__(self, field_.name, field_.default)

    def _check_positions(self) -> None:
        for name, switch in CHOICES.items():
            value = getattr(self, name)
            if switch.own and parse(value):
                continue
            if value not in switch.names or isinstance(value, bool) != isinstance(switch.names[0], bool):
                raise ConfigError(f"block.{name}", value, f"choose one of {switch.choices}")

    def _check_matrix(self, name: str) -> None:
        kind, init = getattr(self, name), getattr(self, f"{name}_init")
        if kind == "identity" and init not in (None, "identity"):
            raise ConfigError(f"block.{name}_init", init, f"{name}='identity' has no matrix: choose linear or residual")
        if init in ("tied", "last_tied") and (self.value == "identity" or self.resolved_value_init != "orthogonal"):
            raise ConfigError(
                f"block.{name}_init", init, "it is the transpose of an orthogonal W_V: set value_init='orthogonal'"
            )
        for end in (False, True):
            parts, own = self.matrix(name, end=end), END_GAINS[name]
            if parts.trainable and parts.delta_gain == 0:
                field_ = own if end and getattr(self, own) is not None else f"{name}_delta_gain"
                raise ConfigError(
                    f"block.{field_}", 0.0,
                    "b and dW would both start at 0 and never move: start b above 0, or fix the gains",
                )

    @property
    def switches(self) -> dict[str, str | bool]:
        """The positions of the switches, by field."""
        return {name: getattr(self, name) for name in SWITCHES}

    @property
    def identity_like(self) -> bool:
        """Whether attention starts as the identity matrix (skipinit, shaped)."""
        return self.attention in ("skipinit", "shaped")

    @property
    def skipless(self) -> bool:
        """Whether identity-like attention has lost its skip: the signal passes through its matrices alone."""
        return self.identity_like and not self.attention_skip

    @property
    def trains_all_gains(self) -> bool:
        return self.all_gains and self.skipless

    def matrix(self, name: str, *, end: bool) -> MatrixParts:
        """What the value or projection matrix of a block is made of.

        Args:
            name: value or projection.
            end: whether the block is the one whose matrix may differ: the first of the stack for the value, the last
                for the projection.
        """
        kind, own = getattr(self, name), getattr(self, END_GAINS[name]) if end else None
        kept = end and (self.first_value if name == "value" else own is not None)
        if kind == "identity" and kept:  # identity + b*dW (paper, Fig. 21)
            return MatrixParts("residual", 1.0, 1.0 if own is None else own, self.trains_all_gains)
        delta_gain = getattr(self, f"{name}_delta_gain") if own is None else own
        trainable = kind == "residual" and (self.residual_gains_trainable or self.trains_all_gains)
        return MatrixParts(kind, getattr(self, f"{name}_gain"), delta_gain, trainable)

    @property
    def resolved_outer_norm(self) -> Norm:
        return self.outer_norm or ("rms" if self.norm == "none" else self.norm)

    @property
    def resolved_query_init(self) -> QueryInit:
        return self.query_init or ("zero" if self.identity_like else "normal")

    @property
    def resolved_value_init(self) -> MatrixInit:
        return self.value_init or typing.cast(MatrixInit, self._matrix_init(self.value))

    @property
    def resolved_projection_init(self) -> ProjectionInit:
        return self.projection_init or self._matrix_init(self.projection)

    def _matrix_init(self, kind: Matrix) -> MatrixInit:
        if kind != "linear":
            return "identity"
        # Signals cross a skipless block unchanged only if its matrices keep angles (He et al. 2023).
        return "orthogonal" if self.skipless else "normal"

    @property
    def resolved_beta(self) -> float:
        return self.beta if self.beta is not None else (0.0 if self.attention == "skipinit" else 1.0)

    @property
    def resolved_attention_gain(self) -> float | None:
        if self.attention_gain is not None:
            return self.attention_gain
        return 1.0 if self.trains_all_gains or (self.layout == "parallel" and not self.attention_skip) else None

    @property
    def resolved_mlp_skip_gain(self) -> float | None:
        """Initial a_FF, or None where the MLP's skip has no gain."""
        return 1.0 if self.trains_all_gains and self.mlp_skip else None

    def resolved_mlp_gain(self, depth: int) -> float | None:
        """Initial b_FF, or None where the branch has no gain. It shrinks with the depth: O(1/sqrt(L))."""
        added_to_something = self.layout == "parallel" or self.mlp_skip
        if self.mlp_gain is None and self.skipless and added_to_something:
            return self.mlp_gain_at_18 * math.sqrt(18 / depth)
        return self.mlp_gain


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of equal blocks between an embedding and a head."""

    block: BlockConfig = field(default_factory=BlockConfig)
    depth: Annotated[int, Range(1, 10_000)] = 6
    """Number of blocks."""
    width: Size = 64
    """Model width d."""
    heads: Size = 4
    """Attention heads per block; must divide the width."""
    vocab_size: Annotated[int, Range(4, 2**24)] = 1024
    """Number of tokens, three special ones among them; also the size of the tokenizer that is trained."""
    context: Length = 128
    """Positions per window, T."""
    causal: bool = True
    """Whether a token sees only itself and its past. The task decides it in `fit`: true for clm, false for mlm."""
    positions: Positions = "sinusoidal"
    """Position vectors added to the embedding, at the same RMS as the tokens' at initialisation. Sinusoids are the
    paper's text, learned ones its authors' code. scaled_sinusoidal: sinusoids with one trained scale, as crammed BERT
    has them; they start at 1.28 times the tokens' RMS."""
    tied_head: bool = True
    """Share the embedding matrix with the head."""
    init_std: Annotated[float, Range(1e-6, 10)] | None = None
    """Standard deviation of the weights. None: 0.02*sqrt(768/width), the paper's 0.02 carried to this width."""
    embedding_rms: Annotated[float, Range(1e-6, 1e3)] = 1.0
    """RMS of a token's embedding when it enters the first block. The paper's setting is 0.02 at width 768."""
    embedding_norm: bool = False
    """Normalise the sum of embedding and positions, by the block's kind of norm, as crammed BERT does."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.width % self.heads:
            small = [h for h in range(1, math.isqrt(self.width) + 1) if self.width % h == 0]
            divisors = sorted({*small, *(self.width // h for h in small)})
            raise ConfigError("model.heads", self.heads, f"must divide width={self.width}: one of {divisors}")
        if self.positions != "learned" and self.width % 2:
            raise ConfigError("model.width", self.width, "sinusoidal positions need an even width")
        if int(self.block.mlp_ratio * self.width) < (2 if self.block.glu else 1):
            raise ConfigError("block.mlp_ratio", self.block.mlp_ratio, f"leaves no hidden unit at width {self.width}")

    @property
    def resolved_init_std(self) -> float:
        return self.init_std if self.init_std is not None else 0.02 * math.sqrt(768 / self.width)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, in which portions."""

    recipe: str = "stdlib"
    """A recipe of `data/` by name, or the path of a recipe file."""
    cache_dir: str = "data/cache"
    """Where tokenizers and packed windows are kept."""
    tokenizer: str = "bpe"
    """bpe: byte-level, trained on the corpus, the same file every time. wordpiece: BERT's; its training is not
    repeatable, so the file is kept and used again. Or the path of a tokenizer.json, with the vocabulary it has."""
    batch_size: Size = 8
    """Windows per device and step (before gradient accumulation)."""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """Loader processes. The windows are memory-mapped: 0 is fastest unless a GPU waits for them."""
    val_windows: Count | None = 256
    """Validation windows that are used, always the same, spread over the split. None: all."""
    test_windows: Count | None = 256
    """As `val_windows`, for the test split."""
    windows: Windowing = "packed"
    """packed: documents end to end, a window reads on from one into the next. document: model.context tokens of one
    document (clm: the last is only predicted), and what is left at its end is dropped, as in the authors' code."""

    def __post_init__(self) -> None:
        check_fields(self, "data")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. The defaults are the paper's causal setting, but for number of steps, learning rate and
    warm-up (the paper: 43,000, 1e-3 and 0.05), which suit the small default model."""

    steps: Count = 250
    """Optimiser steps of the run."""
    learning_rate: Annotated[float, Range(above=0, most=1e30)] = 1e-2
    """Peak learning rate."""
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.1
    """On matrices and embeddings; never on gains, norms and biases."""
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: Epsilon = 1e-8
    warmup: Share = 0.2
    """Share of the steps over which the learning rate rises."""
    warmup_start: Share = 0.0
    """Share of the peak learning rate from which the warm-up rises."""
    schedule: Schedule = "linear"
    """Decay after the warm-up: to 0 along a line or a cosine, or none."""
    clip: Annotated[float, Range(above=0, most=1e9)] | None = 1.0
    """Largest global gradient norm. None: no clipping."""
    accumulate: Annotated[int, Range(1, 10**6)] = 1
    """Batches whose gradients are summed into one step."""
    batch_ramp: Share = 0.0
    """Share of the steps over which the batches grow linearly, from one window per device, to data.batch_size."""
    mask_probability: Annotated[float, Range(above=0, below=1)] = 0.25
    """mlm: share of the tokens that are hidden and predicted."""
    mask_count: MaskCount = "independent"
    """mlm: independent draws every token of a window, exact the same number in each, of its ordinary tokens."""
    mask_rule: MaskRule = "80-10-10"
    """mlm: what stands in place of a hidden token: 80-10-10 (the mask, another token, itself) or all (the mask)."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        if self.batch_ramp * self.steps > LONGEST_RAMP:
            raise ConfigError("optim.batch_ramp", self.batch_ramp, f"of {self.steps} steps it is more than "
                              f"{LONGEST_RAMP} steps: give a smaller share")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the run is executed; what is not named here goes to `lightning.Trainer` through `options`."""

    accelerator: Annotated[str, Words(ACCELERATORS)] = "auto"
    """cpu, gpu, auto: Lightning's choice of hardware."""
    devices: Annotated[int, Range(-1, 4096, but=(0,))] | Annotated[str, Words(
        ("auto", "-1"), other=r"[1-9]\d{0,3}|\d{1,4}(,\d{1,4})+,?|\d{1,4},", form="numbers of devices, e.g. 0,1"
    )] = 1
    """Number of devices (processes); -1 or auto: all."""
    num_nodes: Annotated[int, Range(1, 10**5)] = 1
    """Number of machines."""
    strategy: Annotated[str, Words(STRATEGIES)] = "auto"
    """auto, ddp, fsdp, ...: Lightning's way of spreading a run."""
    precision: Annotated[str, Words(PRECISIONS)] = "32-true"
    """32-true, bf16-mixed, 16-mixed, 64-true, ..."""
    compile: bool = False
    """Run the model through torch.compile. No gain was seen on CPUs."""
    threads: Threads | None = None
    """CPU threads of torch. None: torch's own choice."""
    val_every: Count = 100
    """Steps between validations; the last step is always validated."""
    log_every: Count = 10
    """Steps between logged values."""
    checkpoint_every: CountOrNone = 100
    """Steps between checkpoints, from which an interrupted run continues. 0: none before the end."""
    keep_checkpoint: bool = True
    """Keep the last checkpoint of a finished run."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    inspect_every: CountOrNone = 100
    """Steps between looks inside (gains, signals by depth, gradients, attention on a fixed batch). 0: none."""
    inspect_heads: CountOrNone = 2
    """Heads of the first, the middle and the last block whose attention maps are kept."""
    progress_bar: bool = True
    """Show progress in the terminal."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `lightning.Trainer`, by their names; plain data."""

    def __post_init__(self) -> None:
        check_fields(self, "trainer")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides one training run."""

    task: Task = "clm"
    """clm: predict the next token. mlm: predict hidden tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: Seed = 0
    """Seeds the initialisation, the order of the data, the masks and dropout."""
    out_dir: str = "results/runs"
    """Each run gets a folder of its own in here."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model.causal != (self.task == "clm"):
            object.__setattr__(self, "model", replace(self.model, causal=self.task == "clm"))
        if self.task == "clm" and self.data.windows == "document" and self.model.context < 2:
            raise ConfigError("model.context", self.model.context, "a window of one token predicts none: give 2 or "
                              "more, or set data.windows=packed")

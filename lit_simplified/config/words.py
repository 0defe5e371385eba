"""The words that `lightning.Trainer` takes, known without loading it; a test compares them with its own."""

from __future__ import annotations

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine",
    "transformer-engine-float16", "16", "bf16", "32", "64",
)
STRATEGIES = (
    "auto", "single_device",
    "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true",
    "ddp_spawn", "ddp_spawn_find_unused_parameters_false", "ddp_spawn_find_unused_parameters_true",
    "ddp_fork", "ddp_fork_find_unused_parameters_false", "ddp_fork_find_unused_parameters_true",
    "ddp_notebook", "ddp_notebook_find_unused_parameters_false", "ddp_notebook_find_unused_parameters_true",
    "fsdp", "fsdp_cpu_offload",
    "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload", "deepspeed_stage_3",
    "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme",
    "single_tpu", "single_xla", "xla", "xla_debug",
)

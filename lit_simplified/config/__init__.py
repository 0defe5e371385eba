"""Configurations: the dataclasses of a run, the table of switches, the named blocks, names, text. Imports no torch."""

from lit_simplified.config.errors import ConfigError
from lit_simplified.config.naming import block_id, describe, digest, digest_text, run_id
from lit_simplified.config.own import allow, own_files
from lit_simplified.config.parsing import (
    checked_fields,
    from_dict,
    from_record,
    get_field,
    parse_assignments,
    set_fields,
    to_dict,
)
from lit_simplified.config.presets import (
    PRE_LN,
    PRESETS,
    SETTINGS,
    SHARED,
    bundle,
    in_setting,
    plain,
    preset,
    preset_of,
)
from lit_simplified.config.schema import (
    BlockConfig,
    DataConfig,
    MaskCount,
    MaskRule,
    Matrix,
    MatrixInit,
    MatrixParts,
    ModelConfig,
    OptimConfig,
    ProjectionInit,
    RunConfig,
    Schedule,
    Task,
    TrainerConfig,
    Windowing,
)
from lit_simplified.config.switches import CHOICES, SWITCHES, Position, Switch

__all__ = [
    "CHOICES", "PRESETS", "PRE_LN", "SETTINGS", "SHARED", "SWITCHES", "BlockConfig", "ConfigError", "DataConfig",
    "MaskCount", "MaskRule", "Matrix", "MatrixInit", "MatrixParts", "ModelConfig", "OptimConfig", "Position",
    "ProjectionInit", "RunConfig", "Schedule", "Switch", "Task", "TrainerConfig", "Windowing", "allow", "block_id",
    "bundle", "checked_fields", "describe", "digest", "digest_text", "from_dict", "from_record", "get_field",
    "in_setting", "own_files", "parse_assignments", "plain", "preset", "preset_of", "run_id", "set_fields", "to_dict",
]

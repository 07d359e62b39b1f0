"""The list of training methods. A method is a small module with a `build_…` function, one line here, its keys in
`config_methods.METHOD_CONFIGS`, and one YAML file in `conf/method/`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from mipo_exp.training.dpo import build_mipo
from mipo_exp.training.infonce import build_infonce
from mipo_exp.training.job import Job
from mipo_exp.training.mi_rl import build_mi_rl
from mipo_exp.training.rlaif import build_rlaif
from mipo_exp.training.rlvr import build_rlvr
from mipo_exp.training.sami import build_sami
from mipo_exp.training.sft import build_sft
from mipo_exp.training.softmax_dpo import build_softmax_dpo

if TYPE_CHECKING:
    from transformers import Trainer

METHODS: Mapping[str, Callable[[Job], "Trainer"]] = MappingProxyType(
    {
        "mipo": build_mipo,
        "softmax_dpo": build_softmax_dpo,
        "sft": build_sft,
        "infonce": build_infonce,
        "sami": build_sami,
        "rlvr": build_rlvr,
        "rlaif": build_rlaif,
        "mi_rl": build_mi_rl,
    }
)

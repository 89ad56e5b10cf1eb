"""Adapters for a frozen backbone. Importing this package registers them with PEFT:

    import dmgal.adapters, peft

    model = peft.get_peft_model(backbone, dmgal.adapters.DmgalConfig())
    model.save_pretrained("adapter")
    model = peft.PeftModel.from_pretrained(backbone, "adapter")

All of PEFT's own functions work with the result.
"""

from ..backbones import torchvision_cpu as _torchvision_cpu  # noqa: F401  (before peft imports torchvision)
from .aim import AIMConfig, AIMModel
from .base import BlockAdapterConfig
from .bitfit import BitFitConfig, BitFitModel
from .d2st import D2STConfig, D2STModel
from .dmgal import CmgaConfig, DmgalConfig, DmgalModel, SmgaConfig
from .layer import AdapterLayer
from .st_adapter import STAdapterConfig, STAdapterModel
from .tuner import BlockTuner, register

TUNERS: dict[type[BlockAdapterConfig], type[BlockTuner]] = {
    DmgalConfig: DmgalModel,
    STAdapterConfig: STAdapterModel,
    AIMConfig: AIMModel,
    D2STConfig: D2STModel,
    BitFitConfig: BitFitModel,
}
for _config_class, _tuner_class in TUNERS.items():
    register(_config_class, _tuner_class)

PREFIXES = ("lora_", *(tuner.prefix for tuner in TUNERS.values()))
"""Name prefixes of the parameters that adapters and LoRAs add."""

__all__ = [
    "PREFIXES",
    "TUNERS",
    "AIMConfig",
    "AdapterLayer",
    "BitFitConfig",
    "BlockAdapterConfig",
    "BlockTuner",
    "CmgaConfig",
    "D2STConfig",
    "DmgalConfig",
    "DmgalModel",
    "STAdapterConfig",
    "SmgaConfig",
    "register",
]

"""Adapters for a frozen backbone. Importing this package registers them with PEFT:

    import dmgal.adapters, peft

    model = peft.get_peft_model(backbone, dmgal.adapters.DmgalConfig())
    model.save_pretrained("adapter")
    model = peft.PeftModel.from_pretrained(backbone, "adapter")

All of PEFT's own functions work with the result.
"""

from ..backbones import torchvision_cpu as _torchvision_cpu  # noqa: F401  (before peft imports torchvision)
from .aim_peft import AIMConfig, AIMModel
from .bitfit import BitFitConfig, BitFitModel
from .block_config import BlockAdapterConfig
from .config import CmgaConfig, DmgalConfig, SmgaConfig
from .d2st_peft import D2STConfig, D2STModel
from .layer import AdapterLayer
from .registration import register
from .st_adapter_peft import STAdapterConfig, STAdapterModel
from .tuner import BlockTuner, DmgalModel

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

"""Adapters for a frozen backbone. Importing this package registers them with PEFT:

    import dmgal.adapters, peft

    model = peft.get_peft_model(backbone, dmgal.adapters.DmgalConfig())
    model.save_pretrained("adapter")
    model = peft.PeftModel.from_pretrained(backbone, "adapter")

All of PEFT's own functions work with the result.
"""

from .aim import AIMConfig, AIMModel
from .autograd import differentiable_twice
from .base import BlockAdapterConfig
from .bitfit import BitFitConfig, BitFitModel
from .d2st import D2STConfig, D2STModel
from .dmgal import CmgaConfig, DmgalConfig, DmgalModel, SmgaConfig
from .layer import AdapterLayer
from .pretrained import BUNDLED, backbone_of, bundled_adapters, fits, load_adapter, pretrained
from .side import SideConfig, SideModel
from .st_adapter import STAdapterConfig, STAdapterModel
from .targets import METHODS, check_precision, targets
from .tuner import ADAPTERS, BlockTuner, is_added, register

register(DmgalConfig, DmgalModel)
register(STAdapterConfig, STAdapterModel)
register(AIMConfig, AIMModel)
register(D2STConfig, D2STModel)
register(BitFitConfig, BitFitModel)
register(SideConfig, SideModel)

__all__ = [
    "ADAPTERS",
    "BUNDLED",
    "METHODS",
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
    "SideConfig",
    "SmgaConfig",
    "backbone_of",
    "bundled_adapters",
    "check_precision",
    "differentiable_twice",
    "fits",
    "is_added",
    "load_adapter",
    "pretrained",
    "register",
    "targets",
]

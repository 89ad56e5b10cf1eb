"""What is added to a frozen backbone. Importing this package registers the adapters with PEFT:

    import dmgal.adapters, peft

    model = peft.get_peft_model(backbone, dmgal.adapters.DmgalConfig())
    model.save_pretrained("adapter")
    model = peft.PeftModel.from_pretrained(backbone, "adapter")

All of PEFT's own calls work from there on.
"""

from ..backbones import torchvision_cpu as _torchvision_cpu  # noqa: F401  (before peft imports torchvision)
from .config import CmgaConfig, DmgalConfig, SmgaConfig
from .registration import DMGAL, register
from .tuner import DmgalModel

register(DMGAL, DmgalConfig, DmgalModel)

__all__ = ["CmgaConfig", "DmgalConfig", "DmgalModel", "SmgaConfig"]

"""Configs of every adapter for four frames, and the unsupported pairs of backbone and adapter."""

from __future__ import annotations

import peft

from dmgal.adapters import (
    AIMConfig,
    BitFitConfig,
    CmgaConfig,
    D2STConfig,
    DmgalConfig,
    SideConfig,
    SmgaConfig,
    STAdapterConfig,
)

FRAMES = 4
ADAPTER_CASES: dict[str, peft.PeftConfig] = {
    "DMGAL": DmgalConfig(num_frames=FRAMES),
    "DMGAL multi-scale": DmgalConfig(num_frames=FRAMES, scales="multi", directions="separate"),
    "DMGAL no switches": DmgalConfig(num_frames=FRAMES, attention=False, signed=False, temporal=False),
    "Smga": SmgaConfig(num_frames=FRAMES),
    "Smga before": SmgaConfig(num_frames=FRAMES, smga_placement="before"),
    "Cmga": CmgaConfig(num_frames=FRAMES),
    "Cmga two before the end": DmgalConfig(num_frames=FRAMES, cmga_blocks=[0], smga_blocks=[1, 2]),
    "two Cmga": DmgalConfig(num_frames=FRAMES, cmga_blocks=[0, 2], smga_blocks=[1]),
    "ST-Adapter": STAdapterConfig(num_frames=FRAMES),
    "ST-Adapter twice": STAdapterConfig(num_frames=FRAMES, places="attention+mlp", kernel=(3, 3, 3)),
    "AIM": AIMConfig(num_frames=FRAMES),
    "D2ST": D2STConfig(num_frames=FRAMES),
    "BitFit": BitFitConfig(num_frames=FRAMES),
    "side": SideConfig(num_frames=FRAMES),
}
REFUSED = {("DINOv3", "AIM"), ("timm EVA", "AIM")}
"""AIM's temporal pass does not support rotary attention."""

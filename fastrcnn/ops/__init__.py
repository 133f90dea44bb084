"""RoI operators and non-maximum suppression.

This folder imports only torch, torchvision, numpy and the standard library, so it can be copied into other projects.
README.md in this folder is the specification.
"""

from typing import TYPE_CHECKING, Any

from .nms import batched_nms, nms
from .roi_pool import RoIPool, roi_pool
from .roi_warp import RoIWarp, roi_align, roi_warp

if TYPE_CHECKING:
    from torchvision.ops import RoIAlign

__all__ = ["RoIAlign", "RoIPool", "RoIWarp", "batched_nms", "nms", "roi_align", "roi_pool", "roi_warp"]


def __getattr__(name: str) -> Any:
    """Import torchvision's RoIAlign on first access, because importing torchvision is slow."""
    if name == "RoIAlign":
        from torchvision.ops import RoIAlign

        return RoIAlign
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

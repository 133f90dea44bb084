"""RoI operators and non-maximum suppression.

Imports torch, torchvision, numpy and the standard library only: this folder can be copied out whole and used
on its own. README.md beside this file is the contract.
"""

from .nms import batched_nms
from .roi_pool import RoIPool, roi_pool
from .roi_warp import RoIAlign, RoIWarp, roi_align, roi_warp

__all__ = ["RoIAlign", "RoIPool", "RoIWarp", "batched_nms", "roi_align", "roi_pool", "roi_warp"]

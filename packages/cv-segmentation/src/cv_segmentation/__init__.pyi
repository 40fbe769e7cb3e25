from .crf import dense_crf as dense_crf
from .inference import FLIPS as FLIPS
from .inference import QUARTER_TURNS as QUARTER_TURNS
from .inference import View as View
from .inference import sliding_window as sliding_window
from .inference import test_time_augmentation as test_time_augmentation
from .losses.boundary import BoundaryLoss as BoundaryLoss
from .losses.boundary import boundary_loss as boundary_loss
from .losses.boundary import signed_distance as signed_distance
from .losses.lovasz import LovaszLoss as LovaszLoss
from .losses.lovasz import lovasz_loss as lovasz_loss
from .losses.overlap import DiceLoss as DiceLoss
from .losses.overlap import SoftIoULoss as SoftIoULoss
from .losses.overlap import TverskyLoss as TverskyLoss
from .losses.overlap import dice_loss as dice_loss
from .losses.overlap import soft_iou_loss as soft_iou_loss
from .losses.overlap import tversky_loss as tversky_loss
from .losses.pixelwise import CrossEntropyLoss as CrossEntropyLoss
from .losses.pixelwise import FocalLoss as FocalLoss
from .losses.pixelwise import cross_entropy_loss as cross_entropy_loss
from .losses.pixelwise import focal_loss as focal_loss
from .overlays import OKABE_ITO as OKABE_ITO
from .overlays import mask_grid as mask_grid
from .overlays import overlay_mask as overlay_mask
from .padding import Padded as Padded

__version__: str
# The methods' public names, written from the cards by tools/index.py:

from .insertion import insert_attention as insert_attention
from .insertion import insert_attention_ as insert_attention_
from .insertion import remove_attention as remove_attention
from .insertion import remove_attention_ as remove_attention_

__version__: str

# The methods' public names, written from the cards by tools/index.py:
from .methods.fd_module import FDConv as FDConv
from .methods.fd_module import FeatureDifference as FeatureDifference
from .methods.fd_module import add_feature_difference as add_feature_difference
from .methods.fd_module import add_feature_difference_ as add_feature_difference_
from .methods.fd_module import fd_placement as fd_placement
from .methods.fd_module import fd_resnet as fd_resnet
from .methods.fd_module import fd_resnet110 as fd_resnet110
from .methods.fd_module import fd_resnet20 as fd_resnet20
from .methods.fd_module import fd_resnet32 as fd_resnet32
from .methods.fd_module import fd_resnet44 as fd_resnet44
from .methods.fd_module import fd_resnet56 as fd_resnet56
from .methods.fd_module import feature_difference as feature_difference
from .methods.fd_module import feature_difference_mask as feature_difference_mask

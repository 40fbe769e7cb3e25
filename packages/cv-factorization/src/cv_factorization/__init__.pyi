from .multiview import CCA as CCA
from .nonnegative.nmf import NMF as NMF
from .nonnegative.semi import ConvexNMF as ConvexNMF
from .nonnegative.semi import SemiNMF as SemiNMF
from .robust_pca import RobustPCA as RobustPCA
from .sparse.coding import SparseCoder as SparseCoder
from .sparse.coding import sparse_encode as sparse_encode
from .sparse.convolutional import convolutional_codes as convolutional_codes
from .sparse.convolutional import convolutional_image as convolutional_image
from .sparse.ksvd import KSVD as KSVD
from .sparse.online import OnlineDictionaryLearning as OnlineDictionaryLearning
from .sparse.pursuit import omp as omp
from .tensors import CPTensor as CPTensor
from .tensors import TuckerTensor as TuckerTensor
from .tensors import parafac as parafac
from .tensors import tucker as tucker

__version__: str

# The methods' public names, written from the cards by tools/index.py:
from .baselines.nmf import MCNMF as MCNMF
from .methods.anmmf import ANMMF as ANMMF
from .nonnegative.nmf import GNMF as GNMF

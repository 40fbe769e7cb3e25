__version__: str
# The methods' public names, written from the cards by tools/index.py:
from .baselines.nmf import GNMF as GNMF
from .baselines.nmf import MCNMF as MCNMF
from .methods.anmmf import ANMMF as ANMMF

__version__: str
# The methods' public names, written from the cards by tools/index.py:
from .methods.icce import ICCELoss as ICCELoss
from .methods.icce import gradient_weight as gradient_weight
from .methods.icce import icce as icce
from .methods.icce import icce_loss as icce_loss

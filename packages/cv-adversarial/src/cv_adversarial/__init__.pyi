from .attacks.apgd import APGD as APGD
from .attacks.apgd import apgd as apgd
from .attacks.base import Attack as Attack
from .attacks.base import AttackResult as AttackResult
from .attacks.carlini_wagner import CarliniWagner as CarliniWagner
from .attacks.carlini_wagner import carlini_wagner as carlini_wagner
from .attacks.deepfool import DeepFool as DeepFool
from .attacks.deepfool import deepfool as deepfool
from .attacks.fab import FAB as FAB
from .attacks.fab import fab as fab
from .attacks.gradient import FGSM as FGSM
from .attacks.gradient import PGD as PGD
from .attacks.gradient import fgsm as fgsm
from .attacks.gradient import pgd as pgd
from .attacks.square import Square as Square
from .attacks.square import square as square
from .attacks.transfer import DIFGSM as DIFGSM
from .attacks.transfer import MIFGSM as MIFGSM
from .attacks.transfer import NIFGSM as NIFGSM
from .attacks.transfer import SIFGSM as SIFGSM
from .attacks.transfer import TIFGSM as TIFGSM
from .attacks.transfer import TransferAttack as TransferAttack
from .attacks.transfer import transfer_attack as transfer_attack
from .evaluation import TargetedAPGD as TargetedAPGD
from .evaluation import evaluate_robustness as evaluate_robustness
from .evaluation import standard_attacks as standard_attacks
from .evaluation_report import RobustnessReport as RobustnessReport
from .evaluation_report import Threat as Threat

__version__: str

# The methods' public names, written from the cards by tools/index.py:
from .methods.icce import ICCELoss as ICCELoss
from .methods.icce import gradient_weight as gradient_weight
from .methods.icce import icce as icce
from .methods.icce import icce_loss as icce_loss

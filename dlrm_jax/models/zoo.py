"""The models, by name."""

from __future__ import annotations

from dlrm_jax.models.afn import AFN, AFNPlus
from dlrm_jax.models.autoint import AutoInt, AutoIntPlus
from dlrm_jax.models.dcn import DCN, DCNv2
from dlrm_jax.models.deepfm import DeepFM
from dlrm_jax.models.din import DIN
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.esmm import ESMM
from dlrm_jax.models.fcn import FCN
from dlrm_jax.models.fields import Model
from dlrm_jax.models.finalmlp import FinalMLP
from dlrm_jax.models.finalnet import FinalNet
from dlrm_jax.models.fm import FM
from dlrm_jax.models.gdcn import GDCN
from dlrm_jax.models.history_ranking import HSTURanking, STCARanking
from dlrm_jax.models.logistic_regression import LogisticRegression
from dlrm_jax.models.masknet import MaskNet
from dlrm_jax.models.mmoe import MMoE
from dlrm_jax.models.ncf import NCF
from dlrm_jax.models.ple import PLE
from dlrm_jax.models.rankmixer import RankMixer
from dlrm_jax.models.shared_bottom import SharedBottom
from dlrm_jax.models.ssr import SSR
from dlrm_jax.models.wide_deep import WideDeep
from dlrm_jax.models.wukong import Wukong
from dlrm_jax.models.xdeepfm import XDeepFM

MODELS: dict[str, type[Model]] = {
    "logistic_regression": LogisticRegression,
    "fm": FM,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "xdeepfm": XDeepFM,
    "dcn": DCN,
    "dcn_v2": DCNv2,
    "autoint": AutoInt,
    "ncf": NCF,
    "din": DIN,
    "hstu": HSTURanking,
    "stca": STCARanking,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "esmm": ESMM,
    "autoint_plus": AutoIntPlus,
    "afn": AFN,
    "afn_plus": AFNPlus,
    "masknet": MaskNet,
    "finalmlp": FinalMLP,
    "finalnet": FinalNet,
    "gdcn": GDCN,
    "fcn": FCN,
    "wukong": Wukong,
    "rankmixer": RankMixer,
    "ssr": SSR,
    "dlrm": DLRM,
}

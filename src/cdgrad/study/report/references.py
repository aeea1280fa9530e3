"""The references of a methods paragraph in BibTeX: of what it cites, each once, and of nothing else."""

from __future__ import annotations

import re

_ENTRIES = {
    "lao2020channel": """@article{lao2020channel,
  title   = {Channel-Directed Gradients for Optimization of Convolutional Neural Networks},
  author  = {Lao, Dong and Zhu, Peihao and Wonka, Peter and Sundaramoorthi, Ganesh},
  journal = {arXiv preprint arXiv:2008.10766},
  year    = {2020}
}
""",
    "yong2020gradient": """@inproceedings{yong2020gradient,
  title     = {Gradient Centralization: A New Optimization Technique for Deep Neural Networks},
  author    = {Yong, Hongwei and Huang, Jianqiang and Hua, Xiansheng and Zhang, Lei},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}
""",
    "sun2022numerical": """@misc{sun2022numerical,
  title         = {A {PDE}-based Explanation of Extreme Numerical Sensitivities and Edge of Stability in
                   Training Neural Networks},
  author        = {Sun, Yuxin and Lao, Dong and Yezzi, Anthony and Sundaramoorthi, Ganesh},
  year          = {2022},
  eprint        = {2206.02001},
  archivePrefix = {arXiv}
}
""",
    "sobol1967distribution": """@article{sobol1967distribution,
  title   = {On the Distribution of Points in a Cube and the Approximate Evaluation of Integrals},
  author  = {Sobol, Ilya M.},
  journal = {USSR Computational Mathematics and Mathematical Physics},
  volume  = {7},
  number  = {4},
  pages   = {86--112},
  year    = {1967}
}
""",
    "holm1979simple": """@article{holm1979simple,
  title   = {A Simple Sequentially Rejective Multiple Test Procedure},
  author  = {Holm, Sture},
  journal = {Scandinavian Journal of Statistics},
  volume  = {6},
  number  = {2},
  pages   = {65--70},
  year    = {1979}
}
""",
    "schuirmann1987comparison": """@article{schuirmann1987comparison,
  title   = {A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing the
             Equivalence of Average Bioavailability},
  author  = {Schuirmann, Donald J.},
  journal = {Journal of Pharmacokinetics and Biopharmaceutics},
  volume  = {15},
  number  = {6},
  pages   = {657--680},
  year    = {1987}
}
""",
    "wang2023anytime": """@misc{wang2023anytime,
  title         = {Anytime-valid t-tests and confidence sequences for {G}aussian means with unknown variance},
  author        = {Wang, Hongjian and Ramdas, Aaditya},
  year          = {2023},
  eprint        = {2310.03722},
  archivePrefix = {arXiv}
}
""",
    "hall1992removal": """@article{hall1992removal,
  title   = {On the Removal of Skewness by Transformation},
  author  = {Hall, Peter},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume  = {54},
  number  = {1},
  pages   = {221--228},
  year    = {1992}
}
""",
    "agarwal2021deep": """@inproceedings{agarwal2021deep,
  title     = {Deep Reinforcement Learning at the Edge of the Statistical Precipice},
  author    = {Agarwal, Rishabh and Schwarzer, Max and Castro, Pablo Samuel and Courville, Aaron and
               Bellemare, Marc G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}
""",
}
_CITATION = re.compile(r"\[(" + "|".join(_ENTRIES) + r")\]")


def bibtex(text: str) -> str:
    """The entries of what `text` cites as ``[key]``, in the order of their first citation."""
    return "\n".join(_ENTRIES[key] for key in dict.fromkeys(_CITATION.findall(text)))


def cites(text: str) -> str:
    r"""`text` with ``\cite{key}`` in place of ``[key]``; other brackets, such as of a list, stay."""
    return _CITATION.sub(r"\\cite{\1}", text)

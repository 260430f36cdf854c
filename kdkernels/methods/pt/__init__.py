"""Around the perturbed loss, `kdkernels.Perturbed`: the teacher that it stands for, and the choice of its coefficients.

    search = pt.search_coefficients(teacher_logits, labels)    # on a labelled validation set
    loss = kd.Perturbed(search.coefficients)
    proxy = pt.proxy_teacher(teacher_logits.softmax(-1), search.coefficients)

Source: Zhang et al., "Knowledge Distillation with Perturbed Loss: From a Vanilla Teacher to a Proxy Teacher", KDD 2024
(arXiv 2305.05010).
"""

from .proxy import ProxyTeacher, proxy_teacher
from .quality import quality
from .search import Search, Trial, search_coefficients

__all__ = ["ProxyTeacher", "Search", "Trial", "proxy_teacher", "quality", "search_coefficients"]

"""What the papers need around their losses, as modules that are imported by name.

from kdkernels.methods import pt      # perturbed loss (PTLoss): proxy teachers, and the search for coefficients
from kdkernels.methods import tgeo    # trilateral geometry (TGeo-KD): a fusion ratio per sample, learnt bilevel
"""

"""What the papers need around their losses, as modules that are imported by name.

from kdkernels.methods import pt      # perturbed loss (PTLoss): proxy teachers, and the search for coefficients
from kdkernels.methods import tgeo    # trilateral geometry (TGeo-KD): a fusion ratio per sample, learnt bilevel
from kdkernels.methods import auxiliary  # auxiliary-variable KD: the student's own features retrieve a prediction
from kdkernels.methods import complexity  # how complex labels or teachers are for a student, by its tangent kernel
from kdkernels.methods import online  # online distillation: the student learns from the teacher of its own moment
"""

// The list of losses: KD_LOSSES(X) calls X(name, Term) for each. The Python registry must equal it (a test compares).
#pragma once

#include "forward_kl.h"
#include "jensen_shannon.h"
#include "perturbed.h"
#include "reverse_kl.h"
#include "skew_kl.h"
#include "skew_reverse_kl.h"
#include "total_variation.h"

#define KD_LOSSES(X)                                                                                                   \
  X(forward_kl, ForwardKL)                                                                                             \
  X(reverse_kl, ReverseKL)                                                                                             \
  X(jensen_shannon, JensenShannon)                                                                                     \
  X(total_variation, TotalVariation)                                                                                   \
  X(skew_kl, SkewKL)                                                                                                   \
  X(skew_reverse_kl, SkewReverseKL)                                                                                    \
  X(perturbed, Perturbed)

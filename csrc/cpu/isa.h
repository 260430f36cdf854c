// The instruction sets that this build holds and this processor runs, fastest first.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace kd_cpu {

std::vector<const Kernels *> runnable();

// The table called `name`; throws std::invalid_argument naming what there is where it cannot run here.
const Kernels &by_name(const std::string &name);

} // namespace kd_cpu

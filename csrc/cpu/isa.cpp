#include "isa.h"

#include <stdexcept>

namespace kd_cpu {

std::vector<const Kernels *> runnable() {
  std::vector<const Kernels *> found;
#ifdef KD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx2 && avx512)
    found.push_back(&kAvx512);
  if (avx2)
    found.push_back(&kAvx2);
#endif
  found.push_back(&kBaseline);
  return found;
}

const Kernels &by_name(const std::string &name) {
  std::string names;
  for (const Kernels *kernels : runnable()) {
    if (name == kernels->name)
      return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("KDKERNELS_ISA must be one of " + names + " on this processor, got " + name);
}

} // namespace kd_cpu

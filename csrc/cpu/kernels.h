// What the instruction sets and the binding agree on: one table of functions per instruction set.
#pragma once

#include "../calls.h"

namespace kd_cpu {

using namespace kd_calls;

// Work on rows [begin, end); `scratch` holds scratch_bytes(vocab, wide) bytes, 64-byte aligned.
struct Kernels {
  const char *name;
  int losses;
  const char *const *loss_names;
  void (*const *divergence)(const Divergence &, int64_t begin, int64_t end, void *scratch); // [loss * 2 + wide]
  void (*softmax[2])(const Softmax &, int64_t begin, int64_t end, void *scratch);           // [wide]
  void (*softmax_backward[2])(const Softmax &, int64_t begin, int64_t end, void *scratch);
  void (*scale[2])(const Scale &, int64_t begin, int64_t end, void *scratch);
  void (*trilateral[2])(const Trilateral &, int64_t begin, int64_t end, void *scratch);
  void (*trilateral_backward[2])(const Trilateral &, int64_t begin, int64_t end, void *scratch);
};

// Columns are padded to whole blocks of vectors so that no loop has a remainder.
constexpr int64_t kPad = 16;
constexpr int64_t kBlock = 1024; // columns whose logits and exponentials stay in the first-level cache
inline int64_t padded(int64_t vocab) { return (vocab + kPad - 1) / kPad * kPad; }
inline int64_t block_width(int64_t vocab, int64_t block) {
  const int64_t left = vocab - block * kBlock;
  return left < kBlock ? left : kBlock;
}
inline int64_t blocks(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }
// Three rows of exponentials, four block buffers, and the three bases of every block.
inline int64_t scratch_bytes(int64_t vocab, bool wide) {
  return (3 * padded(vocab) + 4 * kBlock + 3 * (blocks(vocab) + kPad)) * (wide ? 8 : 4);
}

extern const Kernels kBaseline;
#ifdef KD_X86
extern const Kernels kAvx2, kAvx512;
#endif

} // namespace kd_cpu

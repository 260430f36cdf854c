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

// The functions here are static: of an inline one the linker may keep the copy that was compiled for the newest
// instructions.

// Columns are padded to whole blocks of vectors so that no loop has a remainder.
constexpr int64_t kPad = 16;
constexpr int64_t kBlock = 1024; // columns whose logits and exponentials stay in the first-level cache
static inline int64_t padded(int64_t vocab) { return (vocab + kPad - 1) / kPad * kPad; }
static inline int64_t block_width(int64_t vocab, int64_t block) {
  const int64_t left = vocab - block * kBlock;
  return left < kBlock ? left : kBlock;
}
static inline int64_t blocks(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// Rows of at most kShortVocab columns are taken kLanes at a time, one per vector lane: a register's worth of float32 on
// the widest instructions. Measured crossover, AVX-512: as long as rows on their own take at 192 columns (ForwardKL;
// Jensen-Shannon 0.9, the trilateral forward 0.8), half as long at 100; AVX2: 0.99 at 192 and 0.63 at 100.
constexpr int64_t kLanes = 16, kShortVocab = 192;
// Seven columns of lanes, rows on their way there, and numbers per row; short.inl and its like check that it is enough.
constexpr int64_t kShortScratch = 8 * kShortVocab * kLanes + 32 * kLanes;

// Else three rows of exponentials, four block buffers, and the three bases of every block; of short rows that is less.
static inline int64_t scratch_bytes(int64_t vocab, bool wide) {
  const int64_t rows_alone = 3 * padded(vocab) + 4 * kBlock + 3 * (blocks(vocab) + kPad);
  return (vocab <= kShortVocab ? kShortScratch : rows_alone) * (wide ? 8 : 4);
}
static_assert(3 * kShortVocab + 4 * kBlock + 3 * (1 + kPad) <= kShortScratch, "backward may take short rows alone");

extern const Kernels kBaseline;
#ifdef KD_X86
extern const Kernels kAvx2, kAvx512;
#endif

} // namespace kd_cpu

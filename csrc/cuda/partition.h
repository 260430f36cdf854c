// Which columns of a row fall to whom: to a block of a cluster, and, within a block, to whole 16-byte vectors.
#pragma once

#include "../math.h"

namespace KD_NAMESPACE {

struct Slice {
  int64_t first;
  int columns;
};

// Block `rank` of `blocks` gets a run of columns of a multiple of 8 (16 bytes of the narrowest dtype), so that a row
// that starts on a vector boundary does so in every block. The last ones may be short or empty.
KD_FN Slice slice_of(int64_t vocab, int blocks, int rank) {
  const int64_t share = ((vocab + blocks - 1) / blocks + 7) / 8 * 8;
  const int64_t first = share * rank < vocab ? share * rank : vocab;
  const int64_t left = vocab - first;
  return {first, static_cast<int>(left < share ? left : share)};
}

// A run of columns as `head` single ones up to a 16-byte boundary, `vectors` of them, and single ones to the end.
template <int Width> struct Vectors {
  int head, vectors, columns;

  KD_FN Vectors(uint64_t address, int columns_) : columns(columns_) {
    const int past = static_cast<int>(address % 16) / (16 / Width);
    head = (Width - past) % Width;
    head = head < columns ? head : columns;
    vectors = (columns - head) / Width;
  }

  KD_FN int singles() const { return columns - vectors * Width; }
  KD_FN int single(int i) const { return i < head ? i : i + vectors * Width; }
  KD_FN int vector(int i) const { return head + i * Width; }
  // Where column 0 has to lie in aligned memory for its vectors to lie on boundaries too.
  KD_FN int offset() const { return (Width - head) % Width; }
};

} // namespace KD_NAMESPACE

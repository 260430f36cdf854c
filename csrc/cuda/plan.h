// Which form of a schedule a row gets, and how it is launched: data and arithmetic, on the host, known to the tests.
//
// None of the numbers has been timed on a GPU; each is chosen from the arithmetic beside it.
#pragma once

#include <stdint.h>

#include "row.h"

namespace KD_NAMESPACE {

enum class Form : int { lanes, block, cluster, streaming };

struct Plan {
  Form form;
  int threads; // of a block
  int lanes;   // of a row, where a block holds several
  int cluster; // blocks of a row
  int64_t shared;
};

// What of a device matters.
struct Limits {
  int64_t shared;      // bytes that a block may have, its static ones included
  int largest_cluster; // 1 where there are none
};

// Up to here a row is a warp's or less: 32 columns a lane, one barrier fewer, and a block of 4 warps holds 4 rows or
// more.
constexpr int64_t kLanesVocab = 1024;
constexpr int kLanesThreads = 128, kThreads = 512;
// A row, or its share, of this many bytes leaves room for three blocks on a multiprocessor of 228 KiB, each with 5 KiB
// that are not a row's: while one waits for memory or at a barrier, another computes.
constexpr int64_t kComfortable = 70 * 1024;

// What every device that has clusters grants.
constexpr int kPortableCluster = 8;

// What a block has of shared memory beside the staged rows: where its reductions meet (Places in group.cuh, 4224), and
// 1024 that the driver reserves, on whichever side of the limit it counts them.
constexpr int64_t kPlacesBytes = 4224 + 1024;

// `tensors` rows of `item` bytes a column are staged per row.
inline Plan plan_for(int64_t vocab, int64_t item, int tensors, const Limits &limits) {
  if (vocab <= kLanesVocab) {
    int lanes = 4; // at least 4 columns a lane, so that a group of few columns does not idle through its reductions
    while (lanes < 32 && lanes * 4 < vocab)
      lanes *= 2;
    return {Form::lanes, kLanesThreads, lanes, 1, kLanesThreads / lanes * tensors * staged_bytes(vocab, item)};
  }
  const auto share = [&](int blocks) { return tensors * staged_bytes(slice_of(vocab, blocks, 0).columns, item); };
  // The smallest cluster whose shares are comfortable, else the largest one, if it fits at all.
  int blocks = 1;
  while (blocks < limits.largest_cluster && share(blocks) > kComfortable)
    blocks *= 2;
  if (share(blocks) > limits.shared - kPlacesBytes)
    return {Form::streaming, kThreads, 0, 1, 0};
  return {blocks == 1 ? Form::block : Form::cluster, kThreads, 0, blocks, share(blocks)};
}

// A map over rows and columns: block (i, j) takes rows [i rows, (i + 1) rows) and columns [j columns, (j + 1) columns).
struct Shares {
  int64_t rows;
  int columns;
  unsigned down, across; // the grid
};

// As many blocks of kThreads as a multiprocessor holds at once: where the factor is 1 a launch costs its blocks' start.
constexpr int kScalingBlocks = 4;

// Over at most `blocks` blocks; columns are divided, in runs of kThreads vectors of 8, where there are fewer rows.
inline Shares shares_of(int64_t rows, int64_t vocab, int blocks) {
  const auto parts = [](int64_t of, int64_t by) { return (of + by - 1) / by; };
  const int64_t per_block = parts(rows, blocks), down = parts(rows, per_block), run = 8 * kThreads;
  const int64_t columns = parts(parts(vocab, run), blocks / down) * run;
  return {per_block, static_cast<int>(columns), unsigned(down), unsigned(parts(vocab, columns))};
}

} // namespace KD_NAMESPACE

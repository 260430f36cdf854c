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

} // namespace KD_NAMESPACE

// Groups of threads that share a row: lanes of a warp, a block, a cluster of blocks (row.h says what they offer).
//
// A merge may be computed in either order of its arguments, so that two lanes may differ in the last bit; nothing that
// a barrier depends on is decided by such a value.
#pragma once

#include <cooperative_groups.h>

#include "partition.h"

namespace KD_NAMESPACE {

namespace cg = cooperative_groups;

constexpr int kLargestValue = 64; // bytes of what is merged

template <class T> __device__ __forceinline__ T from_lane_xor(const T &value, int offset, unsigned mask) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= kLargestValue, "words are shuffled");
  uint32_t words[sizeof(T) / 4];
  __builtin_memcpy(words, &value, sizeof value);
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 4); ++i)
    words[i] = __shfl_xor_sync(mask, words[i], offset);
  T other;
  __builtin_memcpy(&other, words, sizeof other);
  return other;
}

template <class T, class Merge>
__device__ __forceinline__ T over_lanes(T value, int lanes, unsigned mask, const Merge &merge) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value = merge(value, from_lane_xor(value, offset, mask));
  return value;
}

// `lanes` neighbouring lanes of a warp, a power of two.
struct Lanes {
  int lanes, lane;
  unsigned mask;

  __device__ explicit Lanes(int lanes_) : lanes(lanes_), lane(threadIdx.x % lanes_) {
    const int first = threadIdx.x % 32 / lanes * lanes;
    mask = (lanes == 32 ? 0xffffffffu : (1u << lanes) - 1) << first;
  }
  __device__ int thread() const { return lane; }
  __device__ int threads() const { return lanes; }
  __device__ Slice slice(int64_t vocab) const { return {0, static_cast<int>(vocab)}; }
  __device__ bool leader() const { return lane == 0; }
  __device__ void barrier() const { __syncwarp(mask); }
  template <class T, class Merge> __device__ T all(const T &value, const Merge &merge) const {
    barrier();
    return over_lanes(value, lanes, mask, merge);
  }
};

// Two sets of places, used in turn: by the time that a set is written again, every thread has passed the barrier of the
// other one and with it its reads of this one.
struct Places {
  alignas(16) char warps[2][32][kLargestValue];
  alignas(16) char block[2][kLargestValue];
};

// A power of two of whole warps.
struct Block {
  Places &places;
  mutable int turn = 0;

  __device__ explicit Block(Places &places_) : places(places_) {}
  __device__ int thread() const { return threadIdx.x; }
  __device__ int threads() const { return blockDim.x; }
  __device__ Slice slice(int64_t vocab) const { return {0, static_cast<int>(vocab)}; }
  __device__ bool leader() const { return threadIdx.x == 0; }
  __device__ void barrier() const { __syncthreads(); }
  template <class T, class Merge> __device__ T all(T value, const Merge &merge) const {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    auto &now = places.warps[turn];
    turn ^= 1;
    value = over_lanes(value, 32, 0xffffffffu, merge);
    if (lane == 0)
      *reinterpret_cast<T *>(now[threadIdx.x / 32]) = value;
    __syncthreads();
    return over_lanes(*reinterpret_cast<const T *>(now[lane % warps]), warps, 0xffffffffu, merge);
  }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// The blocks of a cluster, a power of two; whoever uses it ends with a cluster barrier, because peers read its places.
struct Cluster {
  Block block;

  __device__ explicit Cluster(Places &places) : block(places) {}
  __device__ int thread() const { return block.thread(); }
  __device__ int threads() const { return block.threads(); }
  __device__ Slice slice(int64_t vocab) const {
    const cg::cluster_group cluster = cg::this_cluster();
    return slice_of(vocab, cluster.num_blocks(), cluster.block_rank());
  }
  __device__ bool leader() const { return block.leader() && cg::this_cluster().block_rank() == 0; }
  __device__ void barrier() const { block.barrier(); }
  template <class T, class Merge> __device__ T all(T value, const Merge &merge) const {
    const cg::cluster_group cluster = cg::this_cluster();
    char *mine = block.places.block[block.turn];
    value = block.all(value, merge);
    if (block.leader())
      *reinterpret_cast<T *>(mine) = value;
    cluster.sync();
    const int blocks = cluster.num_blocks(), rank = threadIdx.x % 32 % blocks;
    const T *theirs = reinterpret_cast<const T *>(cluster.map_shared_rank(mine, rank));
    return over_lanes(*theirs, blocks, 0xffffffffu, merge);
  }
};
#endif

} // namespace KD_NAMESPACE

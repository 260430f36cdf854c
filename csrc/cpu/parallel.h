// Rows shared out over the threads of one call, each with scratch of its own.
#pragma once

#include <omp.h>

#include <cstdlib>
#include <new>

#include "kernels.h"

namespace kd_cpu {

// Below this many columns in all, waking a second thread costs more than it brings (a few microseconds). A row costs
// as much as this many columns on top of its own.
constexpr int64_t kColumnsPerThread = 16384, kRowColumns = 16;

// Memory that a thread keeps between calls: one row's exponentials, a few hundred KiB at 32k columns.
class Scratch {
public:
  ~Scratch() { std::free(memory_); }
  void *at_least(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
      size_ = memory_ ? bytes : 0;
    }
    return memory_;
  }

private:
  void *memory_ = nullptr;
  int64_t size_ = 0;
};

template <class Call>
void for_rows(void (*kernel)(const Call &, int64_t, int64_t, void *), const Call &call, bool wide, int threads) {
  static thread_local Scratch scratch;
  const int64_t useful = call.rows * (call.vocab + kRowColumns) / kColumnsPerThread;
  const int64_t limit = useful < call.rows ? useful : call.rows;
  const int64_t used = limit < 1 ? 1 : limit < threads ? limit : threads;
  // Chunks of rows large enough that taking one is free, small enough that no thread waits long for the last.
  // Short rows come in whole groups: one of two rows takes as long as one of sixteen.
  const int64_t parts = used == 1 ? 1 : 8 * used, least = call.vocab <= kShortVocab ? kLanes : 1;
  const int64_t share = (call.rows + parts - 1) / parts;
  const int64_t chunk = share < 1 ? least : (share + least - 1) / least * least;
  bool failed = false;
#pragma omp parallel num_threads(static_cast<int>(used)) if (used > 1) reduction(|| : failed)
  {
    void *memory = scratch.at_least(scratch_bytes(call.vocab, wide));
    failed = memory == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < call.rows; begin += chunk)
      if (memory)
        kernel(call, begin, begin + chunk < call.rows ? begin + chunk : call.rows, memory);
  }
  if (failed)
    throw std::bad_alloc();
}

} // namespace kd_cpu

// A group of threads as csrc/cuda/row.h wants it, on a host: blocks of std::threads that meet at std::barriers.
#pragma once

#include <barrier>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "cuda/partition.h"

namespace KD_NAMESPACE {

constexpr int kLargestValue = 64; // bytes of what is merged, as in csrc/cuda/group.cuh

// Threads that exchange values at one barrier. Two sets of places, used in turn: by the time that a set is written
// again, every thread has passed the barrier of the other one and with it its reads of this one.
class Meeting {
public:
  explicit Meeting(int members) : barrier_(members), places_(members) {}

  void wait() { barrier_.arrive_and_wait(); }

  // What `partner` brought to the meeting at which `mine` brings `value`.
  template <class T> T trade(const T &value, int mine, int partner, int &turn) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0 && sizeof(T) <= kLargestValue);
    const int now = turn;
    turn ^= 1;
    std::memcpy(places_[mine].bytes[now], &value, sizeof value);
    wait();
    T other;
    std::memcpy(&other, places_[partner].bytes[now], sizeof other);
    return other;
  }

private:
  struct Place {
    alignas(16) char bytes[2][kLargestValue];
  };
  std::barrier<> barrier_;
  std::vector<Place> places_;
};

// A block's shared memory, aligned as a device's is. Before each row all of it is a NaN of every dtype, and so is what
// lies behind it, which no row may write.
class SharedMemory {
public:
  explicit SharedMemory(int64_t bytes)
      : bytes_(bytes), data_(static_cast<unsigned char *>(::operator new(bytes + kGuard, std::align_val_t(16)))) {}
  ~SharedMemory() { ::operator delete(data_, std::align_val_t(16)); }
  SharedMemory(const SharedMemory &) = delete;

  char *data() const { return reinterpret_cast<char *>(data_); }
  void poison() { std::memset(data_, 0xff, bytes_ + kGuard); }
  bool overrun() const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (data_[bytes_ + i] != 0xff)
        return true;
    return false;
  }

private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kGuard = 0; // what lies behind the bytes is the sanitizer's to watch, reads included
#else
  static constexpr int64_t kGuard = 64;
#endif
  int64_t bytes_;
  unsigned char *data_;
};

struct Block {
  Meeting meeting;
  SharedMemory shared;
  int overruns = 0;

  Block(int threads, int64_t bytes) : meeting(threads), shared(bytes) {}
};

// `blocks` blocks of `threads` threads, powers of two.
struct Team {
  int threads;
  Meeting meeting;
  std::vector<std::unique_ptr<Block>> blocks;

  Team(int count, int threads_, int64_t shared) : threads(threads_), meeting(count * threads_) {
    for (int i = 0; i < count; ++i)
      blocks.push_back(std::make_unique<Block>(threads, shared));
  }
};

// One thread of a team and how it sees the others. A merge is the butterfly of csrc/cuda/group.cuh with a barrier at
// every level: over the threads of a block, then over the blocks.
class Member {
public:
  Member(Team &team, int block, int thread) : team_(team), block_(block), thread_(thread) {}

  int thread() const { return thread_; }
  int threads() const { return team_.threads; }
  int block() const { return block_; }
  int blocks() const { return static_cast<int>(team_.blocks.size()); }
  Slice slice(int64_t vocab) const { return slice_of(vocab, blocks(), block_); }
  bool leader() const { return thread_ == 0 && block_ == 0; }
  Block &own() const { return *team_.blocks[block_]; }
  void barrier() const { own().meeting.wait(); }

  template <class T, class Merge> T all(T value, const Merge &merge) const {
    for (int offset = threads() / 2; offset > 0; offset /= 2)
      value = merge(value, own().meeting.trade(value, thread_, thread_ ^ offset, turn_));
    for (int offset = blocks() / 2; offset > 0; offset /= 2)
      value = merge(value, team_.meeting.trade(value, place(block_), place(block_ ^ offset), team_turn_));
    return value;
  }

private:
  int place(int block) const { return block * threads() + thread_; }

  Team &team_;
  int block_, thread_;
  mutable int turn_ = 0, team_turn_ = 0;
};

// row_of(member, row) for every row by all threads of one team; returns how often shared memory was overrun.
template <class RowOf> int over_rows(Team &team, int64_t rows, const RowOf &row_of) {
  const auto life = [&](int block, int thread) {
    const Member member(team, block, thread);
    for (int64_t row = 0; row < rows; ++row) {
      if (thread == 0)
        member.own().shared.poison();
      member.barrier();
      row_of(member, row);
      team.meeting.wait();
      if (thread == 0)
        member.own().overruns += member.own().shared.overrun();
    }
  };
  std::vector<std::thread> threads;
  for (int block = 0; block < static_cast<int>(team.blocks.size()); ++block)
    for (int thread = 0; thread < team.threads; ++thread)
      threads.emplace_back(life, block, thread);
  for (auto &thread : threads)
    thread.join();
  int overruns = 0;
  for (const auto &block : team.blocks)
    overruns += block->overruns;
  return overruns;
}

} // namespace KD_NAMESPACE

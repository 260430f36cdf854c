// The part of libgomp that the extension calls, with threads whose start and end ThreadSanitizer sees: libgomp itself is
// not instrumented, and every parallel region would be reported. Rows are handed out without an order between threads
// (relaxed), so that two of them at one row would show.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  unsigned size;
  std::once_flag begun;
  std::atomic<long> next{0};
  long end = 0, chunk = 1;
  std::mutex mutex;
  std::condition_variable all;
  unsigned arrived = 0;
};

thread_local Team *team = nullptr;

} // namespace

extern "C" {

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned) {
  Team here{threads ? threads : 2};
  Team *outer = team;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < here.size; ++i)
    others.emplace_back([&] {
      team = &here;
      body(data);
    });
  team = &here;
  body(data);
  team = outer;
  for (auto &other : others)
    other.join();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *begin, long *end) {
  *begin = team->next.fetch_add(team->chunk, std::memory_order_relaxed);
  *end = std::min(*begin + team->chunk, team->end);
  return *begin < team->end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long first, long last, long step, long chunk, long *begin, long *end) {
  std::call_once(team->begun, [=] {
    team->next.store(first, std::memory_order_relaxed);
    team->end = last;
    team->chunk = step * chunk;
  });
  return GOMP_loop_nonmonotonic_dynamic_next(begin, end);
}

void GOMP_loop_end() {
  std::unique_lock<std::mutex> lock(team->mutex);
  if (++team->arrived == team->size)
    team->all.notify_all();
  else
    team->all.wait(lock, [here = team] { return here->arrived >= here->size; });
}
}

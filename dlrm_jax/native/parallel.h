// Shared by all native kernels: custom calls of XLA's foreign function interface, for operations
// that its CPU backend lacks or runs slowly. All are optional: each has a formulation in JAX, too,
// and tests compare the two.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// The threads that run at once: XLA's pool has one for each device that a CPU emulates, and more
// than there are cores only take each other's caches.
inline int64_t Threads(ffi::ThreadPool pool) {
  static const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return std::clamp<int64_t>(pool.num_threads(), 1, cores);
}

// Counts the kernels that run. Emulated devices call them at once, each from a thread of its own.
class Running {
 public:
  Running() : number_(running_.fetch_add(1) + 1) {}
  ~Running() { running_.fetch_sub(1); }
  Running(const Running&) = delete;
  int64_t number() const { return number_; }  // of kernels when this one began, itself included

 private:
  static inline std::atomic<int64_t> running_{0};
  const int64_t number_;
};

// Runs work(0) ... work(tasks - 1), on this kernel's share of the cores, and waits for all. The
// caller takes tasks as well and waits for begun ones alone, so that callers that fill the whole pool
// can't wait for each other.
template <typename Work>
void Parallel(ffi::ThreadPool pool, int64_t tasks, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable changed;
    int64_t done = 0;
  };
  auto shared = std::make_shared<Shared>();
  auto take = [shared, tasks, &work] {
    int64_t finished = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < tasks; ++finished) work(i);
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += finished) == tasks) shared->changed.notify_all();
  };
  const Running running;
  const int64_t helpers = std::min(Threads(pool) / running.number(), tasks) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([take] { take(); });
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->done == tasks; });
}

// Threads for kernels that are called outside of XLA.

#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// Runs work(0) ... work(tasks - 1) on this thread and up to `threads` - 1 others, and waits for
// all. A thread that can't be had is done without.
template <typename Work>
void OnThreads(int64_t threads, int64_t tasks, const Work& work) {
  std::atomic<int64_t> next{0};
  auto take = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) work(i);
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads && i < tasks; ++i) {
    try {
      helpers.emplace_back(take);
    } catch (const std::system_error&) {
      break;
    }
  }
  take();
  for (std::thread& helper : helpers) helper.join();
}

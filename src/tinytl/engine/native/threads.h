// Images over threads. A thread takes whole images, so that results do not depend on their number.
#pragma once

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace tinytl {

// Calls f(image, thread) for every image below `count`; `thread` is below `threads` and tells concurrent
// calls apart. Threads are started for this call and end with it: starting one takes some hundredths of a
// millisecond, and nothing spins or outlives a fork. The calling thread works, too.
template <class F>
void for_each_image(long count, long threads, F&& f) {
  std::atomic<long> next{0};
  const auto work = [&](long thread) {
    for (long image = next++; image < count; image = next++) f(image, thread);
  };
  std::vector<std::thread> helpers;
  try {
    for (long thread = 1; thread < threads && thread < count; thread++) helpers.emplace_back(work, thread);
  } catch (const std::system_error&) {
    // The system allows no more threads: those that are there do the work.
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace tinytl

// Images over threads. A thread takes whole images, so that results do not depend on their number.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace tinytl {

// Threads that sleep until there is work. None spins: where other programs keep the cores busy, waiting
// threads would take the time that the working ones need. For the same reason the calling thread works, too,
// and when no image is left it waits for helpers that are at one, but not for those that have not woken up.
class ThreadPool {
 public:
  using Work = std::function<void(long image, long thread)>;

  // The pool of this process: a fork has none of its parent's threads, and gets a pool of its own. Pools are
  // never destroyed, because their threads wait in them until the process ends.
  static ThreadPool& of_this_process() {
    static std::atomic<ThreadPool*> current{nullptr};
    ThreadPool* pool = current;
    if (pool && pool->process == getpid()) return *pool;
    ThreadPool* made = new ThreadPool;
    if (current.compare_exchange_strong(pool, made)) return *made;
    delete made;  // another thread was faster
    return *pool;
  }

  // Calls work for every image below `images`, on at most `threads` threads. False: another call is using the
  // helpers, and nothing was done.
  bool run(long images, long threads, const Work& work) {
    const std::unique_lock<std::mutex> call(calls, std::try_to_lock);
    if (!call) return false;
    offer(images, threads - 1, work);
    take_images(0);
    std::unique_lock<std::mutex> lock(state);
    places = 0;
    finished.wait(lock, [&] { return working == 0; });
    return true;
  }

 private:
  const pid_t process = getpid();
  std::mutex calls;  // one at a time
  std::mutex state;  // guards what follows; a call's work and images do not change while one works at it
  std::condition_variable offered, finished;
  const Work* work = nullptr;
  long images = 0;
  long helpers = 0;              // threads there are
  long places = 0;               // how many more of them may join the call
  long joined = 0, working = 0;  // how many have joined it, and how many have not finished
  std::atomic<long> next{0};     // the next image that nobody has taken

  void offer(long count, long wanted, const Work& call) {
    const std::lock_guard<std::mutex> lock(state);
    try {
      for (; helpers < wanted; helpers++) std::thread(&ThreadPool::help, this).detach();
    } catch (const std::system_error&) {
      // The system allows no more threads: those that are there do the work.
    }
    work = &call;
    images = count;
    places = wanted;
    joined = 0;
    next = 0;
    offered.notify_all();
  }

  void take_images(long thread) {
    for (long image = next++; image < images; image = next++) (*work)(image, thread);
  }

  void help() {
    std::unique_lock<std::mutex> lock(state);
    for (;;) {
      offered.wait(lock, [&] { return places > 0; });
      places--, working++;
      const long thread = ++joined;
      lock.unlock();
      take_images(thread);
      lock.lock();
      if (--working == 0) finished.notify_one();
    }
  }
};

// Calls f(image, thread) for every image below `images`; `thread` is below `threads` and tells concurrent calls
// apart.
template <class F>
void for_each_image(long images, long threads, F&& f) {
  threads = threads < images ? threads : images;
  if (threads > 1 && ThreadPool::of_this_process().run(images, threads, std::ref(f))) return;
  for (long image = 0; image < images; image++) f(image, 0);
}

}  // namespace tinytl

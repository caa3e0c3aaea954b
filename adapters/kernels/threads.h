// Sharing a loop between torch's OpenMP threads, on a machine that may have other work.
//
// The end of a parallel region waits for its slowest thread; when other programs hold the cores that can be a time slice,
// hundreds of times a kernel's own length. So the wait is measured, and after a long one the kernels run on the caller's
// thread alone for a while: as long as the wait, and twice as long each time that the next long wait comes soon. One
// program that wakes now and then costs little, and a machine that stays busy a few percent instead of everything.
#pragma once

#include <algorithm>
#include <atomic>

#include "kernels.h"

#if defined(_OPENMP)
extern "C" int omp_get_thread_num();
#endif

namespace fluvial {
bool may_share();            // whether a parallel region may start now; threads.cpp
int64_t clock_ns();          // a clock that only goes forward
void waited(int64_t ns);     // how long the caller's thread waited at the end of a region
}  // namespace fluvial

namespace {

constexpr int64_t THREADED = 1 << 18;  // multiply-adds below which threads cost more than they save; chips/cpu.py

// job(i) for i in [0, jobs), in any order, by up to `threads` threads.
template <typename Job>
INLINE void share(int64_t jobs, int64_t threads, const Job &job) {
  threads = threads < jobs ? threads : jobs;
  if (threads <= 1 || !fluvial::may_share()) {
    for (int64_t i = 0; i < jobs; ++i) job(i);
    return;
  }
  int64_t done = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < jobs; ++i) job(i);
#pragma omp master
    done = fluvial::clock_ns();
  }
  fluvial::waited(fluvial::clock_ns() - done);
}

// A part of the jobs of `share_parts`: those from `begin` to `end` are left.
struct alignas(64) Part {
  std::atomic<uint64_t> left;  // begin, end: 32 bits each

  void set(uint64_t begin, uint64_t end) { left.store(begin << 32 | end, std::memory_order_relaxed); }
  // The first of them, or the last; -1 when none is left.
  INLINE int64_t take(Part &part, bool first) {
    uint64_t now = part.left.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = now >> 32, end = now & 0xffffffffu;
      if (begin >= end) return -1;
      if (part.left.compare_exchange_weak(now, first ? now + (uint64_t{1} << 32) : now - 1, std::memory_order_relaxed))
        return static_cast<int64_t>(first ? begin : end - 1);
    }
  }
};

// job(i) for i in [0, jobs), neighbours one after another on one of up to `threads` threads: each has a part of its own,
// and who is done takes from the ends of the others'.
template <typename Job>
INLINE void share_parts(int64_t jobs, int64_t threads, const Job &job) {
  constexpr int64_t MOST = 64;
  threads = std::min({threads, jobs, MOST});
  if (threads <= 1 || !fluvial::may_share()) {
    for (int64_t i = 0; i < jobs; ++i) job(i);
    return;
  }
  Part parts[MOST];
  for (int64_t t = 0; t < threads; ++t) parts[t].set(t * jobs / threads, (t + 1) * jobs / threads);
  int64_t done = 0;
#pragma omp parallel num_threads(threads)
  {
#if defined(_OPENMP)
    const int64_t own = omp_get_thread_num();
#else
    const int64_t own = 0;
#endif
    for (int64_t t = 0; t < threads; ++t)
      for (int64_t i, whose = (own + t) % threads; (i = Part::take(parts[whose], t == 0)) >= 0;) job(i);
#pragma omp master
    done = fluvial::clock_ns();
  }
  fluvial::waited(fluvial::clock_ns() - done);
}

// run(row) for rows in [0, rows), some neighbours a job.
template <typename Run>
INLINE void share_rows(int64_t rows, int64_t threads, const Run &run) {
  constexpr int64_t some = 16;
  share((rows + some - 1) / some, threads, [&](int64_t job) {
    for (int64_t row = job * some; row < rows && row < (job + 1) * some; ++row) run(row);
  });
}

}  // namespace

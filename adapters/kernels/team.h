// The threads that run one program together: one leads and calls the kernels, the others take jobs of theirs.
//
// Whoever finds no job brings the matrix that comes next nearer: the memory is busy while the leader does what cannot be
// shared. The leader takes jobs from the front and the others from the back, so that each finds there what it fetched.
// Only jobs are waited for: a helper that another program holds up before it took one keeps nobody waiting.
#pragma once

#include <algorithm>
#include <atomic>

#include "threads.h"

namespace fluvial {

struct Team {
  static constexpr int BITS = 20;
  static constexpr int64_t MASK = (1 << BITS) - 1;
  static constexpr int64_t FETCHED = 256 << 10;  // bytes of a matrix, for a second cache of a megabyte

  std::atomic<uint64_t> taken{0};  // from the front, from the back, of how many jobs: BITS each
  std::atomic<int64_t> done{0};
  std::atomic<bool> over{false};
  Share run = nullptr;
  const void *what = nullptr;
  std::atomic<const char *> next{nullptr};  // behind the bytes that will be read next
  std::atomic<int64_t> bytes{0};

  void lead();             // the calling thread, until it dismisses the team
  void dismiss();
  void help(bool fetch);   // until then; `fetch`: also by bringing nearer what comes next
  void expect(const char *from, int64_t size) {
    bytes.store(size, std::memory_order_relaxed);
    next.store(from ? from + size : nullptr, std::memory_order_release);
  }
};

}  // namespace fluvial

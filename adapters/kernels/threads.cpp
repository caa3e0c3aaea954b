// The state behind threads.h, one for the process.

#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace fluvial {

constexpr int64_t LONG = 200'000;  // ns; waking a sleeping thread takes 50'000
constexpr int64_t SOON = 4, MOST = 32;  // times the wait
static std::atomic<int64_t> alone_until{0}, rest{1};

int64_t clock_ns() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

bool may_share() {
  const int64_t until = alone_until.load(std::memory_order_relaxed);
  return until == 0 || clock_ns() >= until;
}

void waited(int64_t ns) {
  if (ns <= LONG) return;
  const int64_t now = clock_ns(), shared = now - alone_until.load(std::memory_order_relaxed);
  const int64_t times = shared > SOON * ns ? 1 : std::min(2 * rest.load(std::memory_order_relaxed), MOST);
  rest.store(times, std::memory_order_relaxed);
  alone_until.store(now + times * ns, std::memory_order_relaxed);
}

}  // namespace fluvial

// The state behind threads.h, one for the process.

#include "threads.h"

#include <atomic>
#include <chrono>

namespace fluvial {

constexpr int64_t LONG = 200'000;  // ns; waking a sleeping thread takes 50'000
constexpr int64_t REST = 20;
static std::atomic<int64_t> alone_until{0};

int64_t clock_ns() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

bool may_share() {
  const int64_t until = alone_until.load(std::memory_order_relaxed);
  return until == 0 || clock_ns() >= until;
}

void waited(int64_t ns) {
  alone_until.store(ns > LONG ? clock_ns() + REST * ns : 0, std::memory_order_relaxed);
}

}  // namespace fluvial

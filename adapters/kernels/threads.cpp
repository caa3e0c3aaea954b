// The state behind threads.h, one for the process.

#include "team.h"

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

static thread_local Team *led = nullptr;

INLINE void rest_a_moment() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The next job from the front or from the back; -1 if none is left.
static int64_t take(Team &team, bool back) {
  uint64_t now = team.taken.load(std::memory_order_acquire);
  while (true) {
    const int64_t front = now & Team::MASK, behind = now >> Team::BITS & Team::MASK, jobs = now >> 2 * Team::BITS;
    if (front + behind >= jobs) return -1;
    if (team.taken.compare_exchange_weak(now, now + (back ? 1 << Team::BITS : 1), std::memory_order_acquire))
      return back ? jobs - 1 - behind : front;
  }
}

void Team::lead() { led = this; }

void Team::dismiss() {
  led = nullptr;
  over.store(true, std::memory_order_release);
}

void Team::help(bool fetch) {
  const char *known = nullptr, *place = nullptr;
  int64_t left = 0;
  while (!over.load(std::memory_order_acquire)) {
    if (const int64_t job = take(*this, true); job >= 0) {
      run(what, job);
      done.fetch_add(1, std::memory_order_release);
      continue;
    }
    if (const char *end = next.load(std::memory_order_acquire); fetch && end != known)
      known = place = end, left = end ? std::min(bytes.load(std::memory_order_relaxed), FETCHED) : 0;
    if (left <= 0) rest_a_moment();
    for (int line = 0; line < 8 && left > 0; ++line, left -= 64) __builtin_prefetch(place -= 64, 0, 2);
  }
}

bool together(Share run, const void *job, int64_t jobs) {
  Team *team = led;
  if (team == nullptr) return false;
  if (jobs <= 1 || jobs > Team::MASK || team->over.load(std::memory_order_relaxed)) {
    for (int64_t i = 0; i < jobs; ++i) run(job, i);
    return true;
  }
  team->run = run, team->what = job;
  team->done.store(0, std::memory_order_relaxed);
  team->taken.store(static_cast<uint64_t>(jobs) << 2 * Team::BITS, std::memory_order_release);
  for (int64_t i; (i = take(*team, false)) >= 0; team->done.fetch_add(1, std::memory_order_relaxed)) run(job, i);
  if (team->done.load(std::memory_order_acquire) == jobs) return true;
  const int64_t begin = clock_ns();
  while (team->done.load(std::memory_order_acquire) != jobs) rest_a_moment();
  waited(clock_ns() - begin);
  if (!may_share()) team->over.store(true, std::memory_order_release);
  return true;
}

}  // namespace fluvial

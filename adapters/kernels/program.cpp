// A recorded forward (adapters/recording.py): its kernel calls in order, run by one call from Python.
//
// A call is the address of a kernel that takes words, their number n, where the next matrix lies behind it and how large
// that is, and n pairs of a base and a value: the word is bases[base] + value. Base 0 is 0, for what never moves; the
// others are where this run's buffers lie. A program is only read, so threads may share it.

#include <omp.h>

#include "team.h"

static constexpr int64_t MOST = 64;  // words of a call; recording.py

static void run(const int64_t *code, int64_t calls, const int64_t *bases, fluvial::Team *team) {
  int64_t words[MOST];
  for (int64_t call = 0; call < calls; ++call) {
    const auto kernel = reinterpret_cast<void (*)(const int64_t *)>(code[0]);
    const int64_t n = code[1];
    if (team) team->expect(reinterpret_cast<const char *>(code[2]), code[3]);
    code += 4;
    for (int64_t i = 0; i < n; ++i, code += 2) words[i] = bases[code[0]] + code[1];
    kernel(words);
  }
}

extern "C" __attribute__((visibility("default"))) void fluvial_run_program(const int64_t *code, int64_t calls,
                                                                           const int64_t *bases, int64_t threads) {
  if (threads <= 1 || !fluvial::may_share()) return run(code, calls, bases, nullptr);
  fluvial::Team team;
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_thread_num() == 0) {
      team.lead();
      run(code, calls, bases, &team);
      team.dismiss();
    } else {
      team.help(omp_get_thread_num() == 1);
    }
  }
}

// A recorded forward (adapters/recording.py): its kernel calls in order, run by one call from Python.
//
// A call is the address of a kernel that takes words, their number n, and n pairs of a base and a value: the word is
// bases[base] + value. Base 0 is 0, for what never moves; the others are where this run's buffers lie. A program is only
// read, so threads may share it.

#include <cstdint>

static constexpr int64_t MOST = 64;  // words of a call; recording.py

extern "C" __attribute__((visibility("default"))) void fluvial_run_program(const int64_t *code, int64_t calls,
                                                                           const int64_t *bases) {
  int64_t words[MOST];
  for (int64_t call = 0; call < calls; ++call) {
    const auto kernel = reinterpret_cast<void (*)(const int64_t *)>(code[0]);
    const int64_t n = code[1];
    code += 2;
    for (int64_t i = 0; i < n; ++i, code += 2) words[i] = bases[code[0]] + code[1];
    kernel(words);
  }
}

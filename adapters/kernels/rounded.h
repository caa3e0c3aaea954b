// Activations as whole numbers, for the products of int4 and int8 weights.
//
// 32 neighbouring columns become multiples of a common unit. Of fp32 (WIDE) the largest is nearly 2^23 units (int8: 2^22),
// which keeps what fp32 would keep of it: a word of 16 bits and a signed byte below it. Of bf16 it is 32639 units, one word: an error of
// 2^-16 of the largest, where bf16 itself has 2^-9. Codes times whole numbers are summed exactly, so only adding the
// groups of a row rounds again; for any number of rows and on every instruction set the numbers are the same.
#pragma once

#include <cmath>

#include "words.h"

namespace {

constexpr int64_t PAIR = 32;  // columns that share a unit

struct Step {
  float unit, by;  // `by` is 1 / unit; where not all is finite NaN and 0
};
template <int SLOTS, bool WIDE>
INLINE Step step_of(float largest, bool finite) {
  constexpr float UNITS = !WIDE ? 32639.f : SLOTS == 4 ? 8.3e6f : 4.1e6f;  // no sum of a lane overflows, no byte
  const float step = largest > UNITS * 1.2e-38f ? largest / UNITS : 1.2e-38f;
  return finite ? Step{step, 1.f / step} : Step{__builtin_nanf(""), 0.f};
}

// The columns of one 64-byte vector of codes. SLOTS 4: int4, 128 columns; 2: int8, 64 columns. Slot s holds what the s-th
// code of each 16-bit word is multiplied by, `low` what the codes of each byte are; the lanes of 32 columns stand together.
template <int SLOTS, bool WIDE>
struct Rounded {
  static constexpr int64_t COLUMNS = 32 * SLOTS, PAIRS = SLOTS, LANES_OF = 16 / PAIRS;
  static constexpr int32_t ZERO = SLOTS == 4 ? 8 : 0, LOW_ZERO = SLOTS == 4 ? 8 : 128;  // the codes that stand for 0
  alignas(64) int16_t words[SLOTS][32];
  alignas(64) int8_t low[WIDE ? SLOTS / 2 : 1][64];
  alignas(64) float unit[16];               // of each lane
  alignas(64) float sum[16];                // of a lane's activations
  alignas(64) int32_t start[16];             // what the codes that stand for 0 add to a lane, negative
  int32_t starts[PAIRS], low_starts[PAIRS];  // the same for 32 columns, of words and of low bytes

  void fill(const float *x, int64_t columns) {
    if (columns < COLUMNS) std::memset(this, 0, sizeof *this);
    for (int pair = 0; pair < PAIRS && PAIR * pair < columns; ++pair) fill_pair(pair, x + PAIR * pair);
    const int16_t one[2] = {1, 1};
    Ints totals = same(0), lows = same(0);
    for (int s = 0; s < SLOTS; ++s) totals = add_products(totals, ::words(words[s]), ::pairs(one));
    const int32_t ones = 0x01010101;
    for (int s = 0; WIDE && s < SLOTS / 2; ++s) lows = add_byte_products(lows, ::pairs(&ones), ::words(low[s]));
    int32_t total[16], rest[16];
    store(total, totals), store(rest, lows);
    for (int i = 0; i < 16; ++i) {
      sum[i] = static_cast<float>(WIDE ? 256 * total[i] + rest[i] : total[i]) * unit[i];
      start[i] = WIDE ? -256 * ZERO * total[i] - LOW_ZERO * rest[i] : -ZERO * total[i];
    }
    for (int pair = 0; pair < PAIRS; ++pair) {
      starts[pair] = low_starts[pair] = 0;
      for (int i = LANES_OF * pair; i < LANES_OF * (pair + 1); ++i)
        starts[pair] -= ZERO * total[i], low_starts[pair] -= LOW_ZERO * rest[i];
    }
  }

 private:
  void fill_pair(int pair, const float *x) {
    float largest = 0.f, off = 0.f;
#pragma omp simd reduction(max : largest) reduction(+ : off)
    for (int i = 0; i < PAIR; ++i) {
      const float size = std::fabs(x[i]);
      largest = size > largest ? size : largest;
      off += x[i] * 0.f;  // not 0 if one is not finite
    }
    const Step step = step_of<SLOTS, WIDE>(largest, off == 0.f);
    for (int half = 0; half < 2; ++half) {  // int4: each sixteen columns have slots of their own
      const int slot = SLOTS == 4 ? half : 0, word = SLOTS == 4 ? 8 * pair : 16 * pair + 8 * half;
      Ints whole = rounded(x + 16 * half, step.by);
      if (WIDE) {
        low_bytes(whole, SLOTS == 4 ? low[WIDE ? half : 0] + 16 * pair : low[0] + 32 * pair + 16 * half);
        whole = high_part(whole);
      }
      store_apart(whole, words[slot] + word, words[slot + SLOTS / 2] + word);
    }
    for (int lane = 0; lane < LANES_OF; ++lane) unit[LANES_OF * pair + lane] = step.unit;
  }
};

}  // namespace

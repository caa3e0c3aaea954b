// Activations as whole numbers, for the products of int4 and int8 weights.
//
// 32 neighbouring columns become multiples of a common unit. Of fp32 (WIDE) the largest is nearly 2^23 units (int8:
// 2^22), which keeps what fp32 would keep of it: three signed bytes. Of bf16 it is 32639 units, two bytes: an error of
// 2^-16 of the largest, where bf16 itself has 2^-9. Codes times whole numbers are summed exactly over the 32 columns;
// only adding those sums rounds again, in the order of the columns. So a row's result is the same beside any others.
#pragma once

#include <cmath>

#include "words.h"

namespace {

constexpr int64_t PAIR = 32;     // columns that share a unit
constexpr int FOURS = PAIR / 4;  // vectors of four columns of sixteen rows

struct Step {
  float unit, by;  // `by` is 1 / unit; where not all is finite NaN and 0
};
template <int SLOTS, bool WIDE>
INLINE Step step_of(float largest, bool finite) {
  constexpr float UNITS = !WIDE ? 32639.f : SLOTS == 4 ? 8.3e6f : 4.1e6f;  // no sum of a lane overflows, no byte
  const float step = largest > UNITS * 1.2e-38f ? largest / UNITS : 1.2e-38f;
  return finite ? Step{step, 1.f / step} : Step{__builtin_nanf(""), 0.f};
}

// The activations of 32 columns. SLOTS 4: for int4, 2: for int8.
template <int SLOTS, bool WIDE>
struct Rounded {
  static constexpr int32_t ZERO = SLOTS == 4 ? 8 : 128;  // the code that stands for 0; int8 plus 128
#if defined(__AVX512VNNI__)
  static constexpr int DIGITS = WIDE ? 3 : 2;
  int8_t digits[DIGITS][PAIR];  // the lowest first
#else
  int16_t words[WIDE ? 2 : 1][2][PAIR / 2];  // without the last eight bits, those; even columns, odd columns
#endif
  float unit, sum;     // sum: of the 32 activations
  int32_t high, low;  // of the whole numbers without their last eight bits, of those; not WIDE: high is of all

  void fill(const float *x) {
    float largest = 0.f, off = 0.f;
#pragma omp simd reduction(max : largest) reduction(+ : off)
    for (int i = 0; i < PAIR; ++i) {
      const float size = std::fabs(x[i]);
      largest = size > largest ? size : largest;
      off += x[i] * 0.f;  // not 0 if one is not finite
    }
    const Step step = step_of<SLOTS, WIDE>(largest, off == 0.f);
    high = low = 0;
    for (int half = 0; half < 2; ++half) {
      const Ints all = rounded(x + 16 * half, step.by), above = WIDE ? high_part(all) : all;
#if defined(__AVX512VNNI__)
      store_bytes(all, digits[0] + 16 * half);
      store_bytes(high_part(all), digits[1] + 16 * half);
      if (WIDE) store_bytes(high_part(high_part(all)), digits[DIGITS - 1] + 16 * half);
#else
      store_apart(above, words[0][0] + 8 * half, words[0][1] + 8 * half);
      if (WIDE) store_apart(low_part(all), words[WIDE][0] + 8 * half, words[WIDE][1] + 8 * half);
#endif
      high += total(above);
      if (WIDE) low += total(low_part(all));
    }
    unit = step.unit;
    sum = static_cast<float>(WIDE ? 256 * high + low : high) * unit;
  }

  // The products of sixteen rows' codes, four columns a vector, with the whole numbers.
  VECTORS Lanes dot(const Rounded &x, const Words (&codes)[FOURS]) {
    Ints high = same(-ZERO * x.high), low = same(-ZERO * x.low);
#if defined(__AVX512VNNI__)
    Ints highest = same(0);
    if (!WIDE) low = high;
#pragma GCC unroll 8
    for (int i = 0; i < FOURS; ++i) {
      low = add_byte_products(low, codes[i], fours(x.digits[0] + 4 * i));
      if (WIDE) high = add_byte_products(high, codes[i], fours(x.digits[1] + 4 * i));
      highest = add_byte_products(highest, codes[i], fours(x.digits[DIGITS - 1] + 4 * i));
    }
    high = above(highest, WIDE ? high : low);
#else
#pragma GCC unroll 8
    for (int i = 0; i < FOURS; ++i) {
      const Words even = even_bytes(codes[i]), odd = odd_bytes(codes[i]);
      high = add_products(high, even, fours(x.words[0][0] + 2 * i));
      high = add_products(high, odd, fours(x.words[0][1] + 2 * i));
      if (WIDE) low = add_products(low, even, fours(x.words[WIDE][0] + 2 * i));
      if (WIDE) low = add_products(low, odd, fours(x.words[WIDE][1] + 2 * i));
    }
#endif
    return WIDE ? fma(to_float(high), all(256.f), to_float(low)) : to_float(high);
  }
};

}  // namespace

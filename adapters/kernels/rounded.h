// Activations as whole numbers, for the products of int4 and int8 weights.
//
// 32 neighbouring columns become multiples of a common unit, of which the largest has 32639: two signed bytes, an error
// of at most 2^-16 of the largest (int8 activations would have 2^-8, a bf16 number has 2^-9 of itself). Codes times whole
// numbers are summed exactly over the 32 columns; only adding those sums rounds again, in the order of the columns. So a
// row's result is the same beside any others.
#pragma once

#include <cmath>

#include "words.h"

namespace {

constexpr int64_t PAIR = 32;     // columns that share a unit
constexpr int FOURS = PAIR / 4;  // vectors of four columns of sixteen rows

struct Step {
  float unit, by;  // `by` is 1 / unit; where not all is finite NaN and 0
};
INLINE Step step_of(float largest, bool finite) {
  constexpr float UNITS = 32639.f;
  const float step = largest > UNITS * 1.2e-38f ? largest / UNITS : 1.2e-38f;
  return finite ? Step{step, 1.f / step} : Step{__builtin_nanf(""), 0.f};
}

// The activations of 32 columns. SLOTS 4: for int4, 2: for int8.
template <int SLOTS>
struct Rounded {
  static constexpr int32_t ZERO = SLOTS == 4 ? 8 : 128;  // the code that stands for 0; int8 plus 128
#if defined(__AVX512VNNI__)
  int8_t bytes[2][PAIR];  // the lower ones first
#else
  int16_t words[2][PAIR / 2];  // even columns, odd columns
#endif
  float unit, sum;  // sum: of the 32 activations
  int32_t all_units;  // of the whole numbers

  void fill(const float *x) {
    float largest = 0.f, off = 0.f;
#pragma omp simd reduction(max : largest) reduction(+ : off)
    for (int i = 0; i < PAIR; ++i) {
      const float size = std::fabs(x[i]);
      largest = size > largest ? size : largest;
      off += x[i] * 0.f;  // not 0 if one is not finite
    }
    const Step step = step_of(largest, off == 0.f);
    all_units = 0;
    for (int half = 0; half < 2; ++half) {
      const Ints now = rounded(x + 16 * half, step.by);
#if defined(__AVX512VNNI__)
      store_bytes(now, bytes[0] + 16 * half);
      store_bytes(high_part(now), bytes[1] + 16 * half);
#else
      store_apart(now, words[0] + 8 * half, words[1] + 8 * half);
#endif
      all_units += total(now);
    }
    unit = step.unit;
    sum = static_cast<float>(all_units) * unit;
  }

  // The products of sixteen rows' codes, four columns a vector, with the whole numbers.
  VECTORS Lanes dot(const Rounded &x, const Words (&codes)[FOURS]) {
    Ints sums = same(-ZERO * x.all_units);
#if defined(__AVX512VNNI__)
    Ints high = same(0);
#pragma GCC unroll 8
    for (int i = 0; i < FOURS; ++i) {
      sums = add_byte_products(sums, codes[i], fours(x.bytes[0] + 4 * i));
      high = add_byte_products(high, codes[i], fours(x.bytes[1] + 4 * i));
    }
    sums = above(high, sums);
#else
#pragma GCC unroll 8
    for (int i = 0; i < FOURS; ++i) {
      sums = add_products(sums, even_bytes(codes[i]), fours(x.words[0] + 2 * i));
      sums = add_products(sums, odd_bytes(codes[i]), fours(x.words[1] + 2 * i));
    }
#endif
    return to_float(sums);
  }
};

}  // namespace

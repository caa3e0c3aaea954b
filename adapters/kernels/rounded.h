// Activations as whole numbers (units.h), and their products with sixteen rows of codes, four columns a vector.
#pragma once

#include <algorithm>
#include <cmath>

#include "groups.h"
#include "units.h"

namespace {

constexpr int FOURS = PAIR / 4;  // vectors of four columns of sixteen rows

// The activations of 32 columns. SLOTS 4: for int4, 2: for int8.
template <int SLOTS, int BYTES>
struct Rounded {
  static constexpr bool WIDE = BYTES == 3;
  static constexpr int32_t ZERO = SLOTS == 4 ? 8 : INT8_ZERO;  // the code that stands for 0
#if defined(FLUVIAL_BYTES)
  int8_t digits[BYTES][PAIR];  // the lowest first
#else
  int16_t words[WIDE ? 2 : 1][2][PAIR / 2];  // without the last eight bits, those; even columns, odd columns
#endif
  float unit, sum;     // sum: of the 32 activations
  int32_t high, low;  // of the whole numbers without their last eight bits, of those; not WIDE: high is of all

  // `groups` of 32 columns of x, into to[0], to[stride] ..; at most sixteen.
#if defined(__AVX512VNNI__)
  INLINE void fill(const float *x, int64_t groups, Rounded *to, int64_t stride) {
    __m512i largest[STRETCH] = {};
    for (int64_t k = 0; k < groups; ++k)
      largest[k] = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(x + k * PAIR))),
                                    _mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(x + k * PAIR + 16))));
    transpose(largest);
#pragma GCC unroll 4
    for (int apart = 8; apart; apart /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < apart; ++i) largest[i] = _mm512_max_epi32(largest[i], largest[i + apart]);
    alignas(64) float sizes[STRETCH];
    _mm512_store_si512(sizes, largest[0]);
    Step steps[STRETCH];
    for (int k = 0; k < STRETCH; ++k) steps[k] = step_of<SLOTS, BYTES>(sizes[k], sizes[k] <= 3.4028235e38f);
    for (int64_t k = 0; k < groups; ++k)
      for (int half = 0; half < 2; ++half) {
        Ints all = rounded(x + k * PAIR + 16 * half, steps[k].by);
#pragma GCC unroll 3
        for (int byte = 0; byte < BYTES; ++byte, all = high_part(all))
          store_bytes(all, to[k * stride].digits[byte] + 16 * half);
      }
    alignas(64) int32_t totals[BYTES][STRETCH];
#pragma GCC unroll 3
    for (int byte = 0; byte < BYTES; ++byte) {
      Ints sums[STRETCH / 2];
#pragma GCC unroll 8
      for (int i = 0; i < STRETCH / 2; ++i) {
        // past the end anything will do
        const auto digits = [&](int64_t k) { return to[std::min(k, groups - 1) * stride].digits[byte]; };
        sums[i] = add_byte_products(same(0), all_bytes(1), join(digits(2 * i), digits(2 * i + 1)));
      }
      _mm512_store_si512(totals[byte], add_groups<2>(sums));
    }
    for (int64_t k = 0; k < groups; ++k) {
      const int lane = lane_of<2>(k);
      int32_t high = totals[BYTES - 1][lane];
      for (int byte = BYTES - 2; byte >= WIDE; --byte) high = 256 * high + totals[byte][lane];
      to[k * stride].set(steps[k].unit, high, WIDE ? totals[0][lane] : 0);
    }
  }
#else
  INLINE void fill(const float *x, int64_t groups, Rounded *to, int64_t stride) {
    for (int64_t k = 0; k < groups; ++k) to[k * stride].fill(x + k * PAIR);
  }
  void fill(const float *x) {
    float largest = 0.f, off = 0.f;
#pragma omp simd reduction(max : largest) reduction(+ : off)
    for (int i = 0; i < PAIR; ++i) {
      const float size = std::fabs(x[i]);
      largest = size > largest ? size : largest;
      off += x[i] * 0.f;  // not 0 if one is not finite
    }
    const Step step = step_of<SLOTS, BYTES>(largest, off == 0.f);
    int32_t high = 0, low = 0;
    for (int half = 0; half < 2; ++half) {
      const Ints all = rounded(x + 16 * half, step.by), above = WIDE ? high_part(all) : all;
#if defined(FLUVIAL_BYTES)
      Ints rest = all;
      for (int byte = 0; byte < BYTES; ++byte, rest = high_part(rest)) store_bytes(rest, digits[byte] + 16 * half);
#else
      store_apart(above, words[0][0] + 8 * half, words[0][1] + 8 * half);
      if (WIDE) store_apart(low_part(all), words[WIDE][0] + 8 * half, words[WIDE][1] + 8 * half);
#endif
      high += total(above);
      if (WIDE) low += total(low_part(all));
    }
    set(step.unit, high, low);
  }
#endif
  void set(float its_unit, int32_t its_high, int32_t its_low) {
    unit = its_unit, high = its_high, low = its_low;
    sum = static_cast<float>(WIDE ? 256 * high + low : high) * unit;
  }

  // The products of sixteen rows' codes, four columns a vector, with the whole numbers.
  VECTORS Lanes dot(const Rounded &x, const Words (&codes)[FOURS]) {
#if defined(FLUVIAL_BYTES)
    Ints high = same(-ZERO * x.high), low = same(-ZERO * x.low), highest = same(0);
    if (!WIDE) low = high;
#pragma GCC unroll 8
    for (int i = 0; i < FOURS; ++i) {
      low = add_byte_products(low, codes[i], fours(x.digits[0] + 4 * i));
      if (WIDE) high = add_byte_products(high, codes[i], fours(x.digits[BYTES > 1] + 4 * i));
      if (BYTES > 1) highest = add_byte_products(highest, codes[i], fours(x.digits[BYTES - 1] + 4 * i));
    }
    high = BYTES > 1 ? above(highest, WIDE ? high : low) : low;
#else
    Pairs high = pairs(-ZERO * x.high), low = pairs(-ZERO * x.low);
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
